"""Checked rows of a corpus: texts that say something, labels that can be learnt. Knows no files and no splits.

What a label is, whatever kind of table it comes from:

- An empty or blank cell, a null, a NaN that is a number and a missing key are no label. ``None``, ``NA``, ``nan`` and ``null``
  as texts are names like others.
- The names of a classification, in tables, settings and declared classes, are compared as text without surrounding space and
  in Unicode's form NFC (``label_name``). A number that is whole is named by its digits, so 2.0 and the decimal 2.00 are 2;
  other numbers, dates, bytes and lists name nothing. If all labels of a corpus are whole numbers, the texts 2.0 and 2 are one
  name too.
- Truth values are named ``true`` and ``false``. Where a corpus has some, its texts True, TRUE and the like are these names;
  otherwise names that differ by letter case alone are different names, which is noted.
- The value of a regression is a number, or a text in ordinary decimal notation such as -1.5, .5 or 2e-3, that is finite as
  float32.

Texts are kept as they are; two rows have the same text if they agree without surrounding space and in form NFC.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np

from pipeline.corpus.faults import FoundFaults
from pipeline.corpus.tables import Table, separated_otherwise
from pipeline.corpus.task import Kind, label_name

LONGEST_SHOWN = 40

ORDINARY_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
"""Python's float takes more: 3_5, nan, the digits of other scripts."""


@dataclass(frozen=True, slots=True)
class Row:
    """One checked example with the place it came from."""

    texts: tuple[str, ...]
    label: str | float | None
    """A label name, a value for regression, or None where there is none."""
    table: str
    number: int

    @property
    def key(self) -> tuple[str, ...]:
        """What decides the row's split: equal texts have equal keys."""
        return tuple(unicodedata.normalize("NFC", text.strip()) for text in self.texts)


def has_columns(table: Table, needed: Sequence[str], found: FoundFaults) -> bool:
    """Whether a table has the needed columns; noted with the columns it has if not."""
    missing = [name for name in needed if name not in table.available]
    separated = separated_otherwise(table.available)
    way_out = f"; {separated}" if separated else ""
    available = ", ".join(name if name == name.strip() != "" else repr(name) for name in table.available)
    for name in missing:
        found.whole(table.name, f"there is no column {name!r}; it has: {available or 'none'}{way_out}")
    return not missing


def rows_of(table: Table, texts: Sequence[str], label: str, kind: Kind, found: FoundFaults) -> list[Row]:
    """The table's rows without those that have a fault, which is noted."""
    labels = table.columns.get(label or "", [None] * len(table.numbers))
    rows = []
    for place, number in enumerate(table.numbers):
        values = [table.columns[name][place] for name in texts]
        source = table.source(place)
        checked = _texts(source, number, dict(zip(texts, values, strict=True)), found)
        try:
            value = _label(labels[place], kind)
        except (TypeError, ValueError, OverflowError):
            wanted = "a name or a whole number" if kind == "classification" else "a finite number"
            found.row(source, number, f"the label must be {wanted}", shown(labels[place]))
            continue
        if checked is not None:
            rows.append(Row(checked, value, source, number))
    return rows


def _texts(table: str, number: int, values: dict[str, Any], found: FoundFaults) -> tuple[str, ...] | None:
    faults = [(column, fault, value) for column, value in values.items() if (fault := _text_fault(value))]
    for column, fault, value in faults:
        found.row(table, number, f"column {column!r} {fault}", shown(value) if isinstance(value, int | float) else None)
    return None if faults else tuple(values.values())


def _text_fault(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return "holds no text; fill or remove these rows"
    if isinstance(value, bytes):
        return "holds bytes; write the column as text"
    if not isinstance(value, str):
        return "holds something other than text"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "holds half a surrogate pair, which is not a character"
    return None


def _label(value: Any, kind: Kind) -> str | float | None:
    if value is None or (isinstance(value, str) and not value.strip()) or (_is_number(value) and value != value):
        return None
    return _class_name(value) if kind == "classification" else _finite(value)


def _class_name(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if _is_number(value) and value == int(value):
        value = int(value)
    if not isinstance(value, str | int):
        raise TypeError(value)
    name = label_name(str(value))
    name.encode()  # half a surrogate pair is refused
    return name


def _finite(value: Any) -> float:
    """A number that float32 holds as one."""
    if not isinstance(value, str) and not _is_number(value):
        raise TypeError(value)
    if isinstance(value, str) and not ORDINARY_NUMBER.fullmatch(value.strip()):
        raise ValueError(value)
    with np.errstate(over="ignore"):
        number = float(np.float32(float(value)))
    if not np.isfinite(number):
        raise ValueError(value)
    return number


def _is_number(value: Any) -> bool:
    return isinstance(value, Real | Decimal) and not isinstance(value, bool)


def check_labelled(rows: Sequence[Row], table: str, split: str, found: FoundFaults) -> None:
    """Note rows without a label where they are needed for measuring."""
    if rows and all(row.label is None for row in rows):
        remedy = f"leave it out and give {split} as a share of train, or take another table"
        found.whole(table, f"no row has a label, so nothing can be measured on this {split} split; {remedy}")
        return
    for row in rows:
        if row.label is None:
            found.row(row.table, row.number, f"the label is empty, but {split} needs one for every row")


def check_known(rows: Iterable[Row], names: Sequence[str], found: FoundFaults) -> None:
    """Note labels that are none of ``names``."""
    known = frozenset(names)
    wanted = ", ".join(names[:20]) + (f" … ({len(names)} names)" if len(names) > 20 else "")
    for row in rows:
        if row.label is not None and row.label not in known:
            found.row(row.table, row.number, f"the label is none of: {wanted}", shown(row.label))


def check_varied(train: Sequence[Row], subject: str, found: FoundFaults) -> None:
    """Note a train split in which every labelled row has the same label."""
    labels = [row.label for row in train if row.label is not None]
    if len(set(labels)) == 1:
        found.whole(subject, f"all its {len(labels)} labels are {labels[0]!r}; there is nothing to tell apart")


def names_in(rows: Iterable[Row]) -> tuple[str, ...]:
    """The label names that occur, sorted; by value if all are whole numbers."""
    names = {str(row.label) for row in rows if row.label is not None}
    return tuple(sorted(names, key=_by_value if all(is_integer(name) for name in names) else None))


def _by_value(name: str) -> tuple[int, str]:
    """Two names of one number, 1 and 01, have an order too."""
    return int(name), name


def is_integer(name: str) -> bool:
    """Whether a label name is a whole number."""
    return name.removeprefix("-").isdecimal() and name.isascii()


def shown(value: Any) -> str:
    """A value as an error shows it: quoted and cut."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 1] + "…"
