"""The settings of a task's corpus: where it is, its columns, its label names."""

import unicodedata
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from pipeline.config.params import Settings

Kind = Literal["classification", "regression"]
Metric = Literal["accuracy", "f1", "macro_f1", "mcc", "pearson", "spearman"]
Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")


def label_name(written: str) -> str:
    """The form in which label names are compared: without surrounding space, in Unicode NFC."""
    return unicodedata.normalize("NFC", written.strip())


def fitting_metrics(kind: Kind) -> tuple[Metric, ...]:
    """The metrics for a kind of task."""
    return ("pearson", "spearman") if kind == "regression" else ("accuracy", "f1", "macro_f1", "mcc")


def _files(value: Any) -> Any:
    if value is not None and not isinstance(value, str | dict):
        raise ValueError("one path, or one for each split: {train: …, dev: …, test: …}")
    return {"train": value} if isinstance(value, str) else value


def _columns(value: Any) -> Any:
    if not isinstance(value, str | list | tuple):
        raise ValueError("the name of a column, or a list of two")
    return (value,) if isinstance(value, str) else tuple(value)


def _names(value: Any) -> Any:
    """A list stands for the mapping of each name to itself."""
    if isinstance(value, list):
        if not all(isinstance(name, str | int) for name in value):
            raise ValueError("an entry of the list is no label name; a mapping is written without dashes, {0: bad, 1: good}")
        names = [_name(name) for name in value]
        if len(set(names)) < len(names):
            raise ValueError("each label name must be listed once")
        value = list(zip(value, value, strict=True))
    elif isinstance(value, dict):
        if fused := [written for written, name in value.items() if name is None and ":" in str(written)]:
            raise ValueError(f"put a space after the colon; YAML reads {fused[0]} as one word")
        value = list(value.items())
    elif value is None:
        return None
    else:
        raise ValueError("a list of names in the order of the logits, or a mapping of what the table has to them")
    if any(isinstance(name, bool) for pair in value for name in pair):
        raise ValueError("labels must be names or integers; YAML reads an unquoted true or false as a truth value")
    return {_name(written): _name(name) for written, name in value}


def _name(value: Any) -> Any:
    return label_name(str(value)) if isinstance(value, str | int) else value


def _has_train(value: dict[Split, str]) -> dict[Split, str]:
    if "train" not in value:
        raise ValueError("a train split must be named")
    return value


def _one_or_two(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(value)) != len(value) or len(value) not in (1, 2):
        raise ValueError("one text column or two different ones must be named")
    return value


def _distinct(value: dict[str, str]) -> dict[str, str]:
    if len({*value.values()}) < 2 or "" in {*value, *value.values()}:
        raise ValueError("at least two different label names must be listed")
    return value


MISSING_SHARE = "the corpus has no {} split; say which share of train becomes it"
"""Of a split that a corpus neither has nor is to have carved from train."""

Share = Annotated[float, Field(gt=0, lt=1)]
Tables = Annotated[dict[Split, str], BeforeValidator(_files), AfterValidator(_has_train)]


class CorpusSettings(Settings):
    """Where the raw data of a task is and how it is read; exactly one of ``files`` and ``hub`` is given."""

    files: Tables | None = None
    """One table, or a table for each split; csv, tsv, jsonl (these three may be gzipped) or parquet."""
    hub: str | None = Field(default=None, validate_default=True)
    """A hub id, a local folder in hub layout, or one that ``datasets`` wrote with ``save_to_disk``."""
    config: str | None = None
    revision: str | None = None
    splits: Annotated[dict[Split, str], AfterValidator(_has_train)] | None = None
    """Our split names to the hub set's; splits not named are not read. Absent: the usual names."""
    text: Annotated[tuple[str, ...], BeforeValidator(_columns), AfterValidator(_one_or_two)]
    """One text column, or two for pairs."""
    label: str
    """The label column. The train table may lack it, and any train row its label: students learn from the teacher's answers."""
    labels: Annotated[dict[str, str], BeforeValidator(_names), AfterValidator(_distinct)] | None = None
    """Label names in the order of the logits, each as the table has it to what it is called from then on; a list where both are
    the same. Absent: those the corpus declares, else those found in it, sorted."""
    dev: Share | None = None
    """Share of the train table's rows that becomes the dev split where the corpus has none."""
    test: Share | None = None
    rows: dict[Split, Annotated[int, Field(gt=0)]] | None = None
    """The most rows to keep of a split."""
    duplicates: Literal["error", "drop"]
    """A text that occurs in several splits is an error, or is kept only in the last of train, dev, test."""

    def shares(self) -> dict[Split, float]:
        """Which splits are carved from train where a corpus lacks them."""
        wanted: dict[Split, float | None] = {"dev": self.dev, "test": self.test}
        return {split: share for split, share in wanted.items() if share is not None}

    @field_validator("label")
    @classmethod
    def _not_read(cls, label: str, info: ValidationInfo) -> str:
        if label in info.data.get("text", ()):
            raise ValueError("the label column must not be one of the text columns: the models would read the answer")
        return label

    @field_validator("hub")
    @classmethod
    def _one_source(cls, hub: str | None, info: ValidationInfo) -> str | None:
        if "files" in info.data and (hub is None) == (info.data["files"] is None):
            raise ValueError(
                "exactly one of files and hub must be given" if hub else "name your table as files, or a hub set as hub"
            )
        return hub

    @field_validator("config", "revision", "splits")
    @classmethod
    def _of_hub(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("files") is not None:
            raise ValueError("this belongs to hub and must be left out with files")
        return value

    @field_validator("test")
    @classmethod
    def _leaves_train(cls, test: float | None, info: ValidationInfo) -> float | None:
        dev = info.data.get("dev")
        if test is not None and dev is not None and dev + test >= 1:
            raise ValueError(f"dev ({dev}) and test together must be less than 1")
        return test
