"""Tables of csv, tsv, JSON lines and parquet files and of hub sets, and the list of all errors found in them.

Texts are not converted: ``NA``, ``007`` and leading spaces stay. csv follows RFC 4180 (a quoted field may contain line
breaks), tsv has no quoting, and both need a header; csv, tsv and JSON lines may be gzipped. The number of a row is that of
its first line; parquet rows are numbered from 1.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from pipeline.config.corpus import Split
from pipeline.config.errors import PipelineErrors

JSON_LINES = (".jsonl", ".ndjson", ".json")
ENDINGS = (".csv", ".tsv", *JSON_LINES, ".parquet")
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
GZIP_MARK = b"\x1f\x8b"
OTHER_FORMATS = {
    b"version https://git-lfs.github.com/spec/v1": "the file is a Git LFS pointer, not the table; run git lfs pull",
    b"PK\x03\x04": "the file is an Excel file or a zip archive; save the table as csv",
    b"\xd0\xcf\x11\xe0": "the file is an Excel file; save the table as csv",
}
"""First bytes of files that are not tables, and how to get the table."""

NAMED_ROWS = 5
"""Most rows that a message names; further rows are counted."""

LONGEST_FIELD = 2**31 - 1
"""In characters; the default of the csv module is 131,072."""

LONGEST_SHOWN = 40

OTHER_SEPARATORS = (";", "\t", "|", ",")

WHOLE = re.compile(r"-?\d+(\.0+)?", re.ASCII)
"""A whole number; pandas writes integer columns with gaps as 1.0."""


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
        """Whether this file, split or setting has an error."""
        return any(subject == listed for listed, _ in self._rows)

    def lines(self) -> list[str]:
        lines = []
        for (subject, message), rows in self._rows.items():
            more = f" and {len(rows) - NAMED_ROWS} more" if len(rows) > NAMED_ROWS else ""
            place = f", {'row' if len(rows) == 1 else 'rows'} {', '.join(rows[:NAMED_ROWS])}{more}" if rows else ""
            lines.append(f"{subject}{place}: {message}")
        return lines

    def raise_if_any(self, subject: str) -> None:
        """Raise ``PipelineErrors`` with all lines unless the list is empty."""
        if self._rows:
            raise PipelineErrors(subject, self.lines())


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
"""The tables of each split that a corpus has, one per file; empty if one of them cannot be read."""


class _ReadError(Exception):
    """A file that cannot be read; the arguments are those of ``ErrorList.add`` after the subject."""


def read_file(path: Path, wanted: Sequence[str], errors: ErrorList, separator: str | None = None) -> Table | None:
    """Read the ``wanted`` columns of one file in the format of its ending; None if it cannot be read.

    With a ``separator`` other than that of its ending, the file is read as csv with this separator.
    """
    try:
        _check_format(path)
        ending = ending_of(path)
        if ending == ".parquet":
            return _parquet(path, wanted)
        text = _text(path)
        if ending in JSON_LINES:
            return _json_lines(path, text, wanted, errors)
        is_tsv = ending == ".tsv" and separator in (None, "\t")
        lines = ((number, line.split("\t")) for number, line in _lines(text))
        return _delimited(path, lines if is_tsv else _csv_records(text, separator or ","), wanted, errors)
    except _ReadError as error:
        errors.add(str(path), *error.args)
        return None


def ending_of(path: Path) -> str:
    """The suffix that decides the format: lower case, without that of gzip."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def was_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` of ``datasets`` wrote a folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def first_line(error: BaseException) -> str:
    """The first line of an error message, or the name of its type."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def shown(value: Any) -> str:
    """The repr of a value, shortened."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 1] + "…"


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
    """The name of a class index, other values unchanged; -1, GLUE's mark of a hidden label, becomes None."""
    if isinstance(value, str) and value.strip() not in names and WHOLE.fullmatch(value.strip()):
        value = int(value.strip().partition(".")[0])
    if not isinstance(value, int) or value >= len(names):
        return value
    return None if value < 0 else names[value]


def _check_format(path: Path) -> None:
    if path.is_dir():
        what = "a folder written by save_to_disk" if was_saved(path) else "a folder"
        raise _ReadError(f"the path is {what}, but files needs files; use hub for folders")
    if not path.is_file():
        raise _ReadError("the file does not exist")
    with path.open("rb") as file:
        start = file.read(max(map(len, OTHER_FORMATS)))
    for mark, message in OTHER_FORMATS.items():
        if start.startswith(mark):
            raise _ReadError(message)
    if ending_of(path) not in ENDINGS:
        raise _ReadError(f"the name of a table must end in {', '.join(ENDINGS)}; save other formats as csv")


def _text(path: Path) -> str:
    content = path.read_bytes()
    try:
        content = gzip.decompress(content) if content.startswith(GZIP_MARK) else content
    except (OSError, EOFError, zlib.error) as error:
        raise _ReadError(f"not readable as gzip ({first_line(error)}); copy the file again") from error
    if content.startswith(UTF_16_MARKS) or content[:2].count(0) == 1:
        raise _ReadError("the file is UTF-16; save it as UTF-8")
    try:
        return content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        raise _ReadError("not UTF-8; save the file as UTF-8", row, f"byte {error.start}") from error


def _csv_records(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of csv text with the number of their first line."""
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    start, header = 1, list[str]()
    try:
        for fields in reader:
            if fields:
                header = header or fields
                yield start, fields
            start = reader.line_num + 1
    except csv.Error as error:
        if other := separator_error(header):
            raise _ReadError(other) from error
        cause = "the csv cannot be parsed from here on; quotes must be closed, and doubled inside a quoted field"
        raise _ReadError(cause, start, str(error)) from error


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that are not empty; only LF and CRLF end a line (``splitlines`` would also break at U+2028)."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line := line.removesuffix("\r"):
            yield number, line


def _delimited(path: Path, records: Iterator[tuple[int, list[str]]], wanted: Sequence[str], errors: ErrorList) -> Table:
    """The wanted fields of all rows that have as many fields as the header."""
    _, header = next(records, (0, []))
    if not header:
        raise _ReadError("the file is empty; its first line must name the columns")
    _check_unique(header, wanted)
    columns: dict[str, list[str]] = {name: [] for name in wanted if name in header}
    places = [(header.index(name), column) for name, column in columns.items()]
    numbers = []
    for number, fields in records:
        if len(fields) != len(header):
            errors.add(str(path), f"the header has {len(header)} field(s)", number, f"{len(fields)} here")
            continue
        numbers.append(number)
        for place, column in places:
            column.append(fields[place])
    return Table(str(path), tuple(header), columns, numbers)


def _check_unique(names: Sequence[str], wanted: Sequence[str]) -> None:
    counts = Counter(names)
    if repeated := [name for name in wanted if counts[name] > 1]:
        raise _ReadError(f"column {', '.join(map(repr, repeated))} occurs more than once")


def _json_lines(path: Path, text: str, wanted: Sequence[str], errors: ErrorList) -> Table:
    if text.lstrip().startswith("["):
        raise _ReadError("the file is a JSON array; write one object per line")
    columns: dict[str, list[Any]] = {name: [] for name in wanted}
    header, numbers = dict[str, None](), []
    for number, line in _lines(text):
        try:
            row = json.loads(line, object_pairs_hook=partial(_object, wanted))
        except (ValueError, RecursionError):
            row = None
        except _ReadError as error:
            errors.add(str(path), str(error), number)
            continue
        if not isinstance(row, dict):
            errors.add(str(path), "each line must be one JSON object", number, shown(line))
            continue
        header.update(dict.fromkeys(row))
        numbers.append(number)
        for name, column in columns.items():
            column.append(row.get(name))
    return Table(str(path), tuple(header), {name: columns[name] for name in wanted if name in header}, numbers)


def _object(wanted: Sequence[str], pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _check_unique([name for name, _ in pairs], wanted)
    return dict(pairs)


def _parquet(path: Path, wanted: Sequence[str]) -> Table:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            _check_unique(schema.names, wanted)
            content = file.read(columns=[name for name in wanted if name in schema.names])
        columns = {name: content[name].to_pylist() for name in content.column_names}
    except (pa.ArrowException, ValueError, OverflowError, OSError) as error:  # damaged, or dates that Python cannot represent
        raise _ReadError(f"not readable as parquet ({first_line(error)})") from error
    table = Table(str(path), tuple(schema.names), columns, range(1, content.num_rows + 1))
    return with_class_names(table, _declared_classes(schema.metadata or {}))


def _declared_classes(metadata: Mapping[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """The class names that ``datasets`` writes into the metadata of a parquet file."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {name: tuple(kind["names"]) for name, kind in features.items() if kind["_type"] == "ClassLabel"}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}
