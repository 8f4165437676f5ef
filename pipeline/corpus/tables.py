"""Tables as they were read: columns, row numbers, class names. Knows no file and not what the columns mean."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.corpus.faults import FoundFaults
from pipeline.corpus.task import Split

OTHER_SEPARATORS = (";", "\t", "|", ",")
"""Found in the name of a table's only column, they say that it is separated by something else than its kind is."""

CLASS_INDEX = re.compile(r"-?\d+(\.0+)?", re.ASCII)
"""As a text table holds the index of a class; with decimals where the column has gaps."""


@dataclass(frozen=True)
class Table:
    """The wanted columns of one source table."""

    name: str
    """As a person finds it: a path, or a hub set and its split."""
    available: tuple[str, ...]
    """Every column of the source."""
    columns: Mapping[str, Sequence[Any]]
    """Those of the wanted columns that the source has."""
    numbers: Sequence[int]
    """The row number of each row."""
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Label names of columns whose type carries them."""
    sources: Sequence[str] = ()
    """The file of each row where several files make the table; empty where ``name`` is the file of all."""

    def source(self, place: int) -> str:
        """The file of the row at a place."""
        return self.sources[place] if self.sources else self.name

    def faulty(self, found: FoundFaults) -> bool:
        """Whether anything was noted of the table or one of its files."""
        return any(map(found.about, {self.name, *self.sources}))


OwnSplits = Mapping[Split, Table | None]
"""The tables that a corpus has, one a split; None for one that cannot be read."""


def separated_otherwise(header: Sequence[str]) -> str:
    """What is wrong with a table of one column whose name holds another separator than its kind has; empty if nothing is."""
    other = next((mark for mark in OTHER_SEPARATORS if len(header) == 1 and mark in header[0]), None)
    return f"its columns are separated by {other!r}, where commas are read in csv and tabs in tsv" if other else ""


def with_classes(table: Table, classes: Mapping[str, Sequence[str]]) -> Table:
    """A table with the indices in some of its columns as the names that are declared for them."""
    names = {column: tuple(classes[column]) for column in table.columns if column in classes}
    columns = {column: [_class_of(value, known) for value in table.columns[column]] for column, known in names.items()}
    return replace(table, columns={**table.columns, **columns}, class_names={**table.class_names, **names})


def _class_of(value: Any, names: Sequence[str]) -> Any:
    """A class index as its name, a text that is no index as it is; GLUE marks a label that is kept secret with -1."""
    if isinstance(value, str) and value.strip() not in names and CLASS_INDEX.fullmatch(value.strip()):
        value = int(value.strip().partition(".")[0])
    if not isinstance(value, int) or value >= len(names):
        return value
    return None if value < 0 else names[value]


def joined(name: str, tables: Sequence[Table], found: FoundFaults) -> Table | None:
    """Tables one after the other as one table; a column that only some of them have is noted."""
    if len(tables) == 1:
        return tables[0]
    columns = dict.fromkeys(column for table in tables for column in table.columns)
    for table in tables:
        if lacking := [column for column in columns if column not in table.columns]:
            found.whole(table.name, f"there is no column {', '.join(lacking)}, which other files of its split have")
            return None
    return Table(
        name,
        tuple(dict.fromkeys(column for table in tables for column in table.available)),
        {column: [value for table in tables for value in table.columns[column]] for column in columns},
        [number for table in tables for number in table.numbers],
        {column: names for table in tables for column, names in table.class_names.items()},
        [table.name for table in tables for _ in table.numbers],
    )
