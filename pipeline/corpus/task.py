"""A task as later stages know it, and its metric."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.stats
import sklearn.metrics

from pipeline.config.corpus import Kind, Metric
from pipeline.config.params import Settings, read_facts
from pipeline.store.files import write_json

Floats = npt.NDArray[np.floating]
TASK_FILE = "task.json"


class Task(Settings):
    """The description of a task that ``prepare`` writes and every later stage reads."""

    name: str
    kind: Kind
    metric: Metric
    labels: tuple[str, ...]
    """Label names in the order of the logits; empty for regression."""
    pair: bool

    @property
    def outputs(self) -> int:
        """Number of logits."""
        return len(self.labels) if self.kind == "classification" else 1

    def save(self, folder: Path) -> None:
        write_json(folder / TASK_FILE, self.model_dump(mode="json"))

    @classmethod
    def read(cls, folder: Path) -> "Task":
        return read_facts(cls, folder / TASK_FILE, f"{folder} has no {TASK_FILE}; run the stage that makes it: dvc repro")


def predictions(task: Task, logits: Floats) -> Floats:
    """Class indices [rows], or values [rows] for regression; ``logits`` is [rows, outputs]."""
    return logits[:, 0] if task.kind == "regression" else logits.argmax(axis=1)


def measure(task: Task, labels: Floats, logits: Floats) -> float:
    """The task's metric, higher is better; ``labels`` is [rows], ``logits`` is [rows, outputs].

    F1 is that of the second of two labels (as in GLUE's MRPC). Macro F1 is the mean over the labels that occur, so that it does
    not depend on which absent labels a model predicts. A correlation of constant values counts as 0.
    """
    true, predicted = np.asarray(labels), predictions(task, np.asarray(logits))
    if task.metric in ("mcc", "pearson", "spearman") and (np.ptp(true) == 0 or np.ptp(predicted) == 0):
        return 0.0
    return float(_METRICS[task.metric](true, predicted))


def constant_prediction(task: Task, labels: Floats) -> Floats:
    """Logits [rows, outputs] of the best constant prediction: the label with the highest metric, or the mean of ``labels``."""
    if task.kind == "regression":
        return np.full((len(labels), 1), labels.mean())
    every = [np.tile(np.eye(task.outputs)[int(label)], (len(labels), 1)) for label in np.unique(labels)]
    return max(every, key=lambda logits: measure(task, labels, logits))


def _f1(true: Floats, predicted: Floats, **options: Any) -> float:
    return float(sklearn.metrics.precision_recall_fscore_support(true, predicted, zero_division=0.0, **options)[2])


_METRICS: dict[Metric, Callable[[Floats, Floats], float]] = {
    "accuracy": lambda true, predicted: np.mean(true == predicted),
    "f1": partial(_f1, average="binary"),
    "macro_f1": lambda true, predicted: _f1(true, predicted, average="macro", labels=np.unique(true)),
    "mcc": sklearn.metrics.matthews_corrcoef,
    "pearson": lambda true, predicted: scipy.stats.pearsonr(true, predicted)[0],
    "spearman": lambda true, predicted: scipy.stats.spearmanr(true, predicted)[0],
}
