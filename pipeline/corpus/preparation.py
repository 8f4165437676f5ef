"""From raw tables to validated splits, with all errors in one list and notes on probable mistakes."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from pipeline.config.corpus import MISSING_SHARE, NAME, SPLITS, CorpusSettings, Kind, Metric, Split
from pipeline.corpus import rows as corpus_rows
from pipeline.corpus.encoding import Ids, check_length, encode
from pipeline.corpus.files import ErrorList, SplitTables, read_file, shown
from pipeline.corpus.hub import open_hub
from pipeline.corpus.rows import Parts, Row
from pipeline.corpus.task import Task
from pipeline.store.keys import canonical_json

HUB_NAMES: dict[Split, tuple[str, ...]] = {"train": ("train",), "dev": ("dev", "validation", "valid"), "test": ("test",)}
"""Usual names of the splits on the hub."""

ROWS_A_GROUP = 4096
"""Rows per row group of a written table; readers of a few adjacent rows load only their groups."""

ROWS_AT_ONCE = 10_000
"""Rows hashed or tokenised at once, which bounds memory."""

NAMES_SHOWN = 5
LABELS_SHOWN = 12
TOKENS_SHOWN = 3
MANY_UNKNOWN = 0.5
"""A larger share of unknown tokens is noted."""

ROLES = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "pad_token_id", "mask_token_id")

Examples = dict[Split, dict[str, Row]]


@dataclass(frozen=True)
class Prepared:
    """The validated splits of a task."""

    task: Task
    tables: dict[Split, pa.Table]
    """Columns id, text_a, text_b (pairs only) and label (int32 index or float32 value, null if there is none)."""
    notes: dict[str, int]
    """What was left out or is probably a mistake, with the number of rows, texts or labels."""
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
            for batch in self.tables[split].drop_columns(["label"]).combine_chunks().to_batches(ROWS_AT_ONCE):
                digest.update(canonical_json(batch.to_pylist()))
        return digest.hexdigest()

    def label_summary(self, split: Split) -> str:
        """The rows per label name of a split, or the range of its values."""
        column = self.tables[split]["label"]
        labels = column.drop_null().to_numpy()
        if not len(labels):
            return "no labels"
        if self.task.kind == "regression":
            summary = f"values from {labels.min():g} to {labels.max():g}"
        else:
            counts = np.bincount(labels, minlength=self.task.outputs)
            summary = ", ".join(f"{name} {count}" for name, count in zip(self.task.labels, counts, strict=True))
            if len(counts) > LABELS_SHOWN:
                summary = f"{len(counts)} labels with {counts.min()} to {counts.max()} rows each"
        return summary + (f", without label {column.null_count}" if column.null_count else "")


def prepare(task_name: str, kind: Kind, metric: Metric, settings: CorpusSettings) -> Prepared:
    """Read, validate and split a corpus.

    Raises:
        PipelineErrors: all errors of the task, its files and its rows.
    """
    errors, notes = ErrorList(), Counter[str]()
    if not NAME.fullmatch(task_name):
        errors.add(f"task name {task_name!r}", "only a-z, 0-9 and _ may be used")
    tables = _read(settings, errors)
    rows = corpus_rows.with_one_spelling(_validated(tables, kind, settings, errors), tables, settings)
    names = corpus_rows.label_names(tables, rows, settings, errors) if kind == "classification" else ()
    rows = corpus_rows.renamed(rows, settings.labels or {})
    if metric == "f1":
        corpus_rows.check_f1(names, tables, settings, errors)
    examples: Examples = {}
    if tables and len(rows) == len(tables):
        examples = _examples(_divided(rows, settings, notes, errors), tables, settings, notes, errors)
    errors.raise_if_any(f"task {task_name}")
    for split, part in examples.items():
        notes[f"row(s) of {split} have the text of another row of it"] = len(part) - len({row.key for row in part.values()})
    if kind == "classification":
        notes.update(_label_notes(examples, names))
    task = Task(name=task_name, kind=kind, metric=metric, labels=names, pair=len(settings.text) == 2)
    return Prepared(task, {split: _arrow(examples[split], task) for split in SPLITS}, dict(+notes), examples)


def _read(settings: CorpusSettings, errors: ErrorList) -> SplitTables:
    wanted = [*settings.text, settings.label]
    if settings.files is not None:
        read = {split: read_file(Path(path), wanted, errors) for split, path in settings.files.items()}
        return {split: [] if table is None else [table] for split, table in read.items()}
    assert settings.hub is not None
    readers = open_hub(settings.hub, settings.config, settings.revision, errors)
    if not readers:
        return {}
    found = {split: [name for name in names if name in readers] for split, names in HUB_NAMES.items()}
    found["train"] = found["train"] or ["train"]
    splits = settings.splits or {split: names[0] for split, names in found.items() if names}
    for name in splits.values():
        if name not in readers:
            message = f"there is no split {name!r}; it has: {', '.join(readers)}; map them with corpus.splits"
            errors.add(settings.hub, message)
    return {split: readers[name](wanted, errors) if name in readers else [] for split, name in splits.items()}


def _validated(tables: SplitTables, kind: Kind, settings: CorpusSettings, errors: ErrorList) -> Parts:
    """The rows of each split whose tables have the needed columns; train may lack the label column if another split has it."""
    labelled = {split for split, part in tables.items() if any(settings.label in table.header for table in part)}
    rows: Parts = {}
    for split, part in tables.items():
        optional = split == "train" and bool(labelled) and "train" not in labelled
        needed = settings.text if optional else (*settings.text, settings.label)
        complete = [table for table in part if corpus_rows.has_columns(table, needed, errors)]
        if not part or len(complete) < len(part):
            continue
        name = part[0].name + (f" and {len(part) - 1} more" if len(part) > 1 else "")
        if not any(table.numbers for table in part):
            errors.add(name, "the table has no rows")
        rows[split] = [row for table in part for row in corpus_rows.rows_of(table, settings.text, settings.label, kind, errors)]
        if split != "train":
            corpus_rows.check_labelled(rows[split], name, split, errors)
    return rows


def _divided(rows: Parts, settings: CorpusSettings, notes: Counter[str], errors: ErrorList) -> Parts:
    """All splits, missing ones carved from train and no text in two of them; empty if a share is missing."""
    shares = {split: share for split, share in settings.shares().items() if split not in rows}
    if missing := [split for split in SPLITS if split not in rows and split not in shares]:
        for split in missing:
            errors.add(f"corpus.{split}", MISSING_SHARE.format(split))
        return {}
    parts = rows | corpus_rows.carve(rows["train"], shares)
    for split in shares:
        labelled = [row for row in parts[split] if row.label is not None]
        notes[f"left out of {split}: no label"] = len(parts[split]) - len(labelled)
        parts[split] = labelled
    if settings.duplicates == "error":
        corpus_rows.without_repeated(parts, errors)
        return parts
    single = corpus_rows.without_repeated(parts, ErrorList())
    for split in SPLITS:
        notes[f"left out of {split}: the text occurs in a later split"] = len(parts[split]) - len(single[split])
    return single


def _examples(parts: Parts, tables: SplitTables, settings: CorpusSettings, notes: Counter[str], errors: ErrorList) -> Examples:
    examples: Examples = {}
    for split, rows in parts.items():
        examples[split] = corpus_rows.capped(corpus_rows.with_ids(rows), (settings.rows or {}).get(split))
        notes[f"left out of {split}: more than the row limit"] = len(rows) - len(examples[split])
        if not rows and not any(errors.mentions(table.name) for table in tables.get(split) or tables["train"]):
            reasons = "; ".join(f"{count} {note}" for note, count in notes.items() if f"left out of {split}" in note and count)
            message = f"no usable row is left{f' ({reasons})' if reasons else ''}; dev and test need labelled rows"
            errors.add(f"{split} split", message)
    labels = [row.label for row in examples.get("train", {}).values() if row.label is not None]
    if len(set(labels)) == 1:
        errors.add("train split", f"all {len(labels)} labels are {labels[0]!r}; at least two different ones are needed")
    return examples


def _label_notes(examples: Examples, names: Sequence[str]) -> dict[str, int]:
    """Labels that contradict each other, are rare, or differ only in case."""
    of_text: dict[tuple[str, ...], set[str | float]] = {}
    counts = {split: Counter[str | float]() for split in SPLITS}
    for split, row in ((split, row) for split, part in examples.items() for row in part.values()):
        if row.label is not None:
            of_text.setdefault(row.key, set()).add(row.label)
            counts[split][row.label] += 1
    train, spelled = counts["train"], Counter(name.casefold() for name in names)
    groups = {
        "label(s) without a train row": [name for name in names if train and not train[name]],
        "label(s) without a dev row": [name for name in names if train[name] and not counts["dev"][name]],
        "label(s) without a test row": [name for name in names if train[name] and not counts["test"][name]],
        "label(s) that differ from another only in case": [name for name in names if spelled[name.casefold()] > 1],
        "label(s) with a single train row (quantities are a regression)": [name for name in names if train[name] == 1],
    }
    notes = {"text(s) with different labels": sum(len(labels) > 1 for labels in of_text.values())}
    for note, group in groups.items():
        if group:
            more = ", …" if len(group) > NAMES_SHOWN else ""
            notes[f"{note}: {', '.join(group[:NAMES_SHOWN])}{more}"] = len(group)
    return notes


def _arrow(examples: Mapping[str, Row], task: Task) -> pa.Table:
    rows = list(examples.values())
    labels = [task.labels.index(row.label) if isinstance(row.label, str) else row.label for row in rows]
    columns = {"id": pa.array(list(examples), pa.string())}
    for at, name in enumerate(["text_a", "text_b"] if task.pair else ["text_a"]):
        columns[name] = pa.array([row.texts[at] for row in rows], pa.string())
    return pa.table(columns | {"label": pa.array(labels, pa.int32() if task.labels else pa.float32())})


@dataclass(frozen=True)
class Reader:
    """The properties of a teacher that decide which rows it can read."""

    name: str
    """Its name in error messages."""
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    """Most tokens of a row."""
    vocabulary: int
    """Number of token embeddings."""


def check_tokens(examples: Mapping[Split, Mapping[str, Row]], reader: Reader, errors: ErrorList) -> dict[str, int]:
    """Report rows that a teacher cannot read; the rows are all single texts or all pairs.

    Returns:
        Probable mistakes, with the number of rows or the percentage of tokens.

    Raises:
        PipelineError: ``max_length`` is too small for the special tokens, or the tokenizer ignores it.
    """
    notes, unknown = Counter[str](), reader.tokenizer.unk_token_id
    if unknown in {getattr(reader.tokenizer, role) for role in ROLES}:
        unknown = None  # a special token without a meaning of its own
    special = [number for number in reader.tokenizer.all_special_ids if number != unknown]
    ordinary_tokens = unknown_tokens = 0
    for split, part in examples.items():
        for row, ids in _encoded(list(part.values()), reader):
            ordinary = ids[~np.isin(ids, special)]
            ordinary_tokens += len(ordinary)
            unknown_tokens += int((ordinary == unknown).sum()) if unknown is not None else 0
            _check_ids(row, ids, reader, errors)
            if len(ids) and not len(ordinary):
                notes[f"row(s) of {split} have only special tokens"] += 1
    if 0 < unknown_tokens == ordinary_tokens:
        message = "all tokens of the texts are unknown to it; use a teacher whose tokenizer was made for this language"
        errors.add(f"the tokenizer of {reader.name}", message)
    elif unknown_tokens > MANY_UNKNOWN * ordinary_tokens:
        share = round(100 * unknown_tokens / ordinary_tokens)
        notes[f"% of the tokens of all texts are unknown to the tokenizer of {reader.name}"] = share
    return dict(notes)


def _encoded(rows: Sequence[Row], reader: Reader) -> Iterator[tuple[Row, Ids]]:
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        first, *others = map(list, zip(*(row.texts for row in part), strict=True))
        check_length(reader.tokenizer, bool(others), reader.max_length, reader.name)
        encoded = encode(reader.tokenizer, first, others[0] if others else None, reader.max_length)
        yield from zip(part, encoded.input_ids, strict=True)


def _check_ids(row: Row, ids: Ids, reader: Reader, errors: ErrorList) -> None:
    if not len(ids):
        errors.add(row.table, f"the tokenizer of {reader.name} makes no token of the text; remove these rows", row.number)
    elif ids.max() >= reader.vocabulary:
        tokens = reader.tokenizer.convert_ids_to_tokens(list(dict.fromkeys(ids[ids >= reader.vocabulary].tolist())))
        more = ", …" if len(tokens) > TOKENS_SHOWN else ""
        message = (
            f"{reader.name} has embeddings for {reader.vocabulary} tokens, but none for these; add them "
            "(resize_token_embeddings) and fine-tune it, or remove the added tokens from its tokenizer"
        )
        errors.add(row.table, message, row.number, ", ".join(map(shown, tokens[:TOKENS_SHOWN])) + more)
