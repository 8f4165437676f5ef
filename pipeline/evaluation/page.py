"""Writes the report: result tables for people and DVC, and one self-contained HTML page."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from pipeline.config.corpus import SPLITS
from pipeline.config.settings import EvaluationSettings
from pipeline.evaluation import plots
from pipeline.evaluation.facts import PARETO_LINE, Result, TaskReport, metric_name
from pipeline.evaluation.quality import CONFIDENCE, LATENCY_ROWS, THROUGHPUT_ROWS
from pipeline.store.files import write_json, written_whole

TABLE_FILE = "results.txt"
"""The results as a table for a terminal."""
PAGE_FILE = "index.html"


def result_table(reports: Sequence[TaskReport]) -> pd.DataFrame:
    """One row for each task and model, with the columns of ``Result``."""
    columns = [field.name for field in fields(Result)]
    return pd.DataFrame([vars(result) for report in reports for result in report.results], columns=columns)


def write_report(out: Path, reports: Sequence[TaskReport], settings: EvaluationSettings) -> None:
    """Write tables, metrics and, last, the page."""
    table, rendered = result_table(reports), page(reports, settings)
    with written_whole(out / TABLE_FILE) as partial:
        partial.write_text(printed_table(table) + "\n", encoding="utf-8")
    table["pareto"] = table["pareto"].map({True: "true", False: "false"})
    plotted = ["task", "model", "value", "value_low", "value_high", "latency_ms", "pareto"]
    tables = {"results": table, "quality_latency": table[plotted]}
    tables |= {name: pd.concat([getattr(r, name) for r in reports]) for name in ("training", "flips")}
    for name, content in tables.items():
        with written_whole(out / f"{name}.csv") as partial:
            content.to_csv(partial, index=False, lineterminator="\n")
    metrics = {
        report.task.name: {r.model: {r.metric: r.value, "retained": r.retained} for r in report.results} for report in reports
    }
    write_json(out / "metrics.json", metrics)
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
    environment.filters |= {one.__name__: one for one in (scaled, percent, signed, duration)}
    functions = (metric_name, headline, verdict, difference, plots.pictures, origins, student_settings, settings_table)
    environment.globals |= {one.__name__: one for one in functions}
    names = {
        "pareto_line": PARETO_LINE,
        "confidence": CONFIDENCE,
        "latency_rows": LATENCY_ROWS,
        "throughput_rows": THROUGHPUT_ROWS,
        "series": plots.SERIES,
    }
    template = environment.get_template("report.html.j2")
    return template.render(reports=reports, settings=settings, **names)


def headline(report: TaskReport) -> list[str]:
    """Two sentences: what the best student retains at what speed, and what the variants contribute."""
    best = max(report.students, key=lambda student: student.value)
    metric, teacher = metric_name(report.task), report.teacher
    if not report.taught or best.retained is None:
        retained = (
            f"The teacher’s {metric} of {teacher.value:.3f} is not measurably better than the {report.trivial:.3f} of a "
            "constant prediction, so no share of it can be given for a student."
        )
    else:
        retained = (
            f"The student {best.model} retains {percent(best.retained)} of the teacher’s {metric} "
            f"({best.value:.3f} of {teacher.value:.3f}) at {teacher.latency_ms / best.latency_ms:.1f}× its speed "
            f"with {percent(best.parameters / teacher.parameters, 0)} of its parameters."
        )
    return [retained, _effect(report, best)]


def verdict(student: Result) -> str:
    """The conclusion that the interval of the difference to the control allows."""
    if student.interval_low is None or student.interval_high is None:
        return "no control"
    if student.interval_low > 0:
        return "better"
    return "worse" if student.interval_high < 0 else "inconclusive"


def difference(report: TaskReport, student: Result) -> float | None:
    """The student's value minus its control's."""
    values = {other.model: other.value for other in report.students}
    return None if student.control is None else student.value - values[student.control]


def _effect(report: TaskReport, best: Result) -> str:
    """The comparison with a control that involves the best student, or else the first one."""
    compared = [s for s in report.students if s.control is not None]
    if not compared:
        return (
            "No student has a control (the same settings with variant_policy: none), "
            "so what the variants contribute was not measured."
        )
    student = next((s for s in compared if best.model in (s.model, s.control)), compared[0])
    subject = "perturbations" if report.shards.perturbed else "variants"
    conclusions = {"better": f"The {subject} help", "worse": f"The {subject} hurt"}
    conclusion = conclusions.get(verdict(student), f"This run cannot tell whether the {subject} help")
    interval = f"{signed(student.interval_low)} to {signed(student.interval_high)}"
    return (
        f"{conclusion}: {student.model} differs from {student.control}, its control trained without them, by "
        f"{signed(difference(report, student))} {metric_name(report.task)} ({percent(CONFIDENCE, 0)} interval {interval})."
    )


def origins(report: TaskReport) -> dict[str, Mapping[str, Any]]:
    """The task and its two sets of shards, by title of a table."""
    tables: dict[str, Mapping[str, Any]] = {"Task": report.task.model_dump(mode="json"), "Manifests": report.hashes}
    for title, manifest in (("Soft labels", report.soft_labels), ("Variants", report.shards)):
        rows = {split: sum(entry.receipt.rows for entry in manifest.of_split(split)) for split in SPLITS}
        size = sum(entry.receipt.bytes for entry in manifest.shards)
        tables[title] = {"variants": manifest.variants, "rows": rows, "bytes": size} | manifest.details | manifest.key
    return tables


def settings_table(columns: Mapping[str, Mapping[str, Any]], header: bool) -> str:
    """An HTML table with a row for each dotted name of nested settings, as params.yaml nests them."""
    table = pd.json_normalize([dict(column) for column in columns.values()]).astype(object).T.set_axis(list(columns), axis=1)
    with pd.option_context("display.max_colwidth", None):
        return table.to_html(header=header, border=0, classes="settings", na_rep="–", float_format="{:.4g}".format)


def student_settings(report: TaskReport) -> str:
    """The settings and training outcomes of all students, one column for each."""
    shown = ("settings", "dev", "start")
    return settings_table({name: {part: lineage[part] for part in shown} for name, lineage in report.lineages.items()}, True)


def printed_table(results: pd.DataFrame) -> str:
    """The results as a table for a terminal."""
    rows: Any = results.astype(object).where(results.notna(), None).itertuples()
    lines = [
        {
            "task": row.task,
            "model": row.model,
            "metric": f"{row.metric} {row.value:.3f}",
            "relative to teacher": "–" if row.retained is None else percent(row.retained),
            "difference from control (95 % CI)": f"{signed(row.interval_low)} … {signed(row.interval_high)}"
            if row.control
            else "–",
            "parameters": scaled(row.parameters),
            "latency": f"{row.latency_ms:.1f} ms",
            "training": duration(row.training_s),
        }
        for row in rows
    ]
    return pd.DataFrame(lines).to_string(index=False)


def scaled(value: float, unit: str = "") -> str:
    return f"{value / 1e6:.1f} M{unit}" if value >= 1e5 else f"{value / 1e3:.1f} k{unit}"


def percent(share: float, decimals: int = 1) -> str:
    return f"{100 * share:.{decimals}f}\u00a0%"


def signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}".replace("-", "−")


def duration(seconds: float | None) -> str:
    """Seconds, or minutes and seconds; a dash for an unknown duration."""
    if seconds is None:
        return "–"
    return f"{seconds:.1f} s" if seconds < 60 else "{} min {:02} s".format(*divmod(round(seconds), 60))
