"""Collects what the earlier stages wrote about one task: results with intervals, training curves, effects of the variants."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from pipeline.config.errors import PipelineError
from pipeline.config.params import ABSENT, Settings, read_facts
from pipeline.corpus.task import Floats, Task, constant_prediction, measure
from pipeline.evaluation.quality import (
    PREDICTIONS_FILE,
    QUALITY_FILE,
    SPEED_FILE,
    Qualities,
    Speed,
    Speeds,
    bootstrap_interval,
    control_of,
)
from pipeline.shards.manifest import LINEAGE_FILE, Manifest, Receipt, manifest_hash

TEACHER = "teacher"
"""Name of the teacher among the models of a task."""

PARETO_LINE = "no other model is at least as fast and at least as good, and better in one of the two"
"""When a model is on the Pareto line."""


def metric_name(task: Task) -> str:
    """The display name of the task's metric; F1 names the positive label."""
    if task.metric == "f1":
        return f"F1 of {task.labels[1]}"
    if task.metric in ("pearson", "spearman"):
        return f"{task.metric.capitalize()} correlation"
    return {"macro_f1": "macro F1", "mcc": "Matthews correlation"}.get(task.metric, task.metric)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One row of the result table; its fields are the columns, in this order."""

    task: str
    model: str
    metric: str
    value: float
    value_low: float
    value_high: float
    """Ends of the value's interval over test rows."""
    retained: float | None
    agreement: float
    control: str | None = None
    interval_low: float | None = None
    interval_high: float | None = None
    """Ends of the interval of the difference to the control."""
    parameters: int
    bytes: int
    latency_ms: float
    rows_per_s: float
    training_s: float | None = None
    """None for the teacher and for a student whose training was not recorded."""
    pareto: bool = False
    """Whether the model is on the task's Pareto line of latency and value."""


class TrainingCost(Settings):
    """The cost of a student's training, as the distill stage records it; varies from run to run."""

    seconds: float
    steps: int


@dataclass(frozen=True)
class TaskReport:
    """Everything the page shows about one task."""

    task: Task
    rows: int
    """Rows of the test split."""
    trivial: float
    """Metric of the best constant prediction on the test split."""
    taught: bool
    """Whether the teacher is measurably better than the constant prediction."""
    teacher: Result
    students: tuple[Result, ...]
    lineages: Mapping[str, Mapping[str, Any]]
    soft_labels: Manifest
    shards: Manifest
    hashes: Mapping[str, str]
    """Hashes of the two manifests, ``soft_labels`` and ``shards``."""
    training: pd.DataFrame
    """Columns task, model, epoch, loss, dev."""
    flips: pd.DataFrame
    """Columns task, variants, rows, flipped (share), divergence (mean)."""

    @property
    def results(self) -> tuple[Result, ...]:
        """The teacher first, then the students in their order."""
        return (self.teacher, *self.students)


@dataclass(frozen=True)
class _Student:
    """The products of the distill and evaluate stages for one student; arrays are [rows] and [rows, outputs]."""

    lineage: Mapping[str, Any]
    seconds: float | None
    qualities: Qualities
    speeds: Speeds
    ids: list[str]
    labels: Floats
    logits: Floats
    teacher_logits: Floats


def gather(data: Path, name: str, students: Sequence[str], resamples: int) -> TaskReport:
    """Read everything that earlier stages wrote about task ``name`` and these students; other folders are ignored.

    Raises:
        PipelineError: a product is missing or damaged, or a student was trained or evaluated on other rows.
    """
    sets = {content: data / content / name for content in ("soft_labels", "shards")}
    soft_labels, shards = map(Manifest.read, sets.values())
    hashes = {content: manifest_hash(folder) for content, folder in sets.items()}
    task, found = soft_labels.task, {student: _read_student(data, name, student, hashes) for student in students}
    teacher = _teacher_result(task, list(found.values()), resamples)
    results = [teacher, *(_student_result(task, student, found, teacher, resamples) for student in students)]
    on_line = on_pareto_line([(result.latency_ms, result.value) for result in results])
    first, names = found[students[0]], (task.name, TEACHER, "constant prediction")
    constant = constant_prediction(task, first.labels)
    taught = bootstrap_interval(task, first.labels, first.teacher_logits, resamples, names, constant)[0] > 0
    teacher, *trained = (
        replace(result, pareto=pareto, retained=result.retained if taught else None)
        for result, pareto in zip(results, on_line, strict=True)
    )
    folders = {TEACHER: data / "teacher" / name} | {student: data / "student" / name / student for student in students}
    histories = {model: pd.read_csv(folder / "history.csv") for model, folder in folders.items()}
    curves = [table.assign(task=name, model=model) for model, table in histories.items() if len(table)]
    return TaskReport(
        task=task,
        rows=len(first.labels),
        trivial=measure(task, first.labels, constant),
        taught=taught,
        teacher=teacher,
        students=tuple(trained),
        lineages={student: products.lineage for student, products in found.items()},
        soft_labels=soft_labels,
        shards=shards,
        hashes=hashes,
        training=pd.concat(curves)[["task", "model", "epoch", "loss", "dev"]],
        flips=_flips(name, shards),
    )


def on_pareto_line(models: Sequence[tuple[float, float]]) -> list[bool]:
    """For each (latency, value), whether no other model dominates it."""
    return [not any(a <= latency and b >= value and (a, b) != (latency, value) for a, b in models) for latency, value in models]


def _teacher_result(task: Task, students: Sequence[_Student], resamples: int) -> Result:
    """The teacher's row; it is timed beside every student, and the median of these timings counts."""
    timings = [student.speeds.teacher for student in students]
    speed = {column: float(np.median([getattr(timing, column) for timing in timings])) for column in Speed.model_fields}
    logits, measured = students[0].teacher_logits, students[0].qualities.teacher.model_dump() | speed
    low, high = bootstrap_interval(task, students[0].labels, logits, resamples, (task.name, TEACHER))
    return Result(task=task.name, model=TEACHER, metric=task.metric, value_low=low, value_high=high, **measured)


def _student_result(task: Task, name: str, students: Mapping[str, _Student], teacher: Result, resamples: int) -> Result:
    """A student's row; its speed is scaled by the teacher's in the same session, so that machines remain comparable."""
    own, beside = students[name], students[name].speeds
    speed = {
        column: getattr(teacher, column) * getattr(beside.student, column) / getattr(beside.teacher, column)
        for column in Speed.model_fields
    }
    measured = own.qualities.student.model_dump() | speed | {"training_s": own.seconds}
    low, high = bootstrap_interval(task, own.labels, own.logits, resamples, (task.name, name))
    result = Result(task=task.name, model=name, metric=task.metric, value_low=low, value_high=high, **measured)
    control = control_of(name, {student: products.lineage["settings"] for student, products in students.items()})
    if control is None:
        return result
    if own.ids != students[control].ids:
        raise PipelineError(f"{task.name}: {name} and {control} were evaluated on different rows; evaluate both again")
    names = (task.name, name, control)
    low, high = bootstrap_interval(task, own.labels, own.logits, resamples, names, students[control].logits)
    return replace(result, control=control, interval_low=low, interval_high=high)


def _read_student(data: Path, task: str, name: str, hashes: Mapping[str, str]) -> _Student:
    """One student's products; raises if it was trained from other shards than those of the report."""
    folder, evaluation = data / "student" / task / name, data / "evaluation" / task / name
    cost = data / "training" / task / f"{name}.json"
    try:
        lineage = json.loads((folder / LINEAGE_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as cause:
        raise PipelineError(ABSENT.format(folder / LINEAGE_FILE)) from cause
    for content, current in hashes.items():
        if lineage[content] not in (current, None):
            raise PipelineError(
                f"{folder} was trained from the {content} of manifest {lineage[content][:12]}…, "
                f"but the current {content} have manifest {current[:12]}…; train it again with dvc repro"
            )
    qualities, speeds = read_facts(Qualities, evaluation / QUALITY_FILE), read_facts(Speeds, evaluation / SPEED_FILE)
    seconds = read_facts(TrainingCost, cost).seconds if cost.exists() else None
    table = pq.read_table(evaluation / PREDICTIONS_FILE)
    labels = np.asarray(table.column("label").to_numpy(), dtype=np.float64)
    logits, teacher = (np.array(table.column(f"{who}_logits").to_pylist(), dtype=np.float32) for who in ("student", TEACHER))
    return _Student(lineage, seconds, qualities, speeds, table.column("id").to_pylist(), labels, logits, teacher)


def _flips(task: str, shards: Manifest) -> pd.DataFrame:
    """The table ``flips`` from the receipts of the shards, by recipe, or by variant if there is a single recipe."""
    recipes, groups = shards.recipes, dict[str, list[Receipt]]()
    for entry in shards.of_split("train"):
        several, recipe = len(recipes) > 1, recipes[(entry.variant - 1) % len(recipes)]
        groups.setdefault(" + ".join(recipe) if several else f"variant {entry.variant}", []).append(entry.receipt)
    table = []
    for name, receipts in groups.items():
        rows, found = [receipt.rows for receipt in receipts], [receipt.statistics for receipt in receipts]
        divergence = np.average([statistics["divergence"] for statistics in found], weights=rows)
        table.append((task, name, sum(rows), sum(statistics["flipped"] for statistics in found) / sum(rows), divergence))
    return pd.DataFrame(table, columns=["task", "variants", "rows", "flipped", "divergence"])
