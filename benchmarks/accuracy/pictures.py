"""The suite's pictures: what arms gain, what training longer brings, how students learn. Knows columns and matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.accuracy.analysis import POINTS, Comparison

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

CLIMB = 3
"""Epochs in which a student finds its feet."""

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
    panels[0].legend(frameon=False, fontsize=8)
    _save(figure, out)


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
        _leave_out_the_climb(axes)
        _name(axes, f"{task}, {rows or 'all'} rows, {student}", "epoch", "dev, points")
    panels[0].legend(frameon=False, fontsize=8)
    _save(figure, out)


@matplotlib.rc_context(STYLE)  # type: ignore[arg-type]
def differences(comparisons: Mapping[str, Sequence[Comparison]], out: Path) -> None:
    """A panel a title, in it a line an arm: each pair's difference a dot, their mean a stroke, and its interval."""
    tables = [
        pd.concat([each.differences.assign(line=line) for line, each in enumerate(pairs)]) for pairs in comparisons.values()
    ]
    colours = {task: f"C{number}" for number, task in enumerate(pd.concat(tables)["task"].unique())}
    height = sum(0.6 + 0.28 * len(pairs) for pairs in comparisons.values())
    figure = Figure(figsize=(2.2 * PANEL[0], height + 0.3), layout="constrained")
    ratios = [1 + len(pairs) for pairs in comparisons.values()]
    panels = figure.subplots(len(ratios), squeeze=False, sharex=True, height_ratios=ratios).ravel().tolist()
    for axes, table, (title, pairs) in zip(panels, tables, comparisons.items(), strict=True):
        for task, found in table.groupby("task", sort=False):
            axes.scatter(found["points"], found["line"], s=14, color=colours[task], alpha=0.75, linewidths=0, label=task)
        for line, each in enumerate(pairs):
            axes.plot([each.mean] * 2, [line - 0.3, line + 0.3], color=INK)
            axes.plot(each.interval() or (), [line, line] if each.interval() else (), color=INK, linewidth=0.8)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(pairs)), [f"{each.arm} − {each.control}" for each in pairs])
        axes.set_ylim(len(pairs) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_title(title, loc="left", fontsize=9)
    panels[-1].set_xlabel("points of the test metric")
    named = {handle.get_label(): handle for axes in panels for handle in axes.get_legend_handles_labels()[0]}
    figure.legend(handles=list(named.values()), loc="outside right upper", frameon=False, fontsize=8)
    _save(figure, out)


def _panels(number: int) -> tuple[Figure, list[Axes]]:
    columns = min(number, 3)
    lines = -(-number // columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    panels = list(grid.flat)
    for spare in panels[number:]:
        spare.remove()
    return figure, panels[:number]


def _leave_out_the_climb(axes: Axes) -> None:
    """Begin the axis where the lowest line is after ``CLIMB`` epochs: below, all are alike, and above they would be one."""
    settled = [np.asarray(line.get_ydata())[CLIMB:] for line in axes.lines]
    if lowest := [float(heights.min()) for heights in settled if len(heights)]:
        top = axes.get_ylim()[1]
        axes.set_ylim(bottom=min(lowest) - 0.05 * (top - min(lowest)), top=top)


def _name(axes: Axes, title: str, below: str, beside: str) -> None:
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_xlabel(below)
    axes.set_ylabel(beside)


def _save(figure: Figure, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata={"Date": None})
