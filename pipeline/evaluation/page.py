"""The report: tables for people and DVC, and one self-contained page.

Knows facts and pictures, not where the facts came from.
"""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from pydantic import Field

from pipeline.config.errors import PipelineError
from pipeline.config.params import Settings
from pipeline.evaluation import plots
from pipeline.evaluation.facts import PARETO_LINE, Result, TaskReport, metric_name
from pipeline.evaluation.method import listed, method
from pipeline.evaluation.provenance import origins, student_settings
from pipeline.evaluation.quality import CONFIDENCE, LATENCY_ROWS, THROUGHPUT_ROWS, EvaluationSettings
from pipeline.store.files import write_json, written_whole

RESULTS_FILE = "results.csv"
PAGE_FILE = "index.html"
TEMPLATE_FILE = "report.html.j2"


class ReportSettings(Settings):
    """What the report reads of params.yaml; of tasks and students only the names and their order."""

    tasks: dict[str, Any] = Field(min_length=1)
    students: dict[str, Any] = Field(min_length=1)
    evaluate: EvaluationSettings


def result_table(reports: Sequence[TaskReport]) -> pd.DataFrame:
    """One row a task and model, the columns of ``Result``."""
    columns = [field.name for field in fields(Result)]
    return pd.DataFrame([vars(result) for report in reports for result in report.results], columns=columns)


def read_results(folder: Path) -> list[Result]:
    """The rows of the result table that ``write_report`` left in ``folder``; a model may be called "None"."""
    names = dict.fromkeys(("task", "model", "metric", "control"), str)
    try:
        table = pd.read_csv(folder / RESULTS_FILE, dtype=names, keep_default_na=False, na_values=[""])
    except FileNotFoundError as cause:
        raise PipelineError(f"{folder / RESULTS_FILE} does not exist; make it with dvc repro") from cause
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [Result(**{str(column): value for column, value in row.items()}) for row in rows]


def write_report(out: Path, reports: Sequence[TaskReport], settings: EvaluationSettings) -> None:
    """Write tables, metrics, plots and, last, the page."""
    table, rendered = result_table(reports), page(reports, settings)
    _write_table(out / RESULTS_FILE, table)
    write_json(out / "metrics.json", {report.task.name: _metrics(report) for report in reports})
    _write_table(
        out / "quality_latency.csv", table[["task", "model", "value", "value_low", "value_high", "latency_ms", "pareto"]]
    )
    for name in ("training", "divergence", "flips"):
        _write_table(out / f"{name}.csv", pd.concat([getattr(report, name) for report in reports]))
    with written_whole(out / PAGE_FILE) as partial:
        partial.write_text(rendered, encoding="utf-8")


def page(reports: Sequence[TaskReport], settings: EvaluationSettings) -> str:
    """The whole page as HTML; the same facts give the same text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plain": _plain, "millions": _millions, "megabytes": _megabytes, "signed": _signed}
    environment.filters |= {"duration": duration}
    environment.globals |= {"verdict": verdict, "difference": difference, "colour": plots.colour_number}
    template = environment.get_template(TEMPLATE_FILE)
    sections = [_section(report) for report in reports]
    names = {"confidence": CONFIDENCE, "latency_rows": LATENCY_ROWS, "throughput_rows": THROUGHPUT_ROWS}
    return template.render(sections=sections, settings=settings, pareto_line=PARETO_LINE, **names)


def headline(report: TaskReport) -> list[str]:
    """Two sentences: what the best student keeps and at what speed, and what the variants did for it."""
    best = max(report.students, key=lambda student: student.value)
    metric, teacher = metric_name(report.task), report.teacher
    if not report.taught:
        trivial = f"is not above the {report.trivial:.3f} of one answer to all, as far as the test rows tell"
        return [
            f"The teacher’s {metric} of {teacher.value:.3f} {trivial}: there is nothing that a student could keep.",
            _effect(report, best),
        ]
    if best.retained is None:
        kept = f"Student {best.model} reaches a {metric} of {best.value:.3f} where the teacher has {teacher.value:.3f}"
    else:
        values = f"{best.value:.3f} of {teacher.value:.3f}"
        kept = f"Student {best.model} keeps {best.retained:.1%} of the teacher’s {metric} ({values})"
    size = f"{best.parameters / teacher.parameters:.0%} of its parameters"
    return [f"{kept} at {report.speedups[best.model]:.1f}× its speed, with {size}.", _effect(report, best)]


def verdict(student: Result) -> str:
    """What the interval against the control allows to say."""
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
    """The comparison with a control that concerns the best student: its own, or that of which it is the control."""
    compared = [s for s in report.students if s.control is not None and best.model in (s.model, s.control)]
    compared += [s for s in report.students if s.control is not None]
    if not compared:
        return (
            "No student has a control (the same settings with variants: none), "
            "so what the variants contribute was not measured."
        )
    student = compared[0]
    found = difference(report, student)
    assert found is not None, "chosen because it has a control"
    subject = "The perturbations" if report.perturbations.perturbed else "The variants"
    said = {"better": "help", "worse": "hurt"}.get(verdict(student))
    untold = f"This run cannot tell whether {subject[0].lower()}{subject[1:]} help"
    return (
        f"{f'{subject} {said}' if said else untold}: "
        f"{student.model} differs by {_signed(found)} {metric_name(report.task)} "
        f"from {student.control}, its control trained without them "
        f"(95% interval {_signed(student.interval_low)} to {_signed(student.interval_high)})."
    )


def read_shards(report: TaskReport) -> str:
    """How many bytes of shards the students of a task read, all of them the same."""
    scores, variants = (sum(e.receipt.bytes for e in shards.shards) for shards in (report.scores, report.perturbations))
    seeing = [student for student, lineage in report.lineages.items() if lineage["shards"]]
    if not seeing:
        return f"All students of the task read the same {_megabytes(scores)} of shards, the scores."
    who = "" if len(seeing) == len(report.students) else f", read by {listed(seeing)}"
    return (
        f"All students of the task together read {_megabytes(scores + variants)} of shards, made once: "
        f"{_megabytes(scores)} of scores, and {_megabytes(variants)} of variants{who}."
    )


def _section(report: TaskReport) -> dict[str, Any]:
    pictures = [plots.quality_latency(report)]
    pictures += [plots.divergence(report)] if report.perturbations.variants else []
    pictures += plots.training(report)
    common, different = student_settings(report)
    return {
        "report": report,
        "metric": metric_name(report.task),
        "headline": headline(report),
        "pictures": pictures,
        "method": method(report),
        "origins": origins(report),
        "read_shards": read_shards(report),
        "common": common,
        "different": different,
    }


def _plain(value: Any) -> str:
    """A setting as a person writes it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}".replace(",", " ")
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "none"
    return "none" if value is None else str(value)


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:.1f} M" if parameters >= 1e5 else f"{parameters / 1e3:.1f} k"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def duration(seconds: float | None) -> str:
    """How long something took, as a person says it."""
    if seconds is None:
        return "–"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}".replace("-", "−")


def _metrics(report: TaskReport) -> dict[str, dict[str, float | None]]:
    return {r.model: {r.metric: r.value, "retained": r.retained} for r in report.results}


def _write_table(path: Path, table: pd.DataFrame) -> None:
    with written_whole(path) as partial:
        words = {name: table[name].map({True: "true", False: "false"}) for name in table.columns if name == "pareto"}
        table.assign(**words).to_csv(partial, index=False, lineterminator="\n")
