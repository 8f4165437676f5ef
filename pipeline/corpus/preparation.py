"""Raw data to checked splits: what a corpus's tables hold, and what is wrong with them. Knows no tokenizer."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.faults import NAMED, FoundFaults
from pipeline.corpus.files import ending_of, read_file
from pipeline.corpus.hub import SplitReader, open_hub
from pipeline.corpus.labels import called, check_f1, label_names, with_truth_values, without_decimals
from pipeline.corpus.rows import Row, check_labelled, check_varied, has_columns, rows_of
from pipeline.corpus.settings import MISSING_SHARE, CorpusSettings
from pipeline.corpus.splits import Parts, capped, carve, drop_repeated, measurable, named, refuse_repeated
from pipeline.corpus.tables import OwnSplits
from pipeline.corpus.task import SPLITS, Kind, Metric, Split, Task, fitting_metrics

TASK_NAME = re.compile(r"[a-z0-9_]+")
THEIR_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "dev": ("dev", "validation", "valid"),
    "test": ("test",),
}
"""What hub sets call our splits."""

LEFT_OUT = "left out of {}: "
"""Before the reason, in the notes of what was left out."""

QUOTED_AS_IN_CSV = re.compile(r'"(?:[^"]|"")*""(?:[^"]|"")*"')
"""A text in quotes with a doubled quote within."""

ROWS_A_GROUP = 4096
"""Of a written table; who wants a few rows in a row reads only the groups that hold them."""

Examples = dict[Split, dict[str, Row]]


@dataclass(frozen=True)
class Prepared:
    """A task's checked splits."""

    task: Task
    tables: dict[Split, pa.Table]
    """Columns id, text_a, text_b (pairs only), label (int32 index or float32 value; null where there is none)."""
    notes: dict[str, int]
    """What was left out: reason to number of rows; and what is allowed but looks like a mistake."""
    examples: Examples
    """The rows of the tables, by example id, with the places they came from."""

    def save(self, folder: Path) -> None:
        """Write ``<split>.parquet`` of every split, and the task."""
        for split, table in self.tables.items():
            pq.write_table(table, folder / f"{split}.parquet", row_group_size=ROWS_A_GROUP)
        self.task.save(folder)


def prepare(task_name: str, kind: Kind, metric: Metric, settings: CorpusSettings) -> Prepared:
    """Read, check and split a corpus.

    Raises:
        Faults: everything wrong with task, files and rows.
    """
    found, notes = FoundFaults(), Counter[str]()
    _check_task(task_name, kind, metric, settings, found)
    tables = _read(settings, found)
    rows = without_decimals(_checked_rows(tables, kind, settings, found), settings)
    rows = with_truth_values(tables, rows, settings) if kind == "classification" else rows
    names = label_names(tables, rows, settings, found) if kind == "classification" else ()
    rows = called(rows, settings)
    if metric == "f1":
        check_f1(names, tables, settings, found)
    examples: Examples = {}
    if tables and len(rows) == len(tables):
        examples = _examples(_divided(rows, settings, notes, found), tables, settings, notes, found)
    found.raise_any(f"task {task_name}")
    notes.update(_repetitions(examples) | _quotes(examples))
    if kind == "classification":
        notes.update(_oddities(examples, names))
    task = Task(name=task_name, kind=kind, metric=metric, labels=names, pair=len(settings.text) == 2)
    return Prepared(task, {split: _arrow(examples[split], task) for split in SPLITS}, dict(+notes), examples)


def _check_task(name: str, kind: Kind, metric: Metric, settings: CorpusSettings, found: FoundFaults) -> None:
    if not TASK_NAME.fullmatch(name):
        found.whole(f"task name {name!r}", "only a-z, 0-9 and _ may be used")
    if metric not in fitting_metrics(kind):
        found.whole(f"metric {metric}", f"it does not fit {kind}; choose from {', '.join(fitting_metrics(kind))}")
    if kind == "regression" and settings.labels:
        found.whole("corpus.labels", "label names belong to classification; leave them out")


def _read(settings: CorpusSettings, found: FoundFaults) -> OwnSplits:
    wanted = [*settings.text, settings.label]
    if settings.files is not None:
        return {split: read_file(Path(path), wanted, found) for split, path in settings.files.items()}
    assert settings.hub is not None
    theirs = open_hub(settings.hub, settings.config, settings.revision, found)
    splits = (settings.splits or _usual_names(theirs)) if theirs else {}
    readers = _matched(settings.hub, splits, theirs, found)
    return {split: None if reader is None else reader(wanted, found) for split, reader in readers.items()}


def _usual_names(theirs: Mapping[str, SplitReader]) -> dict[Split, str]:
    """The first usual name that the set has; train even where it is missing, so that this is noted."""
    present = {split: [name for name in names if name in theirs] for split, names in THEIR_NAMES.items()}
    return {split: (names or ["train"])[0] for split, names in present.items() if names or split == "train"}


def _matched(
    hub: str, splits: Mapping[Split, str], theirs: Mapping[str, SplitReader], found: FoundFaults
) -> dict[Split, SplitReader | None]:
    for name in splits.values():
        if name not in theirs:
            found.whole(hub, f"there is no split {name!r}; it has: {', '.join(theirs)}; say with splits which is which")
    return {split: theirs.get(name) for split, name in splits.items()}


def _checked_rows(tables: OwnSplits, kind: Kind, settings: CorpusSettings, found: FoundFaults) -> Parts:
    """The rows of each table that has the needed columns; only train may lack the label, and only if others have it."""
    label = settings.label
    labelled = any(table is not None and label in table.available for table in tables.values())
    rows: Parts = {}
    for split, table in tables.items():
        needed = [*settings.text, *([label] if split != "train" or not labelled else [])]
        if table is None or not has_columns(table, needed, found):
            continue
        if not table.numbers:
            found.whole(table.name, "it has no row")
        rows[split] = rows_of(table, settings.text, label, kind, found)
        if split != "train":
            check_labelled(rows[split], table.name, split, found)
    return rows


def _divided(rows: Parts, settings: CorpusSettings, notes: Counter[str], found: FoundFaults) -> Parts:
    """The corpus's own splits, the others carved from train, no text in two of them; empty if a share is missing."""
    shares = {split: share for split, share in settings.shares().items() if split not in rows}
    for split in SPLITS:
        if split not in rows and split not in shares:
            found.whole(f"corpus.{split}", MISSING_SHARE.format(split))
    if len(rows.keys() | shares.keys()) < len(SPLITS):
        return {}
    parts = rows | carve(rows["train"], shares)
    for split in shares:
        notes[f"{LEFT_OUT.format(split)}no label to measure with"] = len(parts[split]) - len(measurable(parts[split]))
        parts[split] = measurable(parts[split])
    if settings.duplicates == "refuse":
        refuse_repeated(parts, found)
        return parts
    single = drop_repeated(parts)
    for split in SPLITS:
        notes[f"{LEFT_OUT.format(split)}the text stands in a later split"] = len(parts[split]) - len(single[split])
    return single


def _examples(parts: Parts, tables: OwnSplits, settings: CorpusSettings, notes: Counter[str], found: FoundFaults) -> Examples:
    limits = settings.rows or {}
    examples: Examples = {}
    for split, rows in parts.items():
        examples[split] = capped(named(rows), limits.get(split))
        notes[f"{LEFT_OUT.format(split)}above the most rows"] = len(rows) - len(examples[split])
        source = tables.get(split) or tables["train"]
        if not rows and not (source and source.faulty(found)):
            found.whole(f"{split} split", _nothing_left(split, notes))
    if "train" in examples:
        check_varied(list(examples["train"].values()), "train split", found)
    return examples


def _nothing_left(split: Split, notes: Mapping[str, int]) -> str:
    """Why a split has no row, as far as rows of it were left out."""
    before = LEFT_OUT.format(split)
    reasons = [
        f"{count} left out: {note.removeprefix(before)}" for note, count in notes.items() if note.startswith(before) and count
    ]
    told = f" ({'; '.join(reasons)})" if reasons else ""
    return f"no usable row is left in it{told}; dev chooses the best epoch and test measures, both by labels"


def _repetitions(examples: Examples) -> dict[str, int]:
    """How many rows say what another row of their split says, and so count twice."""
    return {
        f"row(s) of {split} have the text of another row of it": len(rows) - len({row.key for row in rows.values()})
        for split, rows in examples.items()
    }


def _quotes(examples: Examples) -> dict[str, int]:
    """How many rows of a tsv have a text that was written with the quotes of a csv, which are read as they stand."""
    rows = (row for part in examples.values() for row in part.values() if ending_of(Path(row.table)) == ".tsv")
    quoted = sum(any(QUOTED_AS_IN_CSV.fullmatch(text) for text in row.texts) for row in rows)
    return {
        "row(s) of a tsv have a text in quotes with doubled quotes within, which stay in it; write such a table as csv": quoted
    }


def _oddities(examples: Examples, names: tuple[str, ...]) -> dict[str, int]:
    """How often labels contradict each other, or are too rare to be learnt."""
    labels: dict[tuple[str, ...], set[str | float | None]] = {}
    for row in (row for part in examples.values() for row in part.values() if row.label is not None):
        labels.setdefault(row.key, set()).add(row.label)
    in_train = Counter(row.label for row in examples["train"].values())
    labelled = any(row.label is not None for row in examples["train"].values())
    measured = {split: {row.label for row in examples[split].values()} for split in ("dev", "test")}
    absent, rare = ([name for name in names if in_train[name] == rows] for rows in (0, 1))
    oddities = {"text(s) with different labels": sum(len(found) > 1 for found in labels.values())}
    if labelled and absent:
        oddities[f"label(s) without a train row: {_first(absent)}"] = len(absent)
    for split, found in measured.items():
        if unseen := [name for name in names if in_train[name] and name not in found]:
            oddities[f"label(s) without a {split} row, of which nothing is measured there: {_first(unseen)}"] = len(unseen)
    if alike := _alike(names):
        oddities[f"label(s) that differ from another by letter case alone: {_first(alike)}"] = len(alike)
    if rare:
        oddities[f"label(s) with a single train row: {_first(rare)}; if they are quantities, the kind is regression"] = len(
            rare
        )
    return oddities


def _alike(names: Sequence[str]) -> list[str]:
    """The names that only letter case tells from another one."""
    spelled = Counter(name.casefold() for name in names)
    return [name for name in names if spelled[name.casefold()] > 1]


def _first(names: Sequence[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")


def _arrow(examples: Mapping[str, Row], task: Task) -> pa.Table:
    rows = list(examples.values())
    labels = [None if row.label is None else _number(row.label, task) for row in rows]
    columns = {"id": pa.array(list(examples), pa.string())}
    for at, name in enumerate(["text_a", "text_b"] if task.pair else ["text_a"]):
        columns[name] = pa.array([row.texts[at] for row in rows], pa.string())
    return pa.table(columns | {"label": pa.array(labels, pa.int32() if task.labels else pa.float32())})


def _number(label: str | float, task: Task) -> int | float:
    return label if isinstance(label, float) else task.labels.index(label)
