"""The suite's pictures: what training longer brings, and how students learn. Knows columns and matplotlib."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.accuracy.analysis import POINTS

STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "font.size": 9,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "accuracy",
}
COLOURS = ("#7a7a7a", "#1f6fb4", "#d1495b", "#3a9d6e", "#b07d2b", "#7b4fa3")
"""Of arms in their order; the first is the plain one."""

INK = "#222222"

PANEL = (3.1, 2.6)
"""Inches of one panel."""


@matplotlib.rc_context(STYLE)  # type: ignore[arg-type]
def schedules(results: pd.DataFrame, arms: Sequence[str], out: Path) -> None:
    """A panel a task, number of rows and student: test metric by steps, a line an arm through the medians, each seed a dot."""
    by_panel = results.groupby(["task", "rows", "student"], sort=False)
    groups = [(key, group) for key, group in by_panel if group["epochs"].nunique() > 1]
    figure, panels = _panels(len(groups))
    for axes, ((task, rows, student), group) in zip(panels, groups, strict=True):
        for number, arm in enumerate(arms):
            chosen = group[group["arm"] == arm]
            points = chosen.assign(trained=chosen["steps"]).sort_values("trained")
            middle = points.groupby("trained")["value"].median() * POINTS
            axes.plot(middle.index, middle, color=COLOURS[number], label=arm, marker="o", markersize=3.5)
            axes.scatter(points["trained"], points["value"] * POINTS, color=COLOURS[number], s=7, alpha=0.5, linewidths=0)
        axes.axhline(group["teacher_value"].median() * POINTS, color=INK, linewidth=1, linestyle="--", label="teacher")
        _name(axes, f"{task}, {rows or 'all'} rows, {student}", "steps", f"test {group['metric'].iloc[0]}, points")
        axes.set_xscale("log")
    _save(figure, panels, out)


@matplotlib.rc_context(STYLE)  # type: ignore[arg-type]
def curves(epochs: pd.DataFrame, arms: Sequence[str], out: Path) -> None:
    """A panel a task, number of rows, student and schedule: dev metric by epoch, a line an arm, the mean over seeds."""
    groups = list(epochs.groupby(["task", "rows", "student", "epochs"], sort=False))
    figure, panels = _panels(len(groups))
    for axes, ((task, rows, student, _), group) in zip(panels, groups, strict=True):
        for number, arm in enumerate(arms):
            chosen = group[group["arm"] == arm]
            mean = chosen.groupby("at")["dev"].mean() * POINTS
            axes.plot(mean.index, mean, color=COLOURS[number], label=arm)
        _name(axes, f"{task}, {rows or 'all'} rows, {student}", "epoch", "dev, points")
    _save(figure, panels, out)


def _panels(number: int) -> tuple[Figure, list[Axes]]:
    columns = min(number, 3)
    lines = -(-number // columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    panels = list(grid.flat)
    for spare in panels[number:]:
        spare.remove()
    return figure, panels[:number]


def _name(axes: Axes, title: str, below: str, beside: str) -> None:
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_xlabel(below)
    axes.set_ylabel(beside)


def _save(figure: Figure, panels: Sequence[Axes], out: Path) -> None:
    panels[0].legend(frameon=False, fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata={"Date": None})
