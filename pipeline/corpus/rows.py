"""Rows of a corpus: validated texts and labels, the names of the labels, and the division into splits.

What counts as a label, in every file format:

- An empty or blank cell, a null, a numeric NaN and a missing key are no label. The texts ``None``, ``NA``, ``nan`` and ``null``
  are names like others.
- Names of a classification are compared without surrounding space and in Unicode NFC (``label_name``). A whole number is named
  by its digits, so 2.0 and the decimal 2.00 are 2; other numbers, dates, bytes and lists are errors. If all labels of a corpus
  are whole numbers, the texts 2.0 and 2 are one name too.
- Truth values are named ``true`` and ``false``. In a corpus that has some, the texts True, TRUE etc. are these names; otherwise
  names that differ only in case are different.
- A regression label is a number, or a text in decimal notation such as -1.5, .5 or 2e-3, that is finite in float32.

Texts are kept as they are; two rows have the same text if they agree without surrounding space and in NFC.

The split of a labelled row depends on its text alone: a hash of the text is a number in [0, 1), and each split has an interval
of it. Equal texts therefore share a split, and rows added to a corpus move no labelled row. Row limits work the same way.
Unlabelled texts cannot be evaluated on and become train rows.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np

from pipeline.config.corpus import SPLITS, CorpusSettings, Kind, Split, label_name
from pipeline.corpus.files import WHOLE, ErrorList, SplitTables, Table, separator_error, shown
from pipeline.corpus.seeding import SEED_BITS, seed_of

NAMES_SHOWN = 20
ID_DIGITS = 16
TEXT_SEPARATOR = "\x1f"

DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
"""Stricter than ``float``, which accepts 3_5, nan and digits of other scripts."""

CARVING_ORDER: tuple[Split, ...] = ("test", "dev")
"""Order of the intervals in [0, 1), so that a new dev share moves no test row; train has the rest."""


@dataclass(frozen=True, slots=True)
class Row:
    """One validated example and its source."""

    texts: tuple[str, ...]
    label: str | float | None
    """A label name, a regression value, or None if there is no label."""
    table: str
    number: int

    @property
    def key(self) -> tuple[str, ...]:
        """The normalised texts, which decide the row's split."""
        return tuple(unicodedata.normalize("NFC", text.strip()) for text in self.texts)


Parts = dict[Split, list[Row]]


def has_columns(table: Table, needed: Sequence[str], errors: ErrorList) -> bool:
    """Whether a table has the needed columns; missing ones are errors."""
    missing = [name for name in needed if name not in table.header]
    separated = separator_error(table.header)
    header = ", ".join(name if name == name.strip() != "" else repr(name) for name in table.header) or "none"
    for name in missing:
        errors.add(table.name, f"there is no column {name!r}; it has: {header}" + (f"; {separated}" if separated else ""))
    return not missing


def rows_of(table: Table, texts: Sequence[str], label: str, kind: Kind, errors: ErrorList) -> list[Row]:
    """The valid rows of a table; errors of the others are added to ``errors``."""
    labels = table.columns.get(label, [None] * len(table.numbers))
    read = _class_label if kind == "classification" else _float32
    rows = []
    for number, value, *values in zip(table.numbers, labels, *(table.columns[name] for name in texts), strict=True):
        wrong = [(name, text) for name, text in zip(texts, values, strict=True) if _text_error(text)]
        for name, text in wrong:
            cell = shown(text) if isinstance(text, int | float) else ""
            errors.add(table.name, f"column {name!r} {_text_error(text)}", number, cell)
        try:
            target = None if _is_blank(value) or (_is_number(value) and value != value) else read(value)
        except (TypeError, ValueError, OverflowError):
            wanted = "a name or a whole number" if kind == "classification" else "a finite number"
            errors.add(table.name, f"the label must be {wanted}", number, shown(value))
            continue
        if not wrong:
            rows.append(Row(tuple(values), target, table.name, number))
    return rows


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _is_number(value: Any) -> bool:
    return isinstance(value, Real | Decimal) and not isinstance(value, bool)


def _text_error(value: Any) -> str:
    if _is_blank(value):
        return "is empty; fill in or remove these rows"
    if isinstance(value, bytes):
        return "contains bytes; write the column as text"
    if not isinstance(value, str):
        return "contains a value that is not text"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "contains an unpaired surrogate, which is not a character"
    return ""


def _class_label(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if _is_number(value) and value == int(value):
        value = int(value)
    if not isinstance(value, str | int):
        raise TypeError(value)
    name = label_name(str(value))
    name.encode()  # raises for an unpaired surrogate
    return name


def _float32(value: Any) -> float:
    """The nearest float32 of a number or a decimal text; it must be finite."""
    if not (DECIMAL.fullmatch(value.strip()) if isinstance(value, str) else _is_number(value)):
        raise ValueError(value)
    with np.errstate(over="ignore"):
        number = float(np.float32(float(value)))
    if not np.isfinite(number):
        raise ValueError(value)
    return number


def check_labelled(rows: Sequence[Row], subject: str, split: Split, errors: ErrorList) -> None:
    """Require a label of every row of a dev or test split."""
    unlabelled = [row for row in rows if row.label is None]
    if rows and len(unlabelled) == len(rows):
        way_out = f"leave it out and set {split} to a share of train, or use another table"
        errors.add(subject, f"no row has a label, so the {split} split cannot be evaluated; {way_out}")
        return
    for row in unlabelled:
        errors.add(row.table, f"the label is empty, but every {split} row needs one", row.number)


def with_one_spelling(rows: Parts, tables: SplitTables, settings: CorpusSettings) -> Parts:
    """Rows whose labels 2.0 are 2 if all labels are whole numbers, and True and TRUE are true if the tables have truth values.

    Names listed in the settings keep the spelling they have there.
    """
    written = {row.label for part in rows.values() for row in part if isinstance(row.label, str)}
    listed = settings.labels or {}
    if all(map(WHOLE.fullmatch, written)):
        digits = {name: name.partition(".")[0] for name in written if "." in name}
        return rows if digits.keys() & listed.keys() else renamed(rows, digits)
    values = (value for part in tables.values() for table in part for value in table.columns.get(settings.label, ()))
    if not any(isinstance(value, bool) for value in values):
        return rows
    spelled = {name.lower(): name for name in listed}
    truths = [name for name in written - listed.keys() if name.lower() in ("true", "false")]
    return renamed(rows, {name: spelled.get(name.lower(), name.lower()) for name in truths})


def renamed(rows: Parts, names: Mapping[str, str]) -> Parts:
    """Rows with labels renamed; a label without an entry keeps its name."""

    def rename(row: Row) -> Row:
        return replace(row, label=names[row.label]) if isinstance(row.label, str) and row.label in names else row

    return {split: list(map(rename, part)) for split, part in rows.items()}


def label_names(tables: SplitTables, rows: Parts, settings: CorpusSettings, errors: ErrorList) -> tuple[str, ...]:
    """Label names in the order of the logits: as listed or declared, else sorted; other labels are errors."""
    names = _declared(tables, settings) or next(filter(None, (names_in(rows.get(split, ())) for split in SPLITS)), ())
    known = dict.fromkeys(settings.labels or names)
    wanted = ", ".join(list(known)[:NAMES_SHOWN]) + (f" … ({len(known)} names)" if len(known) > NAMES_SHOWN else "")
    for row in (row for split in SPLITS for row in rows.get(split, ())):
        if row.label is not None and row.label not in known:
            is_number = str(row.label).isdecimal() and str(int(row.label)) in (settings.labels or {})
            hint = "; write numbers with leading zeros in quotes in corpus.labels" if is_number else ""
            errors.add(row.table, f"the label must be one of: {wanted}{hint}", row.number, shown(row.label))
    incomplete = len(rows) < len(tables) or any(errors.mentions(table.name) for part in tables.values() for table in part)
    if len(names) < 2 and tables and not incomplete and not any(row.label for row in rows.get("train", ())):
        errors.add("corpus.labels", "the label names cannot be determined from the rows; list them here")
    return names


def names_in(rows: Iterable[Row]) -> tuple[str, ...]:
    """The label names that occur, sorted; by value if all are whole numbers."""
    names = {str(row.label) for row in rows if row.label is not None}
    by_value = all(map(_is_integer, names))
    return tuple(sorted(names, key=lambda name: (int(name) if by_value else 0, name)))  # 1 and 01 have the same value


def _is_integer(name: str) -> bool:
    return name.removeprefix("-").isdecimal() and name.isascii()


def _declared(tables: SplitTables, settings: CorpusSettings) -> tuple[str, ...]:
    """Label names from the settings or from the type of the label column; empty if neither gives them."""
    declared = (table.class_names.get(settings.label, ()) for part in tables.values() for table in part)
    return tuple(dict.fromkeys((settings.labels or {}).values())) or tuple(map(label_name, next(filter(None, declared), ())))


def check_f1(names: tuple[str, ...], tables: SplitTables, settings: CorpusSettings, errors: ErrorList) -> None:
    """Require two labels whose order was chosen, since F1 is that of the second."""
    if len(names) > 2:
        errors.add("metric f1", f"it is the F1 of the second of two labels, and there are {len(names)}; choose macro_f1")
    elif len(names) == 2 and not _declared(tables, settings) and not all(map(_is_integer, names)):
        orders = " or ".join(json.dumps(order, ensure_ascii=False) for order in (names[::-1], names))
        message = "it is the F1 of the second of two labels, and their order is only alphabetical; list them in corpus.labels, "
        errors.add("metric f1", f"{message}the positive one last: {orders}; or choose macro_f1")


def carve(rows: Sequence[Row], shares: Mapping[Split, float]) -> Parts:
    """Divide rows into train and the splits in ``shares``, each text that has a label by its hash."""
    parts: Parts = {split: [] for split in SPLITS if split == "train" or split in shares}
    labelled = {row.key for row in rows if row.label is not None}
    for row in rows:
        parts[_split_of(row, shares) if row.key in labelled else "train"].append(row)
    return parts


def _split_of(row: Row, shares: Mapping[Split, float]) -> Split:
    place, end = seed_of("split", *row.key) / 2**SEED_BITS, 0.0
    for split in CARVING_ORDER:
        end += shares.get(split, 0.0)
        if place < end:
            return split
    return "train"


def without_repeated(parts: Parts, errors: ErrorList) -> Parts:
    """The splits without the rows whose text also occurs in a later split; each of these rows is added to ``errors``."""
    later: dict[tuple[str, ...], tuple[Split, Row]] = {}
    single: Parts = {}
    for split in reversed(SPLITS):
        single[split] = [row for row in parts[split] if row.key not in later]
        for row in parts[split]:
            if row.key in later:
                other, there = later[row.key]
                message = f"this {split} text also occurs in the {other} split; duplicates: drop keeps it only there"
                errors.add(row.table, message, row.number, f"{there.table}, row {there.number}")
        later.update({row.key: (split, row) for row in reversed(parts[split])})
    return {split: single[split] for split in SPLITS}


def with_ids(rows: Sequence[Row]) -> dict[str, Row]:
    """Rows by example id: hash digits of the texts, with suffix ``.2``, ``.3`` … for repeats of a text."""
    seen, examples = Counter[str](), dict[str, Row]()
    for row in rows:
        digits = hashlib.sha256(TEXT_SEPARATOR.join(row.texts).encode()).hexdigest()[:ID_DIGITS]
        seen[digits] += 1
        examples[digits if seen[digits] == 1 else f"{digits}.{seen[digits]}"] = row
    return examples


def capped(examples: Mapping[str, Row], most: int | None) -> dict[str, Row]:
    """At most ``most`` examples in corpus order, labelled ones first; a higher limit only adds examples.

    The lowest ids are kept: ids are hashes of texts, so the choice does not depend on corpus order.
    """
    chosen = set(sorted(examples, key=lambda name: (examples[name].label is None, name))[:most])
    return {name: row for name, row in examples.items() if name in chosen}
