"""What the runs of one task and its students add up to, gathered from the folders that earlier stages write.

Knows those folders, not the pages and tables made of them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from pipeline.config.errors import PipelineError
from pipeline.config.params import ABSENT, Settings, read_facts
from pipeline.corpus.task import Floats, Metric, Task, measure, one_answer
from pipeline.evaluation.quality import (
    PREDICTIONS_FILE,
    QUALITY_FILE,
    SPEED_FILE,
    Qualities,
    Quality,
    Speed,
    Speeds,
    control_of,
    difference_interval,
    value_interval,
)
from pipeline.evaluation.variants import answers_to_variants, flips, histogram
from pipeline.shards.manifest import LINEAGE_FILE, Manifest, manifest_hash
from pipeline.shards.reader import Shards

TEACHER = "teacher"
"""What the teacher is called among the models of a task."""

PARETO_LINE = "no other model is at least as fast and at least as good, and better in one of the two"
"""What it means to be on the Pareto line."""

METRIC_NAMES: dict[Metric, str] = {
    "accuracy": "accuracy",
    "f1": "F1",
    "macro_f1": "macro F1",
    "mcc": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
}
"""What a reader calls a metric."""


def metric_name(task: Task) -> str:
    """What a reader calls the task's metric; of F1, the label whose it is."""
    return METRIC_NAMES[task.metric] + (f" of {task.labels[1]}" if task.metric == "f1" else "")


@dataclass(frozen=True)
class Result:
    """One row of the result table; its fields are the columns."""

    task: str
    model: str
    metric: str
    value: float
    value_low: float
    value_high: float
    """Ends of the value's interval over test rows."""
    retained: float | None
    agreement: float
    control: str | None
    interval_low: float | None
    interval_high: float | None
    """Ends of the interval of the difference to the control."""
    parameters: int
    bytes: int
    latency_ms: float
    rows_per_s: float
    training_s: float | None
    """What the student's own training took; None for the teacher, and for a student that was made by hand."""
    pareto: bool
    """Whether it is on the task's Pareto line of latency and value."""


class TrainingCost(Settings):
    """What the distill stage notes of a student's training; varies from run to run."""

    seconds: float
    steps: int


@dataclass(frozen=True)
class TaskReport:
    """Everything the page says of one task."""

    task: Task
    rows: int
    """Of the test split."""
    trivial: float
    """What one answer to all test rows is worth."""
    taught: bool
    """Whether the teacher is better than that, as far as its test rows tell."""
    teacher: Result
    students: tuple[Result, ...]
    lineages: Mapping[str, Mapping[str, Any]]
    costs: Mapping[str, TrainingCost | None]
    """None for a student that was made by hand."""
    scores: Manifest
    perturbations: Manifest
    hashes: Mapping[str, str]
    """Of the two manifests: ``scores`` and ``shards``."""
    training: pd.DataFrame
    """Columns task, model, epoch, loss, dev."""
    divergence: pd.DataFrame
    """Columns task, variants, low, high, count."""
    flips: pd.DataFrame
    """Columns task, variants, rows, flipped (share), divergence (median)."""

    @property
    def results(self) -> tuple[Result, ...]:
        """Teacher first, then the students in their order."""
        return (self.teacher, *self.students)

    @property
    def speedups(self) -> dict[str, float]:
        """Teacher's latency over each student's; above 1 the student is faster."""
        return {student.model: self.teacher.latency_ms / student.latency_ms for student in self.students}


@dataclass(frozen=True)
class _Evaluation:
    """One folder of the evaluate stage."""

    qualities: Qualities
    speeds: Speeds
    ids: list[str]
    labels: Floats
    logits: Floats
    teacher: Floats
    """Its logits on the same rows."""


def gather(data: Path, name: str, students: Sequence[str], resamples: int) -> TaskReport:
    """Read all that earlier stages wrote of task ``name`` and these students; other folders are ignored."""
    scores, perturbations = data / "scores" / name, Shards.holding("perturbations", data / "shards" / name)
    hashes = {"scores": manifest_hash(scores), "shards": manifest_hash(perturbations.folder)}
    manifest = Manifest.read(scores)
    folders = {student: data / "student" / name / student for student in students}
    lineages = {student: _lineage(folder, hashes) for student, folder in folders.items()}
    evaluations = {student: _evaluation(data / "evaluation" / name / student) for student in students}
    costs = {student: _cost(data / "training" / name / f"{student}.json") for student in students}
    spread = answers_to_variants(perturbations)
    trivial, taught = _beside_one_answer(manifest.task, evaluations[students[0]], resamples)
    speed = _speed_of_teacher(evaluations)
    found = [_student(manifest.task, student, evaluations, lineages, costs[student], speed, resamples) for student in students]
    results = [_teacher(manifest.task, evaluations, speed, resamples), *found]
    teacher, *trained = _marked(results if taught else [replace(result, retained=None) for result in results])
    return TaskReport(
        task=manifest.task,
        rows=evaluations[students[0]].qualities.rows,
        trivial=trivial,
        taught=taught,
        teacher=teacher,
        students=tuple(trained),
        lineages=lineages,
        costs=costs,
        scores=manifest,
        perturbations=perturbations.manifest,
        hashes=hashes,
        training=_training(name, {TEACHER: data / "teacher" / name, **folders}),
        divergence=histogram(name, spread),
        flips=flips(name, spread),
    )


def _beside_one_answer(task: Task, evaluation: _Evaluation, resamples: int) -> tuple[float, bool]:
    """What one answer to all test rows is worth, and whether the interval of the teacher's lead on it lies above zero."""
    labels, same = evaluation.labels, one_answer(task, evaluation.labels)
    low, _ = difference_interval(task, labels, evaluation.teacher, same, resamples, (task.name, TEACHER, "one answer"))
    return measure(task, labels, same), low > 0


def on_pareto_line(models: Sequence[tuple[float, float]]) -> list[bool]:
    """Which of several (latency, value) no other dominates: is at least as fast and at least as good, and better in one."""
    return [not any(a <= latency and b >= value and (a, b) != (latency, value) for a, b in models) for latency, value in models]


def _marked(results: Sequence[Result]) -> list[Result]:
    line = on_pareto_line([(result.latency_ms, result.value) for result in results])
    return [replace(result, pareto=on_it) for result, on_it in zip(results, line, strict=True)]


def _speed_of_teacher(evaluations: Mapping[str, _Evaluation]) -> Speed:
    """It is timed beside every student; the table shows the median of these timings."""
    speeds = [evaluation.speeds.teacher for evaluation in evaluations.values()]
    return Speed(
        latency_ms=float(np.median([s.latency_ms for s in speeds])),
        rows_per_s=float(np.median([s.rows_per_s for s in speeds])),
    )


def _beside(teacher: Speed, speeds: Speeds) -> Speed:
    """A student's speed where the teacher has this one: students are timed in turns with it, but on other days or machines."""
    return Speed(
        latency_ms=teacher.latency_ms * speeds.student.latency_ms / speeds.teacher.latency_ms,
        rows_per_s=teacher.rows_per_s * speeds.student.rows_per_s / speeds.teacher.rows_per_s,
    )


def _teacher(task: Task, evaluations: Mapping[str, _Evaluation], speed: Speed, resamples: int) -> Result:
    first = next(iter(evaluations.values()))
    ends = value_interval(task, first.labels, first.teacher, resamples, (task.name, TEACHER))
    return _result(task, TEACHER, first.qualities.teacher, ends, speed)


def _student(
    task: Task,
    name: str,
    evaluations: Mapping[str, _Evaluation],
    lineages: Mapping[str, Mapping[str, Any]],
    cost: TrainingCost | None,
    teacher: Speed,
    resamples: int,
) -> Result:
    own, seconds = evaluations[name], cost.seconds if cost else None
    speed = _beside(teacher, own.speeds)
    ends = value_interval(task, own.labels, own.logits, resamples, (task.name, name))
    control = control_of(name, {student: lineage["settings"] for student, lineage in lineages.items()})
    if control is None:
        return _result(task, name, own.qualities.student, ends, speed, seconds)
    other = evaluations[control]
    if own.ids != other.ids:
        raise PipelineError(f"{task.name}: {name} and {control} were evaluated on different rows; evaluate both again")
    seeds = (task.name, name, control)
    interval = difference_interval(task, own.labels, own.logits, other.logits, resamples, seeds)
    return _result(task, name, own.qualities.student, ends, speed, seconds, control, interval)


def _result(
    task: Task,
    model: str,
    quality: Quality,
    ends: tuple[float, float],
    speed: Speed,
    seconds: float | None = None,
    control: str | None = None,
    interval: tuple[float | None, float | None] = (None, None),
) -> Result:
    """One row, not yet compared with the others."""
    low, high = interval
    return Result(
        task=task.name,
        model=model,
        metric=task.metric,
        value_low=ends[0],
        value_high=ends[1],
        control=control,
        interval_low=low,
        interval_high=high,
        training_s=seconds,
        pareto=False,
        **quality.model_dump(),
        **speed.model_dump(),
    )


def _lineage(folder: Path, hashes: Mapping[str, str]) -> dict[str, Any]:
    """A student's lineage; refused where it learnt from other shards than those the report would show beside it."""
    lineage: dict[str, Any] = json.loads(_text(folder / LINEAGE_FILE))
    for name, found in hashes.items():
        if lineage[name] not in (found, None):
            raise PipelineError(
                f"{folder} was trained from the {name} of manifest {lineage[name][:12]}…, "
                f"but the {name} at hand have manifest {found[:12]}…; train it again with dvc repro"
            )
    return lineage


def _evaluation(folder: Path) -> _Evaluation:
    qualities, speeds = read_facts(Qualities, folder / QUALITY_FILE), read_facts(Speeds, folder / SPEED_FILE)
    table = pq.read_table(folder / PREDICTIONS_FILE)
    labels = np.asarray(table.column("label").to_numpy(), dtype=np.float64)
    own, teacher = (np.array(table.column(f"{who}_logits").to_pylist(), dtype=np.float32) for who in ("student", TEACHER))
    return _Evaluation(qualities, speeds, table.column("id").to_pylist(), labels, own, teacher)


def _cost(path: Path) -> TrainingCost | None:
    return read_facts(TrainingCost, path) if path.exists() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as cause:
        raise PipelineError(ABSENT.format(path)) from cause


def _training(task: str, folders: Mapping[str, Path]) -> pd.DataFrame:
    """Histories one below the other; that of a teacher that was adopted as it is has no row."""
    found = {name: pd.read_csv(StringIO(_text(folder / "history.csv"))) for name, folder in folders.items()}
    histories = [history.assign(task=task, model=name) for name, history in found.items() if len(history)]
    return pd.concat(histories)[["task", "model", "epoch", "loss", "dev"]]
