"""Measures a model on the test split: metric, bootstrap intervals, agreement with the teacher, size, latency, throughput."""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
from transformers import PreTrainedModel

from pipeline.config.errors import PipelineError
from pipeline.config.params import Settings
from pipeline.corpus.encoding import Batch, Integers
from pipeline.corpus.seeding import seed_of
from pipeline.corpus.task import Floats, Task, measure, predictions
from pipeline.models.architectures import labels_of
from pipeline.models.forward import logits_of_rows
from pipeline.shards.batches import inputs_at
from pipeline.shards.reader import Rows

PREDICTIONS_FILE = "predictions.parquet"
QUALITY_FILE = "quality.json"
SPEED_FILE = "speed.json"

LATENCY_ROWS = 1
THROUGHPUT_ROWS = 32
TIMED_ROUNDS = 3
CONFIDENCE = 0.95

BATCH_SIZE = 32
"""Most rows per batch of the predictions on the test split."""

Predict = Callable[[Batch], object]
"""Runs a model on a batch padded on the right; the result is ignored."""


class Quality(Settings):
    """Quality and size of one model."""

    value: float
    """The task's metric on the test split."""
    retained: float | None
    """Share of the teacher's value; None if that is not positive."""
    agreement: float
    """Share of predictions equal to the teacher's; for regression the Pearson correlation with the teacher's outputs."""
    parameters: int
    bytes: int
    """Size of the weights on disk."""


class Qualities(Settings):
    """``quality.json``; the same bytes on every run."""

    rows: int
    teacher: Quality
    student: Quality


class Speed(Settings):
    """Speed of one model on one CPU thread, without tokenization."""

    latency_ms: float
    """Median time of a batch of LATENCY_ROWS."""
    rows_per_s: float
    """Rows per second in batches of THROUGHPUT_ROWS."""


class Speeds(Settings):
    """``speed.json``; varies from run to run."""

    teacher: Speed
    student: Speed


def logits_of(model: PreTrainedModel, rows: Rows, pad_token_id: int, batch_rows: int = BATCH_SIZE) -> Floats:
    """The model's logits [rows, outputs] in the order of ``rows``, computed on the model's device."""
    return logits_of_rows(model, rows.lengths(), partial(inputs_at, rows, pad_token_id=pad_token_id), batch_rows)


def quality(model: PreTrainedModel, folder: Path, task: Task, labels: Floats, logits: Floats, teacher: Floats) -> Quality:
    """Quality and size of the model in ``folder``; ``labels`` is [rows], both logits are [rows, outputs]."""
    value, teacher_value = measure(task, labels, logits), measure(task, labels, teacher)
    return Quality(
        value=value,
        retained=value / teacher_value if teacher_value > 0 else None,
        agreement=agreement(task, logits, teacher),
        parameters=model.num_parameters(),
        bytes=bytes_of(folder, "*.safetensors"),
    )


def bytes_of(folder: Path, files: str) -> int:
    """Total size of the files in a folder that match a pattern."""
    return sum(file.stat().st_size for file in folder.glob(files))


def agreement(task: Task, logits: Floats, teacher: Floats) -> float:
    """Share of equal predictions, or Pearson correlation for regression; both logits are [rows, outputs]."""
    metric = "pearson" if task.kind == "regression" else "accuracy"
    return measure(task.model_copy(update={"metric": metric}), predictions(task, teacher), logits)


def check_labelled(task: Task, rows: Rows) -> None:
    """Raise PipelineError for a test split without rows or with unlabelled rows."""
    missing = int(np.isnan(rows.labels()).sum()) if len(rows) else 0
    if missing or not len(rows):
        problem = f"{missing} of {len(rows)} test rows have no label" if len(rows) else "its test split is empty"
        raise PipelineError(f"task {task.name} cannot be evaluated: {problem}; add a labelled test split to its corpus")


def check_labels(task: Task, model: PreTrainedModel, folder: Path) -> None:
    """Raise PipelineError for a classifier whose labels differ from the task's or have another order."""
    if task.kind == "classification" and labels_of(model) != task.labels:
        found, wanted = ", ".join(labels_of(model)), ", ".join(task.labels)
        raise PipelineError(
            f"{folder} has the labels {found}, but task {task.name} has {wanted}, in this order; make it again with dvc repro"
        )


def control_of(name: str, settings: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The student that differs from ``name`` only in ``variant_policy: none``; ``settings`` are those of all students."""
    plain = [other for other, found in settings.items() if found["variant_policy"] == "none"]
    others = {n: {**s, "variant_policy": None, "loss": {**s.get("loss", {}), "variants": None}} for n, s in settings.items()}
    return None if name in plain else next((other for other in plain if others[other] == others[name]), None)


def bootstrap_interval(
    task: Task, labels: Floats, logits: Floats, resamples: int, names: Sequence[str], control: Floats | None = None
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a model's metric, or of its paired difference to that of ``control``.

    ``labels`` is [rows], both logits are [rows, outputs]; ``names`` determine the seed. A single row gives its value as both
    ends. The method is percentile because BCa is undefined if all resamples have the same value.
    """

    def statistic(chosen: Integers) -> float:
        value = measure(task, labels[chosen], logits[chosen])
        return value if control is None else value - measure(task, labels[chosen], control[chosen])

    if len(labels) == 1:
        value = statistic(np.zeros(1, dtype=np.int64))
        return value, value
    interval = scipy.stats.bootstrap(
        (np.arange(len(labels)),),
        statistic,
        vectorized=False,
        method="percentile",
        n_resamples=resamples,
        batch=100,
        confidence_level=CONFIDENCE,
        rng=np.random.default_rng(seed_of("bootstrap", *names)),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def speeds(predictors: Sequence[Predict], rows: Rows, pad_token_id: int, timed_rows: int) -> list[Speed]:
    """The speed of each model on the same test rows; the models take turns, so that all see the same machine load."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, timed_rows).astype(int))
    singles, groups = (_batches(rows, chosen, size, pad_token_id) for size in (LATENCY_ROWS, THROUGHPUT_ROWS))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for predict in predictors:
                _seconds(predict, [*singles[:THROUGHPUT_ROWS], *groups])  # warm-up
            seconds = [[_seconds(predict, [*singles, *groups]) for predict in predictors] for _ in range(TIMED_ROUNDS)]
    finally:
        torch.set_num_threads(threads)
    alone, together = np.split(np.array(seconds), [len(singles)], axis=2)  # [rounds, models, batches]
    latency, duration = 1000 * np.median(alone, axis=(0, 2)), np.median(together.sum(axis=2), axis=0)
    timed = sum(len(group["input_ids"]) for group in groups)
    return [Speed(latency_ms=float(ms), rows_per_s=timed / float(s)) for ms, s in zip(latency, duration, strict=True)]


def _seconds(predict: Predict, batches: Sequence[Batch]) -> list[float]:
    ticks = [time.perf_counter()]
    for batch in batches:
        predict(batch)
        ticks.append(time.perf_counter())
    return [after - before for before, after in itertools.pairwise(ticks)]


def _batches(rows: Rows, chosen: Integers, size: int, pad_token_id: int) -> list[Batch]:
    """Batches of exactly ``size`` rows, or one smaller batch if there are fewer rows."""
    whole = max(len(chosen) // size * size, min(len(chosen), size))
    return [inputs_at(rows, chosen[start : start + size], pad_token_id) for start in range(0, whole, size)]
