"""A task as later stages know it, and its metric."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

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
        """Write ``task.json`` into ``folder``."""
        write_json(folder / TASK_FILE, self.model_dump(mode="json"))

    @classmethod
    def read(cls, folder: Path) -> "Task":
        """Read ``task.json`` of ``folder``."""
        return read_facts(cls, folder / TASK_FILE, f"{folder} has no {TASK_FILE}; run the stage that makes it: dvc repro")


def predictions(task: Task, logits: Floats) -> Floats:
    """Class indices [rows], or values [rows] for regression; ``logits`` is [rows, outputs]."""
    return logits[:, 0] if task.kind == "regression" else logits.argmax(axis=1)


def measure(task: Task, labels: Floats, logits: Floats) -> float:
    """The task's metric, higher is better; ``labels`` is [rows], ``logits`` is [rows, outputs].

    F1 is that of the second of two labels (as in GLUE's MRPC). Macro F1 is the mean over the labels that occur, so that it does
    not depend on which absent labels a model predicts. A correlation of constant values counts as 0.
    """
    return float(_METRICS[task.metric](np.asarray(labels), predictions(task, np.asarray(logits))))


def constant_prediction(task: Task, labels: Floats) -> Floats:
    """Logits [rows, outputs] of the best constant prediction: the label with the highest metric, or the mean of ``labels``."""
    if task.kind == "regression":
        return np.full((len(labels), 1), labels.mean())
    every = [np.tile(np.eye(task.outputs)[int(label)], (len(labels), 1)) for label in np.unique(labels)]
    return max(every, key=lambda logits: measure(task, labels, logits))


def _macro_f1(labels: Floats, predicted: Floats) -> float:
    return float(sklearn.metrics.f1_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0.0))


def _correlation(statistic: Callable[[Floats, Floats], float]) -> Callable[[Floats, Floats], float]:
    """A correlation that is 0, without the library's warning, if all labels or all predictions are equal."""
    return lambda labels, predicted: 0.0 if np.ptp(labels) == 0 or np.ptp(predicted) == 0 else statistic(labels, predicted)


_METRICS: dict[str, Callable[[Floats, Floats], float]] = {
    "accuracy": sklearn.metrics.accuracy_score,
    "f1": partial(sklearn.metrics.f1_score, average="binary", zero_division=0.0),
    "macro_f1": _macro_f1,
    "mcc": _correlation(sklearn.metrics.matthews_corrcoef),
    "pearson": _correlation(lambda labels, predicted: scipy.stats.pearsonr(labels, predicted)[0]),
    "spearman": _correlation(lambda labels, predicted: scipy.stats.spearmanr(labels, predicted)[0]),
}
