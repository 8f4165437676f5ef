"""The suite's tables in Markdown. Knows comparisons and how a person reads them; computes none."""

from collections.abc import Sequence

import pandas as pd

from benchmarks.accuracy.analysis import Comparison


def headline(values: pd.DataFrame, gains: Sequence[Comparison], best: str) -> str:
    """A line a task: the arms' medians, what ``best`` gains over each control, and its share of the teacher's value."""
    lines = [
        "| task | "
        + " | ".join(map(str, values.columns))
        + " | "
        + " | ".join(f"{best} − {each.control}" for each in gains)
        + " | of the teacher's |"
    ]
    lines.append("|---" * (lines[0].count("|") - 1) + "|")
    for task, row in values.iterrows():
        gained = [_signed(_of_task(each, str(task))) for each in gains]
        share = row[best] / row["teacher"] if best in row else float("nan")
        lines.append(_line([str(task), *(_number(value) for value in row), *gained, f"{share:.1%}"]))
    means = values.mean()
    share = (values[best] / values["teacher"]).mean() if best in values else float("nan")
    mean_gains = [_signed(each.median) for each in gains]
    lines.append(_line(["**mean**", *(_number(value) for value in means), *mean_gains, f"{share:.1%}"]))
    return "\n".join(lines)


def arms(comparisons: Sequence[Comparison], meanings: dict[str, str]) -> str:
    """A line an arm: what it gains over its control, how sure that is, and what it takes."""
    lines = [_line(["arm", "what", "over", "tasks × seeds", "gain, points", "95 %", "p", "steps", "time"])]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for each in comparisons:
        interval, p = each.interval(), each.p_value()
        tasks = each.differences["task"].nunique()
        lines.append(
            _line(
                [
                    f"`{each.arm}`",
                    meanings[each.arm],
                    f"`{each.control}`",
                    f"{tasks}: {each.pairs}",
                    _signed(each.median),
                    "–" if interval is None else f"{interval[0]:+.1f} … {interval[1]:+.1f}",
                    "–" if p is None else f"{p:.2f}",
                    f"{each.differences['steps'].median():.1f}×",
                    f"{each.differences['seconds'].median():.1f}×",
                ]
            )
        )
    return "\n".join(lines)


def _of_task(comparison: Comparison, task: str) -> float:
    return float(comparison.differences.query("task == @task")["points"].median())


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.1f}"


def _signed(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:+.1f}"
