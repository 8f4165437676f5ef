"""Draws the report's figures as inline SVG that takes its colours from the page's CSS variables."""

import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from pipeline.evaluation.facts import TEACHER, Result, TaskReport, metric_name

SERIES = 8
"""Number of colours for students; the ninth student gets the first colour again."""

INK, MUTED, GRID, PANEL = "#0a0a01", "#0a0a02", "#0a0a03", "#0a0a04"
_SERIES = [f"#0b0b0{number}" for number in range(SERIES)]
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line", PANEL: "--panel"} | {
    colour: f"--series-{number}" for number, colour in enumerate(_SERIES)
}
"""Placeholder colours for matplotlib, and the CSS variables that replace them."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "figure.figsize": (4.7, 3.1),  # about the size on a narrow page, so that text stays readable
    "figure.constrained_layout.use": True,
    "font.size": 9.5,
    "text.color": INK,
    "axes.facecolor": "none",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.ymargin": 0.12,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "lines.linewidth": 1.8,
}
LINE_HEIGHT = 11
"""Points between the baselines of two labels."""


@dataclass(frozen=True)
class Picture:
    """One figure of the page."""

    title: str
    note: str
    svg: str


@matplotlib.rc_context(_STYLE)
def pictures(report: TaskReport) -> list[Picture]:
    """All figures of a task."""
    metric = metric_name(report.task)
    dev_note = "The teacher is dashed. The axis starts at the lowest value after the first epoch."
    loss_note = "Students only. Loss settings may differ between students, so compare shapes, not heights."
    return [
        _quality_latency(report),
        _curves(report, "dev", f"dev {metric}", f"Dev {metric} by epoch", dev_note),
        _curves(report, "loss", "training loss", "Training loss by epoch", loss_note),
    ]


def _quality_latency(report: TaskReport) -> Picture:
    """The metric against latency, with the Pareto line."""
    figure = Figure()
    axes = figure.subplots()
    axes.set(xlabel="latency of one row in ms (log scale)", ylabel=metric_name(report.task))
    line = sorted((r.latency_ms, r.value) for r in report.results if r.pareto)
    axes.step(*zip(*line, strict=True), where="post", color=MUTED, linewidth=1.2, linestyle=":")
    for result, colour in _coloured(report):
        marker = "D" if result.model == TEACHER else "o"
        axes.vlines(result.latency_ms, result.value_low, result.value_high, color=colour, linewidth=1)
        axes.plot(result.latency_ms, result.value, marker, color=colour, markersize=8, markeredgecolor=PANEL)
    _log_axis(axes, [r.latency_ms for r in report.results])
    _label_points(figure, axes, report)
    described = "; ".join(f"{r.model} {r.value:.3f} at {r.latency_ms:.3g} ms" for r in report.results)
    note = "Up and to the left is better. The dotted line is the Pareto line; bars are 95 % intervals."
    return _picture(figure, report, "Quality and latency", note, described)


def _curves(report: TaskReport, column: str, label: str, title: str, note: str) -> Picture:
    """A column of the histories, one line for each model; the axis of the dev metric leaves the first epoch out."""
    figure, ends = Figure(), []
    axes = figure.subplots()
    axes.set(xlabel="epoch", ylabel=label)
    for result, colour in _coloured(report)[column == "loss" :]:
        history = report.training[report.training["model"] == result.model]
        style = "--" if result.model == TEACHER else "-"
        if len(history):
            axes.plot(history["epoch"], history[column], style, marker="o", markersize=3.5, color=colour)
            ends.append(f"{result.model} ends at {history[column].iloc[-1]:.3f}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    later = report.training[report.training["epoch"] > 1][column]
    if column == "dev" and later.nunique() > 1:
        axes.set_ylim(bottom=later.min() - 0.15 * (later.max() - later.min()))
    return _picture(figure, report, title, note, "; ".join(ends))


def _label_points(figure: Figure, axes: Axes, report: TaskReport) -> None:
    """Write each model's name to the right of its point; a name that would overlap a lower one moves up."""
    figure.draw_without_rendering()
    lowest = -np.inf
    for result, colour in sorted(_coloured(report), key=lambda pair: pair[0].value):
        height = axes.transData.transform((result.latency_ms, result.value))[1] * 72 / figure.dpi
        lowest = max(height, lowest + LINE_HEIGHT)
        place: dict[str, Any] = {"textcoords": "offset points", "va": "bottom", "color": colour}
        axes.annotate(result.model, (result.latency_ms, result.value), (6, lowest - height + 1), **place)


def _coloured(report: TaskReport) -> list[tuple[Result, str]]:
    return [(report.teacher, INK), *((s, _SERIES[n % SERIES]) for n, s in enumerate(report.students))]


def _log_axis(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic x axis with plain numbers that spans at least a factor of five around the values."""
    low, high = min(values) / 1.6, max(values) * 1.6
    slack = max(1.0, (5 * low / high) ** 0.5)
    axes.set_xscale("log")
    axes.set_xlim(low / slack, high * slack)
    wide = high / low > 150
    axes.xaxis.set_major_locator(LogLocator(subs=(1,), numticks=5) if wide else LogLocator(subs=(1, 2, 5), numticks=None))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _picture(figure: Figure, report: TaskReport, title: str, note: str, description: str) -> Picture:
    """The figure as an SVG element to embed: no prolog, no ids, with a title and a description for screen readers."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": f"{report.task.name} {title}"}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    drawing = re.sub(r'<g id="[^"]+"', "<g", buffer.getvalue())
    for colour, variable in _VARIABLES.items():
        drawing = drawing.replace(colour, f"var({variable})")
    opening, body = drawing[drawing.index("<svg") :].strip().split(">", 1)
    opening = re.sub(r' (xmlns[:\w]*|width|height|version)="[^"]*"', "", opening)
    description = f"<title>{html.escape(title)}</title><desc>{html.escape(description)}</desc>"
    return Picture(title, note, f'{opening} role="img">{description}{body.lstrip()}')
