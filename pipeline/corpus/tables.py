"""Source tables read exactly: csv, tsv, jsonl, parquet, sets in hub layout. Knows bytes and rows, not what they mean.

Texts stay as they stand in the file: ``NA``, ``007`` and leading spaces are not converted. csv follows RFC 4180 (a
quoted field may hold line breaks), tsv has no quoting, and both need a header. A row's number is that of the line it
starts on; for parquet and hub sets it counts the rows from 1.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from pipeline.corpus.faults import FoundFaults
from pipeline.tasks import Split

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
LONGEST_FIELD = 2**31 - 1
"""In characters; the csv module stops at 131,072 unless told."""

OTHER_SEPARATORS = (";", "\t", "|", ",")
"""Found in the name of a table's only column, they say that it is separated by something else than its kind is."""

NEVER_CLOSED = "unexpected end of data"
"""What the csv module says where a file ends within a quoted field."""

Record = tuple[int, list[str]]


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


OwnSplits = Mapping[Split, Table | None]
"""The tables that a corpus has, one a split; None for one that cannot be read."""


def read_file(path: Path, wanted: Sequence[str], found: FoundFaults) -> Table | None:
    """Read one file by its ending, or note why it cannot be read and give None."""
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        found.whole(str(path), f"a table's name must end in {', '.join(_READERS)}")
        return None
    if not path.is_file():
        found.whole(str(path), "there is no such file")
        return None
    return reader(path, wanted, found)


def _csv(path: Path, wanted: Sequence[str], found: FoundFaults) -> Table | None:
    text = _text(path, found)
    return None if text is None else _delimited(path, _csv_records(text), wanted, found)


def _tsv(path: Path, wanted: Sequence[str], found: FoundFaults) -> Table | None:
    text = _text(path, found)
    return None if text is None else _delimited(path, _tsv_records(text), wanted, found)


def _csv_records(text: str) -> Iterator[Record]:
    """Rows of csv text with the line each starts on; csv.Error carries the line of a row that cannot be parsed."""
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    start = 1
    try:
        for fields in reader:
            if fields:
                yield start, fields
            start = reader.line_num + 1
    except csv.Error as cause:
        raise csv.Error(str(cause), start) from cause


def _tsv_records(text: str) -> Iterator[Record]:
    for number, line in _lines(text):
        yield number, line.split("\t")


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that are not empty; only LF and CRLF end a line (``splitlines`` would also break at U+2028)."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line := line.removesuffix("\r"):
            yield number, line


def _delimited(path: Path, records: Iterator[Record], wanted: Sequence[str], found: FoundFaults) -> Table | None:
    header: list[str] = []
    try:
        _, header = next(records, (0, []))
        if repeated := sorted({name for name in wanted if header.count(name) > 1}):
            found.whole(str(path), f"the header names a column twice: {', '.join(repeated)}")
            return None
        return _table_of_fields(path, header, records, wanted, found)
    except csv.Error as error:
        if separated := separated_otherwise(header):
            found.whole(str(path), separated)
            return None
        message, number = error.args
        cause = (
            "a quote is opened here and never closed"
            if message == NEVER_CLOSED
            else "a quote inside a quoted field must be doubled"
        )
        meaning = f"the csv cannot be parsed from here on; {cause}"
        found.row(str(path), number, meaning, message)
        return None


def separated_otherwise(header: Sequence[str]) -> str:
    """What is wrong with a table of one column whose name holds another separator than its kind has; empty if nothing is."""
    other = next((mark for mark in OTHER_SEPARATORS if len(header) == 1 and mark in header[0]), None)
    return f"its columns are separated by {other!r}, where commas are read in csv and tabs in tsv" if other else ""


def _table_of_fields(
    path: Path, header: list[str], records: Iterator[Record], wanted: Sequence[str], found: FoundFaults
) -> Table | None:
    """The wanted fields of every row that has as many as the header; no other field is held."""
    if not header:
        found.whole(str(path), "the file is empty; its first line must name the columns")
        return None
    places = {name: header.index(name) for name in wanted if name in header}
    columns: dict[str, list[str]] = {name: [] for name in places}
    numbers = []
    for number, fields in records:
        if len(fields) != len(header):
            found.row(str(path), number, f"the header has {_fields(len(header))}", f"{_fields(len(fields))} here")
            continue
        numbers.append(number)
        for name, place in places.items():
            columns[name].append(fields[place])
    return Table(str(path), tuple(header), columns, numbers)


def _fields(count: int) -> str:
    return "1 field" if count == 1 else f"{count} fields"


def _jsonl(path: Path, wanted: Sequence[str], found: FoundFaults) -> Table | None:
    text = _text(path, found)
    if text is None:
        return None
    if text.lstrip().startswith("["):
        found.whole(str(path), "the file is one JSON array; write one object a line, without brackets and commas around them")
        return None
    rows = [(number, row) for number, line in _lines(text) if (row := _json_row(path, number, line, found)) is not None]
    available = tuple(dict.fromkeys(name for _, row in rows for name in row))
    columns = {name: [row.get(name) for _, row in rows] for name in wanted if name in available}
    return Table(str(path), available, columns, [number for number, _ in rows])


def _json_row(path: Path, number: int, line: str, found: FoundFaults) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        found.row(str(path), number, "each line must be one JSON object", _shortened(line))
        return None
    return row


def _parquet(path: Path, wanted: Sequence[str], found: FoundFaults) -> Table | None:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            available = tuple(file.schema_arrow.names)
            content = file.read(columns=[name for name in wanted if name in available])
        columns = {name: content[name].to_pylist() for name in content.column_names}
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        found.whole(str(path), f"not readable as parquet ({_first_line(error)})")
        return None
    return Table(str(path), available, columns, range(1, content.num_rows + 1))


def _text(path: Path, found: FoundFaults) -> str | None:
    """The file's text; bytes that are not UTF-8 are noted and replaced, so that the remaining faults are found too."""
    content = path.read_bytes()
    if content.startswith(UTF_16_MARKS):
        found.whole(str(path), "the file is UTF-16; save it as UTF-8")
        return None
    skipped = len(BYTE_ORDER_MARK) if content.startswith(BYTE_ORDER_MARK) else 0
    try:
        return content[skipped:].decode()
    except UnicodeDecodeError:
        _note_bad_bytes(path, content, found)
        return content[skipped:].decode(errors="replace")


def _note_bad_bytes(path: Path, content: bytes, found: FoundFaults) -> None:
    offset = 0
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            found.row(str(path), number, "not UTF-8; save the file as UTF-8", f"byte {offset + error.start}")
        offset += len(line) + 1


_READERS: dict[str, Callable[[Path, Sequence[str], FoundFaults], Table | None]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}


def read_hub(hub: str, config: str | None, revision: str | None, wanted: Sequence[str], found: FoundFaults) -> dict[str, Table]:
    """Read every split of a set on the hub, or of a local folder in hub layout; empty if that fails, which is noted."""
    import datasets  # takes seconds, and tables in files do without it

    try:
        loaded = datasets.load_dataset(hub, config, revision=revision)
    except Exception as error:  # its own, those of its builders, those of the network
        found.whole(hub, f"datasets cannot load it ({_first_line(error)})")
        return {}
    return {str(split): _hub_table(f"{hub} ({split})", data, wanted) for split, data in loaded.items()}


def _hub_table(name: str, data: Any, wanted: Sequence[str]) -> Table:
    present = [column for column in wanted if column in data.column_names]
    classes = {column: names for column in present if (names := getattr(data.features[column], "names", None))}
    columns = {column: _named(list(data[column]), classes.get(column)) for column in present}
    class_names = {column: tuple(names) for column, names in classes.items()}
    return Table(name, tuple(data.column_names), columns, range(1, data.num_rows + 1), class_names)


def _named(values: list[Any], names: Sequence[str] | None) -> list[Any]:
    """Class indices as their names; GLUE marks a label that is kept secret with -1."""
    if names is None:
        return values
    return [None if value is None or value < 0 else names[value] for value in values]


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _shortened(line: str) -> str:
    return repr(line if len(line) <= 40 else line[:39] + "…")
