"""Writes the report: result tables for people and DVC, and one self-contained HTML page."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from pydantic import Field

from pipeline.config.corpus import SPLITS
from pipeline.config.errors import PipelineError
from pipeline.config.params import Settings
from pipeline.config.settings import EvaluationSettings
from pipeline.evaluation import plots
from pipeline.evaluation.facts import PARETO_LINE, Result, TaskReport, metric_name
from pipeline.evaluation.quality import CONFIDENCE, LATENCY_ROWS, THROUGHPUT_ROWS
from pipeline.store.files import write_json, written_whole

RESULTS_FILE = "results.csv"
PAGE_FILE = "index.html"
TEMPLATE_FILE = "report.html.j2"

Rows = list[tuple[str, Any]]
"""Names and values of a definition table."""


class ReportSettings(Settings):
    """The sections of params.yaml that the report reads; of tasks and students only the names and their order."""

    tasks: dict[str, Any] = Field(min_length=1)
    students: dict[str, Any] = Field(min_length=1)
    evaluate: EvaluationSettings


def result_table(reports: Sequence[TaskReport]) -> pd.DataFrame:
    """One row for each task and model, with the columns of ``Result``."""
    columns = [field.name for field in fields(Result)]
    return pd.DataFrame([vars(result) for report in reports for result in report.results], columns=columns)


def read_results(folder: Path) -> list[Result]:
    """The rows of the result table that ``write_report`` wrote to ``folder``; a model may be called "None"."""
    names = dict.fromkeys(("task", "model", "metric", "control"), str)
    try:
        table = pd.read_csv(folder / RESULTS_FILE, dtype=names, keep_default_na=False, na_values=[""])
    except FileNotFoundError as cause:
        raise PipelineError(f"{folder / RESULTS_FILE} does not exist; make it with dvc repro") from cause
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [Result(**{str(column): value for column, value in row.items()}) for row in rows]


def write_report(out: Path, reports: Sequence[TaskReport], settings: EvaluationSettings) -> None:
    """Write tables, metrics and, last, the page."""
    table, rendered = result_table(reports), page(reports, settings)
    _write_table(out / RESULTS_FILE, table)
    metrics = {
        report.task.name: {r.model: {r.metric: r.value, "retained": r.retained} for r in report.results} for report in reports
    }
    write_json(out / "metrics.json", metrics)
    plotted = ["task", "model", "value", "value_low", "value_high", "latency_ms", "pareto"]
    _write_table(out / "quality_latency.csv", table[plotted])
    for name in ("training", "divergence", "flips"):
        _write_table(out / f"{name}.csv", pd.concat([getattr(report, name) for report in reports]))
    with written_whole(out / PAGE_FILE) as partial:
        partial.write_text(rendered, encoding="utf-8")


def page(reports: Sequence[TaskReport], settings: EvaluationSettings) -> str:
    """The whole page as HTML, with every name and value escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plain": _plain, "scaled": _scaled, "percent": _percent, "signed": _signed, "duration": duration}
    environment.globals |= {"verdict": verdict, "difference": difference, "colour": plots.colour_number}
    names = {"confidence": CONFIDENCE, "latency_rows": LATENCY_ROWS, "throughput_rows": THROUGHPUT_ROWS}
    sections = [_section(report) for report in reports]
    template = environment.get_template(TEMPLATE_FILE)
    return template.render(sections=sections, settings=settings, pareto_line=PARETO_LINE, **names)


def headline(report: TaskReport) -> list[str]:
    """Two sentences: what the best student retains at what speed, and what the variants contribute."""
    best = max(report.students, key=lambda student: student.value)
    metric, teacher = metric_name(report.task), report.teacher
    if not report.taught or best.retained is None:
        nothing = f"The teacher’s {metric} of {teacher.value:.3f} is not measurably better than the {report.trivial:.3f} of a "
        return [f"{nothing}constant prediction, so no share of it can be given for a student.", _effect(report, best)]
    share, size = _percent(best.retained), _percent(best.parameters / teacher.parameters, 0)
    retained = f"The student {best.model} retains {share} of the teacher’s {metric} ({best.value:.3f} of {teacher.value:.3f})"
    return [f"{retained} at {report.speedups[best.model]:.1f}× its speed with {size} of its parameters.", _effect(report, best)]


def verdict(student: Result) -> str:
    """The conclusion that the interval of the difference to the control allows."""
    if student.interval_low is None or student.interval_high is None:
        return "no control"
    if student.interval_low > 0:
        return "better"
    return "worse" if student.interval_high < 0 else "no measurable difference"


def difference(report: TaskReport, student: Result) -> float | None:
    """The student's value minus its control's."""
    values = {other.model: other.value for other in report.students}
    return None if student.control is None else student.value - values[student.control]


def _effect(report: TaskReport, best: Result) -> str:
    """The comparison with a control that involves the best student, or else the first one."""
    compared = [s for s in report.students if s.control is not None and best.model in (s.model, s.control)]
    compared += [s for s in report.students if s.control is not None]
    if not compared:
        return (
            "No student has a control (the same settings with variants: none), "
            "so what the variants contribute was not measured."
        )
    student = compared[0]
    subject = "The perturbations" if report.perturbations.perturbed else "The variants"
    found = verdict(student)
    if found in ("better", "worse"):
        conclusion = f"{subject} {'help' if found == 'better' else 'hurt'}"
    else:
        conclusion = f"{subject} have no measurable effect"
    return (
        f"{conclusion}: {student.model} differs from {student.control}, its control trained without them, "
        f"by {_signed(difference(report, student))} {metric_name(report.task)} "
        f"({_percent(CONFIDENCE, 0)} interval {_signed(student.interval_low)} to {_signed(student.interval_high)})."
    )


def flattened(value: Mapping[str, Any], before: str = "") -> Rows:
    """Nested mappings as rows of dotted names, as params.yaml nests them."""
    rows: Rows = []
    for name, inner in value.items():
        place = f"{before}{name}"
        rows += flattened(inner, f"{place}.") if isinstance(inner, Mapping) else [(place, inner)]
    return rows


def origins(report: TaskReport) -> dict[str, Rows]:
    """Definition tables of the task, the shards' key and the variants, by title."""
    soft_labels, variants = report.soft_labels, report.perturbations
    task: dict[str, Any] = {"kind": report.task.kind, "labels": report.task.labels, "metric": report.task.metric}
    task |= {f"{split} rows": sum(entry.receipt.rows for entry in soft_labels.of_split(split)) for split in SPLITS}
    sizes = {
        f"{name} bytes": sum(e.receipt.bytes for e in m.shards)
        for name, m in (("soft_labels", soft_labels), ("variants", variants))
    }
    hashes = {f"{name} manifest": value for name, value in report.hashes.items()}
    key = {name: value for name, value in variants.key.items() if name not in task}
    recipes = [" + ".join(recipe) for recipe in variants.recipes]
    return {
        "Task": flattened(task | soft_labels.details | sizes),
        "Hashes and versions": flattened(hashes | key),
        "Variants": flattened({"variants": variants.variants} | variants.details | {"recipes": recipes}),
    }


def student_settings(report: TaskReport) -> tuple[Rows, list[tuple[str, list[Any]]]]:
    """The settings and training outcomes that all students share, and those that differ with one value per student."""
    shown = ("settings", "best_epoch", "dev", "start")
    chosen = [dict(flattened({name: lineage[name] for name in shown})) for lineage in report.lineages.values()]
    names = dict.fromkeys(name for settings in chosen for name in settings)
    rows = [(name.removeprefix("settings."), [settings.get(name, "–") for settings in chosen]) for name in names]
    common = [(name, values[0]) for name, values in rows if len(values) > 1 and all(v == values[0] for v in values)]
    return common, [row for row in rows if row[0] not in dict(common)]


def _section(report: TaskReport) -> dict[str, Any]:
    pictures = [plots.quality_latency(report)]
    pictures += [plots.divergence(report)] if report.perturbations.variants else []
    common, different = student_settings(report)
    return {
        "report": report,
        "metric": metric_name(report.task),
        "headline": headline(report),
        "pictures": [*pictures, *plots.training(report)],
        "origins": origins(report),
        "common": common,
        "different": different,
    }


def _plain(value: Any) -> str:
    """A setting as text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "none"
    return "none" if value is None else str(value)


def _scaled(value: float, unit: str = "") -> str:
    return f"{value / 1e6:.1f} M{unit}" if value >= 1e5 else f"{value / 1e3:.1f} k{unit}"


def _percent(share: float, decimals: int = 1) -> str:
    return f"{100 * share:.{decimals}f}\u00a0%"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}".replace("-", "−")


def duration(seconds: float | None) -> str:
    """A duration with two units at most."""
    if seconds is None:
        return "–"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def _write_table(path: Path, table: pd.DataFrame) -> None:
    with written_whole(path) as partial:
        words = {name: table[name].map({True: "true", False: "false"}) for name in table.columns if name == "pareto"}
        table.assign(**words).to_csv(partial, index=False, lineterminator="\n")
