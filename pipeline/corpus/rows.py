"""Checked rows of a corpus: texts that say something, labels that can be learnt. Knows no files and no splits.

A label is compared as text without surrounding space; an empty cell, a null, a NaN and a missing key are no label. Texts are
kept as they are; two rows have the same text if they agree after ``strip()``.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.corpus.faults import FoundFaults
from pipeline.corpus.tables import Table, separated_otherwise
from pipeline.tasks import Kind

LONGEST_SHOWN = 40


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
        return tuple(text.strip() for text in self.texts)


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
        checked = _texts(table.name, number, dict(zip(texts, values, strict=True)), found)
        try:
            value = _label(labels[place], kind)
        except (TypeError, ValueError, OverflowError):
            wanted = "a name or a whole number" if kind == "classification" else "a finite number"
            found.row(table.name, number, f"the label must be {wanted}", shown(labels[place]))
            continue
        if checked is not None:
            rows.append(Row(checked, value, table.name, number))
    return rows


def _texts(table: str, number: int, values: dict[str, Any], found: FoundFaults) -> tuple[str, ...] | None:
    faults = [(column, fault, value) for column, value in values.items() if (fault := _text_fault(value))]
    for column, fault, value in faults:
        found.row(table, number, f"column {column!r} {fault}", shown(value) if isinstance(value, int | float) else None)
    return None if faults else tuple(values.values())


def _text_fault(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return "holds no text; fill or remove these rows"
    if not isinstance(value, str):
        return "holds something other than text"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "holds half a surrogate pair, which is not a character"
    return None


def _label(value: Any, kind: Kind) -> str | float | None:
    if value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, float) and math.isnan(value)):
        return None
    return _class_name(value) if kind == "classification" else _finite(value)


def _class_name(value: Any) -> str:
    """Label names compare as text, truth values as JSON spells them; 1.0 is 1, as a column of integers with gaps is stored."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int):
        raise TypeError(value)
    return str(value).strip()


def _finite(value: Any) -> float:
    """A number that float32 holds as one."""
    if isinstance(value, bool):
        raise TypeError(value)
    with np.errstate(over="ignore"):
        number = float(np.float32(float(value)))
    if not np.isfinite(number):
        raise ValueError(value)
    return number


def check_labelled(rows: Sequence[Row], table: str, split: str, found: FoundFaults) -> None:
    """Note rows without a label where they are needed for measuring."""
    if rows and all(row.label is None for row in rows):
        remedy = f"leave it out and give {split} as a share of train, or take another table"
        found.whole(table, f"no row has a label, so nothing can be measured on this {split} split; {remedy}")
        return
    for row in rows:
        if row.label is None:
            found.row(table, row.number, f"the label is empty, but {split} needs one for every row")


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
