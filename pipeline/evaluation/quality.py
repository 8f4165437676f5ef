"""Measures a model on the test split: metric, confidence intervals, agreement with the teacher, size, latency, throughput."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
"""Batch sizes at which latency and throughput are measured."""

CONFIDENCE = 0.95

BATCH_SIZE = 32
"""Rows per batch of the predictions on the test split."""

TIMED_ROUNDS = 3

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
    """``quality.json``: student and teacher; the same bytes on every run."""

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
    """``speed.json``: student and teacher, timed in turns; varies from run to run."""

    teacher: Speed
    student: Speed


def logits_of(model: PreTrainedModel, rows: Rows, pad_token_id: int, batch_rows: int) -> Floats:
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
        bytes=sum(file.stat().st_size for file in folder.glob("*.safetensors")),
    )


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
    """The student with the settings of ``name`` but ``variant_policy: none``; ``settings`` are those of all students."""
    if settings[name]["variant_policy"] == "none":
        return None
    wanted = {**settings[name], "variant_policy": "none"}
    return next((other for other, found in settings.items() if found == wanted), None)


def difference_interval(
    task: Task, labels: Floats, student: Floats, control: Floats, resamples: int, names: Sequence[str]
) -> tuple[float, float]:
    """Paired 95 % percentile bootstrap interval of the metric's difference, student minus control.

    ``labels`` is [rows], both logits are [rows, outputs]; ``names`` determine the seed.
    """

    def difference(chosen: Integers) -> float:
        return measure(task, labels[chosen], student[chosen]) - measure(task, labels[chosen], control[chosen])

    return _over_rows(difference, len(labels), resamples, names)


def value_interval(task: Task, labels: Floats, logits: Floats, resamples: int, names: Sequence[str]) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a model's metric.

    ``labels`` is [rows], ``logits`` [rows, outputs]; ``names`` determine the seed.
    """
    return _over_rows(lambda chosen: measure(task, labels[chosen], logits[chosen]), len(labels), resamples, names)


def _over_rows(statistic: Callable[[Integers], float], rows: int, resamples: int, names: Sequence[str]) -> tuple[float, float]:
    """Bootstrap interval of a statistic of drawn rows; a single row gives its value as both ends.

    Percentile rather than BCa, because BCa is undefined if all resamples have the same value.
    """
    if rows == 1:
        alone = statistic(np.zeros(1, dtype=np.int64))
        return alone, alone
    found = scipy.stats.bootstrap(
        (np.arange(rows),),
        statistic,
        vectorized=False,
        method="percentile",
        n_resamples=resamples,
        batch=100,
        confidence_level=CONFIDENCE,
        rng=np.random.default_rng(seed_of("bootstrap", *names)),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def speeds(
    predictors: Sequence[Predict], rows: Rows, pad_token_id: int, timed_rows: int, rounds: int = TIMED_ROUNDS
) -> list[Speed]:
    """The speed of each model on the same test rows; the models take turns, so that all see the same machine load."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, timed_rows).astype(int))
    singles = _batches(rows, chosen, LATENCY_ROWS, pad_token_id)
    groups = _batches(rows, chosen, THROUGHPUT_ROWS, pad_token_id)
    with one_thread(), torch.inference_mode():
        for predict in predictors:
            _seconds(predict, [*singles[:THROUGHPUT_ROWS], *groups])
        turns = [
            [(_seconds(predict, singles), _seconds(predict, groups)) for predict in predictors] for _ in range(TIMED_ROUNDS)
        ]
    timed = sum(len(group["input_ids"]) for group in groups)
    return [_speed([turn[number] for turn in turns], timed) for number in range(len(predictors))]


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _speed(turns: Sequence[tuple[list[float], list[float]]], timed: int) -> Speed:
    singles = [seconds for single, _ in turns for seconds in single]
    group = float(np.median([sum(seconds) for _, seconds in turns]))
    return Speed(latency_ms=float(np.median(singles)) * 1000, rows_per_s=timed / group)


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
