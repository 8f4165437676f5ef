"""Task kinds, label names and metrics. Knows what a prediction is worth, not where it came from."""

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy.stats
import sklearn.metrics

from pipeline.config.params import Settings, read_facts
from pipeline.store.files import write_json

Kind = Literal["classification", "regression"]
Metric = Literal["accuracy", "f1", "macro_f1", "mcc", "pearson", "spearman"]
Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")

Floats = npt.NDArray[np.floating]
TASK_FILE = "task.json"


class Task(Settings):
    """One labelled problem, as every stage after prepare knows it."""

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
        """Read ``task.json``; a folder without one was not made by ``prepare``."""
        return read_facts(cls, folder / TASK_FILE, f"{folder} has no {TASK_FILE}; run the stage that makes it: dvc repro")


def label_name(written: str) -> str:
    """A label name as names compare, in tables, settings and models: without surrounding space, in Unicode NFC."""
    return unicodedata.normalize("NFC", written.strip())


def fitting_metrics(kind: Kind) -> tuple[Metric, ...]:
    """The metrics that make sense for a kind of task."""
    return ("pearson", "spearman") if kind == "regression" else ("accuracy", "f1", "macro_f1", "mcc")


def predictions(task: Task, logits: Floats) -> Floats:
    """What is answered: class indices [rows], or values [rows] for regression. ``logits`` is [rows, outputs]."""
    return logits[:, 0] if task.kind == "regression" else logits.argmax(axis=1)


def measure(task: Task, labels: Floats, logits: Floats) -> float:
    """The task's metric, higher is better; ``labels`` is [rows], ``logits`` is [rows, outputs].

    F1 is that of the second of two labels (as GLUE counts MRPC); macro F1 is the mean over the labels that occur, so that
    models are measured alike on the same rows, whatever else they answer. A correlation that is undefined because all answers
    are equal counts as 0.
    """
    return _MEASURES[task.metric](np.asarray(labels), predictions(task, np.asarray(logits)))


def one_answer(task: Task, labels: Floats) -> Floats:
    """Logits [rows, outputs] of who answers all rows alike: by the label that is worth most, or the mean of labels [rows]."""
    if task.kind == "regression":
        return np.full((len(labels), 1), labels.mean())
    every = [np.tile(np.eye(task.outputs)[int(label)], (len(labels), 1)) for label in np.unique(labels)]
    return max(every, key=lambda logits: measure(task, labels, logits))


def _f1(labels: Floats, answers: Floats) -> float:
    return float(sklearn.metrics.f1_score(labels, answers, average="binary", zero_division=0.0))


def _macro_f1(labels: Floats, answers: Floats) -> float:
    return float(sklearn.metrics.f1_score(labels, answers, labels=np.unique(labels), average="macro", zero_division=0.0))


def _correlation(statistic: Callable[[Floats, Floats], float]) -> Callable[[Floats, Floats], float]:
    """A correlation that is 0, without the library's warning, where all labels or all answers are equal."""

    def of(labels: Floats, answers: Floats) -> float:
        constant = np.ptp(labels) == 0 or np.ptp(answers) == 0
        return 0.0 if constant else float(statistic(labels, answers))

    return of


_MEASURES: dict[str, Callable[[Floats, Floats], float]] = {
    "accuracy": lambda labels, answers: float(sklearn.metrics.accuracy_score(labels, answers)),
    "f1": _f1,
    "macro_f1": _macro_f1,
    "mcc": _correlation(sklearn.metrics.matthews_corrcoef),
    "pearson": _correlation(lambda labels, answers: scipy.stats.pearsonr(labels, answers)[0]),
    "spearman": _correlation(lambda labels, answers: scipy.stats.spearmanr(labels, answers)[0]),
}
