"""From raw tables to validated splits, with all errors in one list and notes on what looks like a mistake."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.corpus import MISSING_SHARE, SPLITS, CorpusSettings, Kind, Metric, Split, fitting_metrics
from pipeline.corpus.files import ending_of, read_file
from pipeline.corpus.hub import SplitReader, open_hub
from pipeline.corpus.rows import (
    Parts,
    Row,
    check_f1,
    check_labelled,
    check_varied,
    has_columns,
    label_names,
    renamed,
    rows_of,
    with_one_spelling,
)
from pipeline.corpus.splits import capped, carve, with_ids, without_repeated
from pipeline.corpus.tables import ErrorList, SplitTables, Table
from pipeline.corpus.task import Task
from pipeline.store.hashing import canonical_json

TASK_NAME = re.compile(r"[a-z0-9_]+")
HUB_NAMES: dict[Split, tuple[str, ...]] = {"train": ("train",), "dev": ("dev", "validation", "valid"), "test": ("test",)}
"""Usual names of the splits on the hub."""

CSV_QUOTING = re.compile(r'"(?:[^"]|"")*""(?:[^"]|"")*"')
"""A text in quotes that contains a doubled quote."""

ROWS_A_GROUP = 4096
"""Rows per row group of a written table; readers of a few adjacent rows load only their groups."""

ROWS_HASHED = 10_000
"""Rows hashed at once, which bounds memory."""

NAMES_SHOWN = 5
LABELS_SHOWN = 12

Examples = dict[Split, dict[str, Row]]


@dataclass(frozen=True)
class Prepared:
    """The validated splits of a task."""

    task: Task
    tables: dict[Split, pa.Table]
    """Columns id, text_a, text_b (pairs only) and label (int32 index or float32 value, null if there is none)."""
    notes: dict[str, int]
    """What was left out or looks like a mistake, with the number of rows, texts or labels."""
    examples: Examples
    """The rows of the tables by example id."""

    def save(self, folder: Path) -> None:
        """Write ``<split>.parquet`` of every split, and the task."""
        for split, table in self.tables.items():
            pq.write_table(table, folder / f"{split}.parquet", row_group_size=ROWS_A_GROUP)
        self.task.save(folder)

    def texts_hash(self) -> str:
        """Hash of the train and dev texts, in hexadecimal; independent of the labels."""
        digest = hashlib.sha256()
        for split in ("train", "dev"):
            for batch in self.tables[split].drop_columns(["label"]).combine_chunks().to_batches(ROWS_HASHED):
                digest.update(canonical_json(batch.to_pylist()))
        return digest.hexdigest()

    def label_summary(self, split: Split) -> str:
        """The labels of a split in a few words: rows per label name, or the range of values."""
        column = self.tables[split]["label"]
        labels = column.drop_null()
        if not len(labels):
            return "no labels"
        if self.task.kind == "regression":
            words = [f"values from {labels.to_numpy().min():g} to {labels.to_numpy().max():g}"]
        else:
            counts = np.bincount(labels.to_numpy(), minlength=self.task.outputs)
            words = [f"{name} {count}" for name, count in zip(self.task.labels, counts, strict=True)]
            if len(words) > LABELS_SHOWN:
                words = [f"{len(words)} labels with {counts.min()} to {counts.max()} rows each"]
        return ", ".join(words + ([f"without label {column.null_count}"] if column.null_count else []))


def prepare(task_name: str, kind: Kind, metric: Metric, settings: CorpusSettings) -> Prepared:
    """Read, validate and split a corpus.

    Raises:
        PipelineErrors: all errors of the task, its files and its rows.
    """
    errors, notes = ErrorList(), Counter[str]()
    _check_task(task_name, kind, metric, settings, errors)
    tables = _read(settings, errors)
    rows = with_one_spelling(_validated(tables, kind, settings, errors), tables, settings)
    names = label_names(tables, rows, settings, errors) if kind == "classification" else ()
    rows = renamed(rows, settings.labels or {})
    if metric == "f1":
        check_f1(names, tables, settings, errors)
    examples: Examples = {}
    if tables and len(rows) == len(tables):
        examples = _examples(_divided(rows, settings, notes, errors), tables, settings, notes, errors)
    errors.raise_if_any(f"task {task_name}")
    notes.update(_text_notes(examples))
    if kind == "classification":
        notes.update(_label_notes(examples, names))
    task = Task(name=task_name, kind=kind, metric=metric, labels=names, pair=len(settings.text) == 2)
    return Prepared(task, {split: _arrow(examples[split], task) for split in SPLITS}, dict(+notes), examples)


def _check_task(name: str, kind: Kind, metric: Metric, settings: CorpusSettings, errors: ErrorList) -> None:
    if not TASK_NAME.fullmatch(name):
        errors.add(f"task name {name!r}", "only a-z, 0-9 and _ may be used")
    if metric not in fitting_metrics(kind):
        errors.add(f"metric {metric}", f"it does not fit {kind}; choose from {', '.join(fitting_metrics(kind))}")
    if kind == "regression" and settings.labels:
        errors.add("corpus.labels", "label names belong to classification; leave them out")


def _read(settings: CorpusSettings, errors: ErrorList) -> SplitTables:
    wanted = [*settings.text, settings.label]
    if settings.files is not None:
        read = {split: read_file(Path(path), wanted, errors) for split, path in settings.files.items()}
        return {split: [] if table is None else [table] for split, table in read.items()}
    assert settings.hub is not None
    readers = open_hub(settings.hub, settings.config, settings.revision, errors)
    splits = (settings.splits or _usual_names(readers)) if readers else {}
    for name in splits.values():
        if name not in readers:
            message = f"there is no split {name!r}; it has: {', '.join(readers)}; map them with corpus.splits"
            errors.add(settings.hub, message)
    return {split: readers[name](wanted, errors) if name in readers else [] for split, name in splits.items()}


def _usual_names(readers: Mapping[str, SplitReader]) -> dict[Split, str]:
    """The first usual name of each split that the set has; train in any case, so that its absence is an error."""
    present = {split: [name for name in names if name in readers] for split, names in HUB_NAMES.items()}
    return {split: (names or ["train"])[0] for split, names in present.items() if names or split == "train"}


def _validated(tables: SplitTables, kind: Kind, settings: CorpusSettings, errors: ErrorList) -> Parts:
    """The rows of each split whose tables have the needed columns; train may lack the label column if another split has it."""
    labelled = {split for split, part in tables.items() if any(settings.label in table.header for table in part)}
    rows: Parts = {}
    for split, part in tables.items():
        optional = split == "train" and bool(labelled) and "train" not in labelled
        needed = settings.text if optional else (*settings.text, settings.label)
        complete = [table for table in part if has_columns(table, needed, errors)]
        if not part or len(complete) < len(part):
            continue
        name = part[0].name + (f" and {len(part) - 1} more" if len(part) > 1 else "")
        if not any(table.numbers for table in part):
            errors.add(name, "the table has no rows")
        rows[split] = [row for table in part for row in rows_of(table, settings.text, settings.label, kind, errors)]
        if split != "train":
            check_labelled(rows[split], name, split, errors)
    return rows


def _divided(rows: Parts, settings: CorpusSettings, notes: Counter[str], errors: ErrorList) -> Parts:
    """All splits, missing ones carved from train and no text in two of them; empty if a share is missing."""
    shares = {split: share for split, share in settings.shares().items() if split not in rows}
    if missing := [split for split in SPLITS if split not in rows and split not in shares]:
        for split in missing:
            errors.add(f"corpus.{split}", MISSING_SHARE.format(split))
        return {}
    parts = rows | carve(rows["train"], shares)
    for split in shares:
        labelled = [row for row in parts[split] if row.label is not None]
        notes[_left_out(split) + "no label"] = len(parts[split]) - len(labelled)
        parts[split] = labelled
    if settings.duplicates == "error":
        without_repeated(parts, errors)
        return parts
    single = without_repeated(parts, ErrorList())
    for split in SPLITS:
        notes[_left_out(split) + "the text occurs in a later split"] = len(parts[split]) - len(single[split])
    return single


def _examples(parts: Parts, tables: SplitTables, settings: CorpusSettings, notes: Counter[str], errors: ErrorList) -> Examples:
    limits = settings.rows or {}
    examples: Examples = {}
    for split, rows in parts.items():
        examples[split] = capped(with_ids(rows), limits.get(split))
        notes[_left_out(split) + "more than the row limit"] = len(rows) - len(examples[split])
        sources: Sequence[Table] = tables.get(split) or tables["train"]
        if not rows and not any(errors.mentions(table.name) for table in sources):
            errors.add(f"{split} split", _no_rows(split, notes))
    if examples:
        check_varied(examples["train"].values(), errors)
    return examples


def _left_out(split: Split) -> str:
    return f"left out of {split}: "


def _no_rows(split: Split, notes: Mapping[str, int]) -> str:
    prefix = _left_out(split)
    reasons = [
        f"{count} left out: {note.removeprefix(prefix)}" for note, count in notes.items() if note.startswith(prefix) and count
    ]
    why = f" ({'; '.join(reasons)})" if reasons else ""
    return f"no usable row is left{why}; dev and test need rows with labels to choose and to evaluate a model"


def _text_notes(examples: Examples) -> dict[str, int]:
    """Repeated texts, and texts of a tsv with the quoting of a csv, which is not undone."""
    notes = {
        f"row(s) of {split} have the text of another row of it": len(rows) - len({row.key for row in rows.values()})
        for split, rows in examples.items()
    }
    of_tsv = (row for part in examples.values() for row in part.values() if ending_of(Path(row.table)) == ".tsv")
    quoted = sum(any(map(CSV_QUOTING.fullmatch, row.texts)) for row in of_tsv)
    return notes | {"row(s) of a tsv are quoted as in csv, which tsv does not undo; save such a table as csv": quoted}


def _label_notes(examples: Examples, names: Sequence[str]) -> dict[str, int]:
    """Labels that contradict each other, are rare, or differ only in case."""
    of_text: dict[tuple[str, ...], set[str | float]] = {}
    for row in (row for part in examples.values() for row in part.values()):
        if row.label is not None:
            of_text.setdefault(row.key, set()).add(row.label)
    counts = {split: Counter(row.label for row in part.values() if row.label is not None) for split, part in examples.items()}
    in_train, spelled = counts["train"], Counter(name.casefold() for name in names)
    groups = {"label(s) without a train row: {}": [name for name in names if in_train and not in_train[name]]}
    for split in ("dev", "test"):
        unseen = [name for name in names if in_train[name] and not counts[split][name]]
        groups[f"label(s) without a {split} row, so {split} does not measure them: {{}}"] = unseen
    groups["label(s) that differ from another only in case: {}"] = [name for name in names if spelled[name.casefold()] > 1]
    rare = "label(s) with a single train row: {}; if they are quantities, the kind is regression"
    groups[rare] = [name for name in names if in_train[name] == 1]
    contradictions = {"text(s) with different labels": sum(len(labels) > 1 for labels in of_text.values())}
    return contradictions | {note.format(_first(group)): len(group) for note, group in groups.items() if group}


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + (", …" if len(names) > NAMES_SHOWN else "")


def _arrow(examples: Mapping[str, Row], task: Task) -> pa.Table:
    rows = list(examples.values())
    labels = [task.labels.index(row.label) if isinstance(row.label, str) else row.label for row in rows]
    columns = {"id": pa.array(list(examples), pa.string())}
    for at, name in enumerate(["text_a", "text_b"] if task.pair else ["text_a"]):
        columns[name] = pa.array([row.texts[at] for row in rows], pa.string())
    return pa.table(columns | {"label": pa.array(labels, pa.int32() if task.labels else pa.float32())})
