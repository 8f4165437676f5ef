"""The report's pictures: inline SVG whose colours are the page's CSS variables, so that they follow light and dark.

The same facts give the same bytes. Knows facts and matplotlib, not the page.
"""

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
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from pipeline.evaluation.facts import TEACHER, Result, TaskReport, metric_name

SERIES = 8
"""Colours for students; the ninth starts again with the first."""

DEV_NOTE = "The teacher is dashed. The axis begins at the lowest value from the second epoch on."
LOSS_NOTE = "Students only. Each has the loss of its own objective: compare shapes, not heights."

INK, MUTED, GRID, PANEL = "#0a0a01", "#0a0a02", "#0a0a03", "#0a0a04"
_SERIES = [f"#0b0b0{number}" for number in range(SERIES)]
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line", PANEL: "--panel"} | {
    colour: f"--series-{number}" for number, colour in enumerate(_SERIES)
}
"""Stand-ins that matplotlib draws with, and the CSS variables that take their place."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "text.color": INK,
    "axes.facecolor": "none",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "lines.linewidth": 1.8,
}
_WIDTH, _HEIGHT = 4.7, 3.1
"""Inches of 72 units; about the size on a narrow page, so that text stays readable there."""


@dataclass(frozen=True)
class Picture:
    """One figure of the page."""

    title: str
    note: str
    """What a reader should know to read it."""
    svg: str


def colour_number(position: int) -> int:
    """Which of the page's series colours the student at ``position`` has."""
    return position % SERIES


@matplotlib.rc_context(_STYLE)
def quality_latency(report: TaskReport) -> Picture:
    """Quality against latency, with the models on the Pareto line joined."""
    results = report.results
    figure, axes = _figure("latency of one row in ms (log scale)", metric_name(report.task))
    _log_axis(axes, [r.latency_ms for r in results])
    axes.set_ylim(*_widened([end for r in results for end in (r.value_low, r.value_high)]))
    line = sorted((r.latency_ms, r.value) for r in results if r.pareto)
    axes.step(*zip(*line, strict=True), where="post", color=MUTED, linewidth=1.2, linestyle=":")
    for result, colour in zip(results, _colours(report), strict=True):
        marker, size = ("D", 8) if result.model == TEACHER else ("o", 9)
        axes.vlines(result.latency_ms, result.value_low, result.value_high, color=colour, linewidth=1.2, alpha=0.6)
        axes.plot(result.latency_ms, result.value, marker, color=colour, markersize=size, markeredgecolor=PANEL)
    _name_points(figure, axes, results, _colours(report))
    said = "; ".join(f"{r.model} {r.value:.3f} at {r.latency_ms:.3g} ms" for r in results)
    note = (
        "Up and to the left is better. The dotted Pareto line joins the models that have a * in the table; bars are intervals."
    )
    return Picture("Quality against latency", note, _svg(figure, report, "Quality against latency", said))


@matplotlib.rc_context(_STYLE)
def training(report: TaskReport) -> list[Picture]:
    """The dev metric and the training loss of every epoch."""
    metric = metric_name(report.task)
    everyone = [r.model for r in report.results]
    return [
        _curves(report, "dev", f"dev {metric}", everyone, f"Dev {metric} by epoch", DEV_NOTE, from_epoch=2),
        _curves(report, "loss", "training loss", everyone[1:], "Training loss by epoch", LOSS_NOTE),
    ]


@matplotlib.rc_context(_STYLE)
def divergence(report: TaskReport) -> Picture:
    """How far the variants of each recipe moved the teacher's output, and how often its answer."""
    variants = report.flips["variants"].tolist()
    flips = report.task.kind == "classification"
    height = max(_HEIGHT, 0.9 + 0.45 * len(variants))
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    panels = figure.subplots(1, 1 + flips, sharey=True, width_ratios=[2, 1][: 1 + flips], squeeze=False)[0]
    unit = "KL in nats" if flips else "squared error"
    _ridges(panels[0], report, f"divergence, {unit} (log scale)")
    if flips:
        _bars(panels[1], report)
    note = "How far the teacher’s output on a variant is from that on the untouched input, over the train split; "
    note += "strokes are medians, and the bar at the left edge is all that is nearer."
    note += " Right: the share of its answers that flipped." if flips else ""
    told = zip(variants, report.flips["divergence"], report.flips["flipped"], strict=True)
    said = "; ".join(f"{n}: median {d:.3g}" + (f", {f:.1%} flipped" if flips else "") for n, d, f in told)
    title = "What the variants did to the teacher"
    return Picture(title, note, _svg(figure, report, title, said))


def _curves(
    report: TaskReport, column: str, label: str, models: list[str], title: str, note: str, from_epoch: int = 1
) -> Picture:
    """A line a model; the axis reaches down to what lies at ``from_epoch`` or later."""
    figure, axes = _figure("epoch", label)
    colours = dict(zip([r.model for r in report.results], _colours(report), strict=True))
    ends = []
    for model in models:
        history = report.training[report.training["model"] == model]
        if len(history):
            style = "--" if model == TEACHER else "-"
            axes.plot(history["epoch"], history[column], style, marker="o", markersize=3.5, color=colours[model])
            ends.append(f"{model} ends at {history[column].iloc[-1]:.3f}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    later = report.training[report.training["epoch"] >= from_epoch][column]
    if from_epoch > 1 and later.nunique() > 1:
        axes.set_ylim(bottom=_widened(later.tolist())[0])
    return Picture(title, note, _svg(figure, report, title, "; ".join(ends)))


def _ridges(axes: Axes, report: TaskReport, label: str) -> None:
    """One filled histogram a recipe or variant, the first on top, all on one scale; what the first bin holds is cut to it."""
    table = report.divergence
    tallest = table[table["low"] > table["low"].min()]["count"].max() or table["count"].max()
    seen = table[table["count"] > 0]
    _log_axis(axes, [seen["low"].min(), seen["high"].max()], margin=1.15)
    for row, (_, part) in enumerate(table.groupby("variants", sort=False)):
        heights = 0.85 * np.clip(np.array(part["count"], dtype=float) / tallest, 0, 1)
        edges = [*part["low"], part["high"].iloc[-1]]
        axes.stairs(row - heights, edges, baseline=row, fill=True, color=_SERIES[0], alpha=0.55)
        median = max(report.flips["divergence"].iloc[row], edges[0])
        axes.plot([median, median], [row, row - 0.3], color=INK, linewidth=1.6)
    axes.set_xlabel(label)
    axes.set_yticks([row - 0.3 for row in range(len(report.flips))], report.flips["variants"])
    axes.set_ylim(len(report.flips) - 0.6, -1.0)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def _bars(axes: Axes, report: TaskReport) -> None:
    shares = report.flips["flipped"].tolist()
    axes.barh([row - 0.3 for row in range(len(shares))], shares, height=0.4, color=_SERIES[1], alpha=0.8)
    for row, share in enumerate(shares):
        axes.annotate(f"{share:.1%}", (share, row - 0.3), (4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_xlim(0, max([*shares, 0.01]) * 1.6)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("answers flipped")
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def _figure(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure, axes


def _colours(report: TaskReport) -> list[str]:
    return [INK, *(_SERIES[colour_number(position)] for position in range(len(report.students)))]


def _log_axis(axes: Axes, values: Sequence[float], margin: float = 1.6) -> None:
    """A logarithmic x axis with plain numbers that spans at least a factor of five around the values."""
    low, high = min(values) / margin, max(values) * margin
    slack = max(1.0, (5 * low / high) ** 0.5)
    axes.set_xscale("log")
    axes.set_xlim(low / slack, high * slack)
    decades = np.log10(high / low)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.2 else (1,), numticks=None if decades < 2.2 else 5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _widened(values: Sequence[float]) -> tuple[float, float]:
    margin = 0.18 * (max(values) - min(values)) or 0.02
    return min(values) - margin, max(values) + margin


def _name_points(figure: Figure, axes: Axes, results: Sequence[Result], colours: Sequence[str]) -> None:
    """Write each model's name beside its point where it covers neither another point nor another name."""
    figure.draw_without_rendering()
    scale = 72 / figure.dpi
    points = [axes.transData.transform((r.latency_ms, r.value)) * scale for r in results]
    left, right = axes.bbox.x0 * scale, axes.bbox.x1 * scale
    taken = [_box(x, y, 10, 10) for x, y in points]
    for result, (x, y), colour in zip(results, points, colours, strict=True):
        width = 5.6 * len(result.model)
        shifts = [(dx * (width / 2 + 9), dy) for dy in (0, 9, -9, 18, -18, 27, -27) for dx in (1, -1)]
        shifts += [(0.0, dy) for dy in (13, -13)]
        boxes = [_box(x + dx, y + dy, width, 10) for dx, dy in shifts]
        inside = [n for n, box in enumerate(boxes) if left <= box[0] and box[2] <= right]
        free = [n for n in inside if not any(_meet(boxes[n], other) for other in taken)]
        chosen = min(free, key=lambda n: (abs(shifts[n][1]), n), default=0)
        taken.append(boxes[chosen])
        place: Any = {"textcoords": "offset points", "ha": "center", "va": "center", "fontsize": 9.5}
        place["bbox"] = {"facecolor": PANEL, "edgecolor": "none", "pad": 1.0}  # the line goes behind the names
        axes.annotate(result.model, (result.latency_ms, result.value), shifts[chosen], color=colour, **place)


_Box = tuple[float, float, float, float]


def _box(x: float, y: float, width: float, height: float) -> _Box:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _meet(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _svg(figure: Figure, report: TaskReport, title: str, description: str) -> str:
    """The figure as an element to stand in a page: no prolog, no ids that another figure may have, title and text."""
    held = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": f"{report.task.name} {title}"}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(held, format="svg", transparent=True, metadata=nothing)
    drawing = re.sub(r'<g id="[^"]+"', "<g", held.getvalue())
    opening = re.search(r"<svg [^>]*?(viewBox=\"[^\"]+\")[^>]*>", drawing)
    assert opening is not None, "matplotlib states the view box"
    body = drawing[opening.end() :].strip()
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    words = f"<title>{html.escape(title)}</title><desc>{html.escape(description)}</desc>"
    return f'<svg {opening[1]} role="img">{words}{body}'
