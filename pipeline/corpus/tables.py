"""Tables as they are read, and the list of all errors found in them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.config.corpus import Split
from pipeline.config.errors import PipelineErrors

NAMED_ROWS = 5
"""Number of rows that a message names; further rows are counted."""

OTHER_SEPARATORS = (";", "\t", "|", ",")
CLASS_INDEX = re.compile(r"-?\d+(\.0+)?", re.ASCII)
"""A class index in a text table; pandas writes integer columns with gaps as 1.0."""


class ErrorList:
    """All errors of a corpus in the order found; rows of one subject with the same message share a line."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], list[str]] = {}

    def add(self, subject: str, message: str, row: int | None = None, shown: str = "") -> None:
        """Add an error of a file, split or setting, or of one of its rows; ``shown`` is the value found there."""
        rows = self._rows.setdefault((subject, message), [])
        if row is not None:
            rows.append(f"{row} ({shown})" if shown else str(row))

    def mentions(self, subject: str) -> bool:
        """Whether the list has an error of this file, split or setting."""
        return any(subject == listed for listed, _ in self._rows)

    def lines(self) -> list[str]:
        """One line per subject and message."""
        return [f"{subject}{_rows(rows)}: {message}" for (subject, message), rows in self._rows.items()]

    def raise_if_any(self, subject: str) -> None:
        """Raise ``PipelineErrors`` with all lines unless the list is empty."""
        if self._rows:
            raise PipelineErrors(subject, self.lines())


def _rows(rows: Sequence[str]) -> str:
    if not rows:
        return ""
    more = f" and {len(rows) - NAMED_ROWS} more" if len(rows) > NAMED_ROWS else ""
    return f", {'row' if len(rows) == 1 else 'rows'} {', '.join(rows[:NAMED_ROWS])}{more}"


@dataclass(frozen=True)
class Table:
    """The wanted columns of one file, or of a split that ``datasets`` loaded."""

    name: str
    """Path of the file, or hub id and split."""
    header: tuple[str, ...]
    """Names of all columns of the source."""
    columns: Mapping[str, Sequence[Any]]
    """The wanted columns that the source has."""
    numbers: Sequence[int]
    """Row number of each row in the source."""
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Label names of columns whose type declares them."""


SplitTables = Mapping[Split, Sequence[Table]]
"""The tables of each split that a corpus has; empty if one of them cannot be read."""


def separator_error(header: Sequence[str]) -> str:
    """Message for a header of one column whose name contains another separator; empty if there is no error."""
    other = next((mark for mark in OTHER_SEPARATORS if len(header) == 1 and mark in header[0]), None)
    return f"the columns are separated by {other!r}; use commas in csv and tabs in tsv" if other else ""


def with_class_names(table: Table, classes: Mapping[str, Sequence[str]]) -> Table:
    """The table with class indices replaced by their declared names."""
    names = {column: tuple(classes[column]) for column in table.columns if column in classes}
    columns = {column: [_class_name(value, known) for value in table.columns[column]] for column, known in names.items()}
    return replace(table, columns={**table.columns, **columns}, class_names={**table.class_names, **names})


def _class_name(value: Any, names: Sequence[str]) -> Any:
    """The name of a class index, other values unchanged; -1 is GLUE's mark of a hidden label and becomes None."""
    if isinstance(value, str) and value.strip() not in names and CLASS_INDEX.fullmatch(value.strip()):
        value = int(value.strip().partition(".")[0])
    if not isinstance(value, int) or value >= len(names):
        return value
    return None if value < 0 else names[value]
