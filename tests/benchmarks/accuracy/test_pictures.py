from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from benchmarks.accuracy.analysis import Comparison
from benchmarks.accuracy.pictures import curves, differences, schedules


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were written."""
    figures = list[Figure]()
    monkeypatch.setattr(Figure, "savefig", lambda self, out, **named: figures.append(self))
    return figures


def lines(figure: Figure, panel: int) -> dict[str, list[tuple[float, float]]]:
    found = {str(line.get_label()): line.get_xydata() for line in figure.axes[panel].lines}
    return {name: [(float(x), round(float(y), 6)) for x, y in points] for name, points in found.items()}


def test_a_schedule_shows_the_median_of_its_seeds_by_steps(drawn: list[Figure], tmp_path: Path) -> None:
    found = {"kd": {(6, 100): [0.8, 0.7, 0.81], (18, 300): [0.82, 0.9, 0.83]}, "own": {(6, 100): [0.85], (18, 300): [0.88]}}
    rows = [
        {"task": "trec", "rows": 500, "arm": arm, "epochs": epochs, "steps": steps, "value": value, "teacher_value": 0.9}
        for arm, schedule in found.items()
        for (epochs, steps), values in schedule.items()
        for value in values
    ]
    once = {"task": "cr", "rows": 0, "arm": "kd", "epochs": 6, "steps": 9, "value": 0.5, "teacher_value": 0.6}
    schedules(pd.DataFrame([*rows, once]).assign(metric="accuracy", student="half"), ["kd", "own"], tmp_path / "a.svg")
    assert len(drawn[0].axes) == 1, "a task with one schedule has no picture"
    shown = lines(drawn[0], 0)
    assert shown["kd"] == [(100, 80.0), (300, 83.0)]
    assert shown["own"] == [(100, 85.0), (300, 88.0)]
    assert {height for _, height in shown["teacher"]} == {90.0}
    assert drawn[0].axes[0].get_title(loc="left") == "trec, 500 rows, half"


def test_every_pair_is_a_dot_and_their_mean_a_stroke_with_its_interval_where_there_is_one(
    drawn: list[Figure], tmp_path: Path
) -> None:
    many = pd.DataFrame({"task": ["trec"] * 3 + ["cr"] * 3, "points": [1.0, 2.0, 3.0, 2.0, 4.0, 0.0]})
    one = Comparison("noise", "kd", pd.DataFrame({"task": ["subj"], "points": [-1.0]}))
    differences({"half": [Comparison("own", "kd", many), one], "tiny": [one]}, tmp_path / "a.svg")
    first, second = drawn[0].axes
    assert [text.get_text() for text in first.get_yticklabels()] == ["own − kd", "noise − kd"]
    dots = {str(found.get_label()): np.asarray(found.get_offsets()).tolist() for found in first.collections}
    assert dots == {"trec": [[1, 0], [2, 0], [3, 0]], "cr": [[2, 0], [4, 0], [0, 0]], "subj": [[-1, 1]]}
    mean, interval, *_ = (np.asarray(line.get_xdata()) for line in first.lines)
    assert mean.tolist() == [2, 2]
    assert interval[0] < 2 < interval[1]
    assert sum(len(np.asarray(line.get_xdata())) > 0 for line in second.lines) == 2, "a mean and the zero, no interval"
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["trec", "cr", "subj"]


def test_a_curve_is_the_mean_over_seeds_after_each_epoch(drawn: list[Figure], tmp_path: Path) -> None:
    rows = [
        {"task": task, "rows": 0, "arm": "kd", "student": "half", "epochs": 2, "seed": seed, "at": at, "dev": dev}
        for task in ("trec", "cr")
        for seed, devs in {1: [0.5, 0.7], 2: [0.6, 0.9]}.items()
        for at, dev in enumerate(devs, 1)
    ]
    curves(pd.DataFrame(rows), ["kd", "absent"], tmp_path / "a.svg")
    assert [axes.get_title(loc="left") for axes in drawn[0].axes] == ["trec, all rows, half", "cr, all rows, half"]
    assert lines(drawn[0], 1)["kd"] == [(1, 55.0), (2, 80.0)]


def test_the_first_epochs_do_not_press_the_others_together(drawn: list[Figure], tmp_path: Path) -> None:
    devs = {"kd": [0.1, 0.5, 0.6, 0.70, 0.72], "own": [0.0, 0.6, 0.7, 0.80, 0.90]}
    rows = [
        {"task": "trec", "rows": 0, "arm": arm, "student": "half", "epochs": 5, "seed": 1, "at": at, "dev": dev}
        for arm, curve in devs.items()
        for at, dev in enumerate(curve, 1)
    ]
    curves(pd.DataFrame(rows), list(devs), tmp_path / "a.svg")
    low, high = drawn[0].axes[0].get_ylim()
    assert 65 < low < 70, "just below the lowest line after three epochs"
    assert high > 90
    curves(pd.DataFrame(rows).query("at < 3"), list(devs), tmp_path / "a.svg")
    assert drawn[1].axes[0].get_ylim()[0] < 0, "a short training is all climb"


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    table = pd.DataFrame(
        [
            {"task": "trec", "rows": 0, "arm": "kd", "student": "half", "epochs": 2, "seed": 1, "at": at, "dev": 0.1 * at}
            for at in (1, 2)
        ]
    )
    for name in ("one", "again"):
        curves(table, ["kd"], tmp_path / f"{name}.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "again.svg").read_bytes()
