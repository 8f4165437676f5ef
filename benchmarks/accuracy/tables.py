"""The suite's tables in Markdown. Knows comparisons and how a person reads them; computes none."""

from collections.abc import Mapping, Sequence

import pandas as pd

from benchmarks.accuracy.analysis import Comparison

NOTHING = "–"


def headline(values: pd.DataFrame, gains: Sequence[Comparison], best: str) -> str:
    """A line a task: the arms' medians, what ``best`` gains over each control, and its share of the teacher's value."""
    of_teacher = [f"{best}, of the teacher's"] if best in values else []
    lines = [["task", *map(str, values.columns), *(f"{best} − {each.control}" for each in gains), *of_teacher]]
    for task, row in values.iterrows():
        gained = (_of_task(each, str(task)) for each in gains)
        shares = [f"{row[best] / row['teacher']:.1%}"] if of_teacher else []
        lines.append([str(task), *map(_number, row), *map(_signed, gained), *shares])
    shares = [f"{(values[best] / values['teacher']).mean():.1%}"] if of_teacher else []
    lines.append(["**mean**", *map(_number, values.mean()), *(_signed(each.median_of("points")) for each in gains), *shares])
    return _table(lines)


def arms(comparisons: Sequence[Comparison], meanings: Mapping[str, str]) -> str:
    """A line an arm: what it gains over its control, how sure that is, and what it takes."""
    lines = [["arm", "what", "over", "tasks × seeds", "median", "mean, 95 %", "p", "agreement", "training", "with shards"]]
    return _table([*lines, *(_beside_its_control(each, meanings[each.arm]) for each in comparisons)])


def pairs(comparison: Comparison) -> str:
    """A line a pair: difference in the metric and in agreement, and what the arm takes of the control's time."""
    lines = [["task", "seed", f"{comparison.arm} − {comparison.control}", "agreement", "training", "with shards"]]
    tasks = list(comparison.differences["task"].unique())
    for pair in sorted(comparison.differences.to_dict("records"), key=lambda pair: (tasks.index(pair["task"]), pair["seed"])):
        gained = (_signed(pair[name], digits=2) for name in ("points", "agreement"))
        took = (_times(pair[name]) for name in ("seconds", "with_stage_one"))
        lines.append([pair["task"], str(pair["seed"]), *gained, *took])
    return _table(lines)


def _beside_its_control(comparison: Comparison, meaning: str) -> list[str]:
    found, interval, p = comparison.differences, comparison.interval(), comparison.p_value()
    around = "" if interval is None else f" ({_signed(interval[0])} … {_signed(interval[1])})"
    return [
        f"`{comparison.arm}`",
        meaning,
        f"`{comparison.control}`",
        f"{found['task'].nunique()}: {comparison.pairs}",
        _signed(comparison.median_of("points")),
        _signed(comparison.mean) + around,
        NOTHING if p is None else "< 0.01" if p < 0.01 else f"{p:.2f}",
        _signed(comparison.median_of("agreement")),
        _times(found["seconds"].median()),
        _times(found["with_stage_one"].median()),
    ]


def _of_task(comparison: Comparison, task: str) -> float:
    return float(comparison.differences.query("task == @task")["points"].median())


def _table(lines: Sequence[Sequence[str]]) -> str:
    first, *others = ("| " + " | ".join(cells) + " |" for cells in lines)
    return "\n".join([first, "|---" * len(lines[0]) + "|", *others])


def _number(value: float) -> str:
    return NOTHING if pd.isna(value) else f"{value:.1f}"


def _signed(value: float, digits: int = 1) -> str:
    return NOTHING if pd.isna(value) else f"{round(value, digits) + 0.0:+.{digits}f}"  # what rounds to nothing has no minus


def _times(ratio: float) -> str:
    return f"{ratio:.1f}×"
