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
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

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
        *([_divergence(report)] if report.shards.variants else []),
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


def _divergence(report: TaskReport) -> Picture:
    """Histograms of the teacher's divergence on the variants and, for classification, the share of flipped predictions."""
    table, classes = report.flips, report.task.kind == "classification"
    figure = Figure(figsize=(4.7, max(3.1, 0.9 + 0.45 * len(table))))
    panels = figure.subplots(1, 1 + classes, sharey=True, width_ratios=[2, 1][: 1 + classes], squeeze=False)[0]
    _histograms(panels[0], report)
    panels[0].set_xlabel(f"{'KL in nats' if classes else 'squared error'} (log scale)")
    if classes:
        bars = panels[1].barh(np.arange(len(table)) - 0.3, table["flipped"], height=0.4, color=_SERIES[1], alpha=0.8)
        panels[1].bar_label(bars, [f"{share:.1%}" for share in table["flipped"]], padding=4)
        panels[1].set(xlabel="flipped", xlim=(0, 1.6 * max(table["flipped"].max(), 0.01)))
        panels[1].xaxis.set_major_locator(MaxNLocator(3))
        panels[1].xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    for axes in panels:
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
    note = (
        "Divergence of the teacher’s output on a variant from its output on the clean input, over the train split; vertical "
        f"strokes are medians, and the first bar includes all below it.{' Right: share of flipped predictions.' * classes}"
    )
    rows = zip(table["variants"], table["divergence"], table["flipped"], strict=True)
    described = "; ".join(f"{name}: median {middle:.3g}, {share:.1%} flipped" for name, middle, share in rows)
    return _picture(figure, report, "Effect of the variants on the teacher", note, described)


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


def _histograms(axes: Axes, report: TaskReport) -> None:
    """One filled histogram for each recipe or variant on a common scale, the first at the top."""
    table, names = report.divergence, report.flips["variants"]
    counted = table[table["count"] > 0]
    tallest = table[table["low"] > table["low"].min()]["count"].max() or table["count"].max()
    for row, (name, median) in enumerate(zip(names, report.flips["divergence"], strict=True)):
        part = table[table["variants"] == name]
        heights = 0.85 * np.clip(part["count"].to_numpy(dtype=float) / tallest, 0, 1)
        edges = [*part["low"], part["high"].iloc[-1]]
        axes.stairs(row - heights, edges, baseline=row, fill=True, color=_SERIES[0], alpha=0.55)
        axes.vlines(max(median, edges[0]), row - 0.3, row, color=INK, linewidth=1.6)
    _log_axis(axes, [counted["low"].min(), counted["high"].max()], margin=1.15)
    axes.set_yticks(np.arange(len(names)) - 0.3, names)
    axes.set_ylim(len(names) - 0.6, -1.0)


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


def _log_axis(axes: Axes, values: Sequence[float], margin: float = 1.6) -> None:
    """A logarithmic x axis with plain numbers that spans at least a factor of five around the values."""
    low, high = min(values) / margin, max(values) * margin
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
    opening = re.search(r"<svg [^>]*?(viewBox=\"[^\"]+\")[^>]*>", drawing)
    assert opening is not None, "matplotlib writes the view box"
    body = drawing[opening.end() :].strip()
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    words = f"<title>{html.escape(title)}</title><desc>{html.escape(description)}</desc>"
    return Picture(title, note, f'<svg {opening[1]} role="img">{words}{body}')
