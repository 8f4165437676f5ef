"""The settings of a task: its corpus, with source, columns and label names, its metric and its teacher."""

import re
import unicodedata
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pipeline.config.params import Settings
from pipeline.config.settings import TeacherSettings

Kind = Literal["classification", "regression"]
Metric = Literal["accuracy", "f1", "macro_f1", "mcc", "pearson", "spearman"]
Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")

NAME = re.compile(r"[a-z0-9_]+")
"""The name of a task or a student: part of folders and of DVC's stage names."""

MISSING_SHARE = "the corpus has no {} split; set the share of train that becomes it"


def label_name(written: str) -> str:
    """The form in which label names are compared: without surrounding space, in Unicode NFC."""
    return unicodedata.normalize("NFC", written.strip())


def fitting_metrics(kind: Kind) -> tuple[Metric, ...]:
    """The metrics for a kind of task."""
    return ("pearson", "spearman") if kind == "regression" else ("accuracy", "f1", "macro_f1", "mcc")


def _files(value: Any) -> Any:
    if not isinstance(value, str | dict):
        raise ValueError("one path, or one for each split: {train: …, dev: …, test: …}")
    return {"train": value} if isinstance(value, str) else value


def _has_train(value: dict[Split, str]) -> dict[Split, str]:
    if "train" not in value:
        raise ValueError("a train split must be named")
    return value


def _columns(value: Any) -> Any:
    columns = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else ()
    if len(columns) not in (1, 2) or columns[0] in columns[1:]:
        raise ValueError("the name of a text column, or a list of two different ones")
    return columns


def _names(value: Any) -> Any:
    """A list maps each name to itself."""
    if not isinstance(value, list | dict):
        raise ValueError("a list of names in the order of the logits, or a mapping from values in the table to names")
    pairs = list(value.items()) if isinstance(value, dict) else list(zip(value, value, strict=True))
    if any(isinstance(name, bool) or not isinstance(name, str | int) for pair in pairs for name in pair):
        raise ValueError(
            "label names are texts or integers; quote true and false, put spaces after colons, write mappings without dashes"
        )
    names = {label_name(str(written)): label_name(str(name)) for written, name in pairs}
    if len(names) < len(pairs):
        raise ValueError("each label name must be listed once")
    if len({*names.values()}) < 2 or "" in {*names, *names.values()}:
        raise ValueError("at least two different label names must be listed")
    return names


def _reject(*rules: tuple[bool, str]) -> None:
    """Raise the messages of the rules that apply as one error."""
    if found := [message for applies, message in rules if applies]:
        raise ValueError("; ".join(found))


Share = Annotated[float, Field(gt=0, lt=1)]
Tables = Annotated[dict[Split, str], BeforeValidator(_files), AfterValidator(_has_train)]


class CorpusSettings(Settings):
    """The source of a task's raw data and how it is read; exactly one of ``files`` and ``hub`` is given."""

    files: Tables | None = None
    """One table, or a table for each split; csv, tsv, jsonl (these three may be gzipped) or parquet."""
    hub: str | None = None
    """A hub id, a local folder in hub layout, or one that ``datasets`` wrote with ``save_to_disk``."""
    config: str | None = None
    revision: str | None = None
    splits: Annotated[dict[Split, str], AfterValidator(_has_train)] | None = None
    """Maps our split names to those of the hub set; other splits are not read. Null: the usual names."""
    text: Annotated[tuple[str, ...], BeforeValidator(_columns)]
    """One text column, or two for pairs."""
    label: str
    """The label column; train rows need no label."""
    labels: Annotated[dict[str, str], BeforeValidator(_names)] | None = None
    """Maps values in the table to label names, in the order of the logits; a list if they are identical. Null: the names that
    the corpus declares, else those found in it, sorted."""
    dev: Share | None = None
    """Share of the train rows that becomes the dev split if the corpus has none."""
    test: Share | None = None
    rows: dict[Split, Annotated[int, Field(gt=0)]] | None = None
    """Most rows of a split."""
    duplicates: Literal["error", "drop"]
    """A text that occurs in several splits is an error, or is kept only in the last of train, dev, test."""

    def shares(self) -> dict[Split, float]:
        """Shares of train for the splits that a corpus lacks."""
        wanted: dict[Split, float | None] = {"dev": self.dev, "test": self.test}
        return {split: share for split, share in wanted.items() if share is not None}

    @model_validator(mode="after")
    def _agrees(self) -> "CorpusSettings":
        has_source, of_hub = (self.hub is None) != (self.files is None), (self.config, self.revision, self.splits)
        _reject(
            (not has_source, "exactly one of files (your tables) and hub (a hub set) must be given"),
            (bool(self.files) and any(of_hub), "config, revision and splits belong to hub and must be left out with files"),
            (self.label in self.text, "the label column must not be one of the text columns: the models would read the label"),
            (sum(self.shares().values()) >= 1, "dev and test together must be less than 1"),
        )
        return self


class TaskSettings(Settings):
    """An entry of ``tasks``."""

    kind: Kind
    metric: Metric
    corpus: CorpusSettings
    teacher: TeacherSettings
    augment: dict[str, Any] | None = None
    """Overrides of the section ``augment`` for this task."""
    perturbation: dict[str, Any] | None = None
    """Overrides of the section ``perturbation`` for this task."""

    @model_validator(mode="after")
    def _agrees(self) -> "TaskSettings":
        fitting, names = fitting_metrics(self.kind), set((self.corpus.labels or {}).values())
        is_regression = self.kind == "regression"
        f1 = f"metric f1 is the F1 of the second of two labels, and there are {len(names)}; choose macro_f1"
        _reject(
            (self.metric not in fitting, f"metric: {self.kind} has the metrics {', '.join(fitting)}"),
            (is_regression and bool(names), "corpus.labels: label names belong to classification; leave them out"),
            (not is_regression and self.metric == "f1" and len(names) > 2, f1),
        )
        return self
