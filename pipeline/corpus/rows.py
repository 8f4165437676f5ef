"""Rows of a corpus with validated texts and labels, and the names of the labels.

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
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np

from pipeline.config.corpus import SPLITS, CorpusSettings, Kind, Split, label_name
from pipeline.corpus.tables import ErrorList, SplitTables, Table, separator_error

LONGEST_SHOWN = 40
NAMES_SHOWN = 20

DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
"""Stricter than ``float``, which accepts 3_5, nan and digits of other scripts."""

WHOLE = re.compile(r"-?\d+(\.0+)?", re.ASCII)
"""A whole number; pandas writes integer columns with gaps as 1.0."""

NOT_OF_TWO = "it is the F1 of the second of two labels, and there are {}; choose macro_f1"


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
    """Whether a table has the needed columns; those that it lacks are errors."""
    missing = [name for name in needed if name not in table.header]
    separated = separator_error(table.header)
    header = ", ".join(name if name == name.strip() != "" else repr(name) for name in table.header) or "none"
    for name in missing:
        errors.add(table.name, f"there is no column {name!r}; it has: {header}" + (f"; {separated}" if separated else ""))
    return not missing


def rows_of(table: Table, texts: Sequence[str], label: str, kind: Kind, errors: ErrorList) -> list[Row]:
    """The rows of a table without errors; errors of the others are added to ``errors``."""
    labels = table.columns.get(label, [None] * len(table.numbers))
    rows = []
    for number, value, *values in zip(table.numbers, labels, *(table.columns[name] for name in texts), strict=True):
        wrong = [(name, text) for name, text in zip(texts, values, strict=True) if _text_error(text)]
        for name, text in wrong:
            cell = shown(text) if isinstance(text, int | float) else ""
            errors.add(table.name, f"column {name!r} {_text_error(text)}", number, cell)
        try:
            read = _label(value, kind)
        except (TypeError, ValueError, OverflowError):
            wanted = "a name or a whole number" if kind == "classification" else "a finite number"
            errors.add(table.name, f"the label must be {wanted}", number, shown(value))
            continue
        if not wrong:
            rows.append(Row(tuple(values), read, table.name, number))
    return rows


def _text_error(value: Any) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
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


def _label(value: Any, kind: Kind) -> str | float | None:
    if value is None or (isinstance(value, str) and not value.strip()) or (_is_number(value) and value != value):
        return None
    return _class_name(value) if kind == "classification" else _float32(value)


def _class_name(value: Any) -> str:
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
    if not isinstance(value, str) and not _is_number(value):
        raise TypeError(value)
    if isinstance(value, str) and not DECIMAL.fullmatch(value.strip()):
        raise ValueError(value)
    with np.errstate(over="ignore"):
        number = float(np.float32(float(value)))
    if not np.isfinite(number):
        raise ValueError(value)
    return number


def _is_number(value: Any) -> bool:
    return isinstance(value, Real | Decimal) and not isinstance(value, bool)


def check_labelled(rows: Sequence[Row], subject: str, split: Split, errors: ErrorList) -> None:
    """Require a label of every row of a dev or test split."""
    if rows and all(row.label is None for row in rows):
        way_out = f"leave it out and set {split} to a share of train, or use another table"
        errors.add(subject, f"no row has a label, so the {split} split cannot be evaluated; {way_out}")
        return
    for row in rows:
        if row.label is None:
            errors.add(row.table, f"the label is empty, but every {split} row needs one", row.number)


def check_known(rows: Iterable[Row], names: Sequence[str], errors: ErrorList) -> None:
    """Require that every label is one of ``names``."""
    known = frozenset(names)
    wanted = ", ".join(names[:NAMES_SHOWN]) + (f" … ({len(names)} names)" if len(names) > NAMES_SHOWN else "")
    for row in rows:
        if row.label is not None and row.label not in known:
            errors.add(row.table, f"the label must be one of: {wanted}", row.number, shown(row.label))


def check_varied(train: Iterable[Row], errors: ErrorList) -> None:
    """Require two different labels of a train split that has labels."""
    labels = [row.label for row in train if row.label is not None]
    if len(set(labels)) == 1:
        errors.add("train split", f"all {len(labels)} labels are {labels[0]!r}; at least two different ones are needed")


def with_one_spelling(rows: Parts, tables: SplitTables, settings: CorpusSettings) -> Parts:
    """Rows whose labels 2.0 are 2 if all labels are whole numbers, and True and TRUE are true if the tables have truth values.

    Names listed in the settings keep the spelling they have there.
    """
    written = {row.label for part in rows.values() for row in part if isinstance(row.label, str)}
    listed = settings.labels or {}
    if all(map(WHOLE.fullmatch, written)):
        digits = {name: name.partition(".")[0] for name in written if "." in name}
        return rows if digits.keys() & set(listed) else renamed(rows, digits)
    values = (value for part in tables.values() for table in part for value in table.columns.get(settings.label, ()))
    if not any(isinstance(value, bool) for value in values):
        return rows
    spelled = {name.lower(): name for name in listed}
    truths = [name for name in written - set(listed) if name.lower() in ("true", "false")]
    return renamed(rows, {name: spelled.get(name.lower(), name.lower()) for name in truths})


def renamed(rows: Parts, names: Mapping[str, str]) -> Parts:
    """Rows with labels renamed; a label without an entry keeps its name."""
    if not names:
        return rows

    def rename(row: Row) -> Row:
        return replace(row, label=names.get(row.label, row.label)) if isinstance(row.label, str) else row

    return {split: list(map(rename, part)) for split, part in rows.items()}


def label_names(tables: SplitTables, rows: Parts, settings: CorpusSettings, errors: ErrorList) -> tuple[str, ...]:
    """Label names in the order of the logits: as listed or declared, else sorted; other labels are errors."""
    occurring = (names_in(rows.get(split, ())) for split in SPLITS)
    names = _declared(tables, settings) or next(filter(None, occurring), ())
    for split in SPLITS if names else ():
        check_known(rows.get(split, ()), tuple(settings.labels or names), errors)
    incomplete = len(rows) < len(tables) or any(errors.mentions(table.name) for part in tables.values() for table in part)
    if len(names) < 2 and tables and not incomplete and not any(row.label for row in rows.get("train", ())):
        errors.add("corpus.labels", "the label names cannot be determined from the rows; list them here")
    return names


def _declared(tables: SplitTables, settings: CorpusSettings) -> tuple[str, ...]:
    """Label names from the settings or from the type of the label column; empty if neither gives them."""
    declared = (table.class_names.get(settings.label, ()) for part in tables.values() for table in part)
    return tuple(dict.fromkeys((settings.labels or {}).values())) or tuple(map(label_name, next(filter(None, declared), ())))


def check_f1(names: tuple[str, ...], tables: SplitTables, settings: CorpusSettings, errors: ErrorList) -> None:
    """Require two labels whose order was chosen, since F1 is that of the second."""
    if len(names) > 2:
        errors.add("metric f1", NOT_OF_TWO.format(len(names)))
    elif len(names) == 2 and not _declared(tables, settings) and not all(map(_is_integer, names)):
        orders = " or ".join(json.dumps(order, ensure_ascii=False) for order in (names[::-1], names))
        errors.add(
            "metric f1",
            "it is the F1 of the second of two labels, and their order is only alphabetical; list them in corpus.labels, "
            f"the positive one last: {orders}; or choose macro_f1",
        )


def names_in(rows: Iterable[Row]) -> tuple[str, ...]:
    """The label names that occur, sorted; by value if all are whole numbers."""
    names = {str(row.label) for row in rows if row.label is not None}
    by_value = all(map(_is_integer, names))
    return tuple(sorted(names, key=lambda name: (int(name) if by_value else 0, name)))  # 1 and 01 have the same value


def _is_integer(name: str) -> bool:
    return name.removeprefix("-").isdecimal() and name.isascii()


def shown(value: Any) -> str:
    """The repr of a value, shortened."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 1] + "…"
