"""csv, tsv, JSON lines and parquet files read exactly as tables.

Texts are not converted: ``NA``, ``007`` and leading spaces stay. csv follows RFC 4180 (a quoted field may contain line
breaks), tsv has no quoting, and both need a header; csv, tsv and JSON lines may be gzipped. The number of a row is that of
its first line; parquet rows are numbered from 1.
"""

import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from pipeline.corpus.tables import ErrorList, Table, separator_error, with_class_names

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

LONGEST_FIELD = 2**31 - 1
"""In characters; the default of the csv module is 131,072."""

LONGEST_SHOWN = 40
SAVED_FILES = ("dataset_dict.json", "state.json")
"""Every folder written by ``save_to_disk`` of ``datasets`` has one of them."""

UNCLOSED_QUOTE = "unexpected end of data"
"""Message of the csv module for a file that ends inside a quoted field."""

PARQUET_ERRORS = (pa.ArrowException, ValueError, OverflowError, OSError)
"""Raised for damaged files, and for dates that Python cannot represent."""

Record = tuple[int, list[str]]


class _ReadError(Exception):
    """A file that cannot be read; the arguments are those of ``ErrorList.add`` after the subject."""


def read_file(path: Path, wanted: Sequence[str], errors: ErrorList, separator: str | None = None) -> Table | None:
    """Read one file in the format of its ending; None if it cannot be read.

    Args:
        path: the file.
        wanted: the columns to read; other columns are not validated.
        errors: receives what is wrong.
        separator: the field separator if it is not the usual one of csv or tsv; csv rules apply then.
    """
    try:
        _check_format(path)
        ending = ending_of(path)
        if ending == ".parquet":
            return _parquet(path, wanted)
        text = _text(path, errors)
        if ending in JSON_LINES:
            return _json_lines(path, text, wanted, errors)
        is_tsv = ending == ".tsv" and separator in (None, "\t")
        return _delimited(path, _tsv_records(text) if is_tsv else _csv_records(text, separator or ","), wanted, errors)
    except _ReadError as error:
        errors.add(str(path), *error.args)
        return None


def ending_of(path: Path) -> str:
    """The suffix that decides the format: lower case, without that of gzip."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def was_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` of ``datasets`` wrote a folder."""
    return any((folder / name).is_file() for name in SAVED_FILES)


def first_line(error: BaseException) -> str:
    """The first line of an error message, or the name of its type."""
    return next(iter(str(error).splitlines()), type(error).__name__)


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


def _text(path: Path, errors: ErrorList) -> str:
    """The text of a file; bytes that are not UTF-8 are reported and replaced, so that other errors are found too."""
    content = path.read_bytes()
    try:
        content = gzip.decompress(content) if content.startswith(GZIP_MARK) else content
    except (OSError, EOFError, zlib.error) as error:
        raise _ReadError(f"not readable as gzip ({first_line(error)}); copy the file again") from error
    if content.startswith(UTF_16_MARKS) or content[:2].count(0) == 1:
        raise _ReadError("the file is UTF-16; save it as UTF-8")
    text = content.decode("utf-8-sig", errors="replace")
    offset = 0
    for number, line in enumerate(content.split(b"\n") if "\ufffd" in text else (), start=1):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            errors.add(str(path), "not UTF-8; save the file as UTF-8", number, f"byte {offset + error.start}")
        offset += len(line) + 1
    return text


def _csv_records(text: str, separator: str) -> Iterator[Record]:
    """The rows of csv text with the number of their first line."""
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header, start = None, 1
    try:
        for fields in reader:
            if fields:
                header = header or fields
                yield start, fields
            start = reader.line_num + 1
    except csv.Error as error:
        if other := separator_error(header or ()):
            raise _ReadError(other) from error
        unclosed = str(error) == UNCLOSED_QUOTE
        cause = "a quote is opened and never closed" if unclosed else "a quote inside a quoted field must be doubled"
        raise _ReadError(f"the csv cannot be parsed from here on: {cause}", start, str(error)) from error


def _tsv_records(text: str) -> Iterator[Record]:
    return ((number, line.split("\t")) for number, line in _lines(text))


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that are not empty; only LF and CRLF end a line (``splitlines`` would also break at U+2028)."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line := line.removesuffix("\r"):
            yield number, line


def _delimited(path: Path, records: Iterator[Record], wanted: Sequence[str], errors: ErrorList) -> Table:
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
            errors.add(str(path), f"the header has {_fields(len(header))}", number, f"{_fields(len(fields))} here")
            continue
        numbers.append(number)
        for place, column in places:
            column.append(fields[place])
    return Table(str(path), tuple(header), columns, numbers)


def _fields(count: int) -> str:
    return "1 field" if count == 1 else f"{count} fields"


def _check_unique(names: Iterable[str], wanted: Sequence[str]) -> None:
    counts = Counter(names)
    if repeated := [name for name in wanted if counts[name] > 1]:
        raise _ReadError(f"column {', '.join(map(repr, repeated))} occurs more than once")


class _Object(dict[str, Any]):
    """A JSON object with the keys as written, repeated ones included."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.written = [name for name, _ in pairs]


def _json_lines(path: Path, text: str, wanted: Sequence[str], errors: ErrorList) -> Table:
    if text.lstrip().startswith("["):
        raise _ReadError("the file is a JSON array; write one object per line")
    columns: dict[str, list[Any]] = {name: [] for name in wanted}
    header, numbers = dict[str, None](), []
    for number, line in _lines(text):
        try:
            row = _json_object(line, wanted)
        except _ReadError as error:
            message, *shown = error.args
            errors.add(str(path), message, number, *shown)
            continue
        header.update(dict.fromkeys(row))
        numbers.append(number)
        for name, column in columns.items():
            column.append(row.get(name))
    return Table(str(path), tuple(header), {name: columns[name] for name in wanted if name in header}, numbers)


def _json_object(line: str, wanted: Sequence[str]) -> dict[str, Any]:
    try:
        row = json.loads(line, object_pairs_hook=_Object)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, _Object):
        shown = line if len(line) <= LONGEST_SHOWN else line[: LONGEST_SHOWN - 1] + "…"
        raise _ReadError("each line must be one JSON object", repr(shown))
    _check_unique(row.written, wanted)
    return row


def _parquet(path: Path, wanted: Sequence[str]) -> Table:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            _check_unique(schema.names, wanted)
            content = file.read(columns=[name for name in wanted if name in schema.names])
        columns = {name: content[name].to_pylist() for name in content.column_names}
    except PARQUET_ERRORS as error:
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
