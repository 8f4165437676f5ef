"""Files read exactly as tables: csv, tsv, jsonl, parquet. Knows bytes and rows, not what they mean.

Texts stay as they stand in the file: ``NA``, ``007`` and leading spaces are not converted. csv follows RFC 4180 (a
quoted field may hold line breaks), tsv has no quoting, and both need a header; csv, tsv and jsonl may be gzipped. A row's
number is that of the line it starts on; in parquet it counts the rows from 1. A column that is read may be there only once.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from pipeline.corpus.faults import FoundFaults
from pipeline.corpus.tables import Table, separated_otherwise, with_classes

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
GZIP_MARK = b"\x1f\x8b"

NO_TABLES = {
    b"version https://git-lfs.github.com/spec/v1": "it is a pointer of git-lfs, not the table; fetch that with git lfs pull",
    b"PK\x03\x04": "it is an Excel file or a zip archive; save the table as csv",
    b"\xd0\xcf\x11\xe0": "it is an Excel file; save the table as csv",
}
"""What other files begin with, and what to do about them."""

LONGEST_FIELD = 2**31 - 1
"""In characters; the csv module stops at 131,072 unless told."""

SAVED_FILES = ("dataset_dict.json", "state.json")
"""One of them lies in each folder that ``datasets`` wrote with ``save_to_disk``."""

NEVER_CLOSED = "unexpected end of data"
"""What the csv module says where a file ends within a quoted field."""

ARROW_ERRORS = (pa.ArrowException, ValueError, OverflowError)
"""Over damaged data, and over dates that Python does not have."""

Record = tuple[int, list[str]]


def read_file(path: Path, wanted: Sequence[str], found: FoundFaults, separator: str | None = None) -> Table | None:
    """Read one file by its ending, or note why it cannot be read and give None.

    Args:
        path: the file.
        wanted: the columns to read; others need not be sound.
        found: takes the faults.
        separator: of the fields of a csv or tsv, where it is another than usual; the rules of csv apply then.
    """
    ending = ending_of(path)
    reader = _READERS.get(ending)
    if fault := _no_table(path, reader is not None):
        found.whole(str(path), fault)
        return None
    assert reader is not None
    if separator is not None and separator != SEPARATORS.get(ending):
        reader = partial(_csv, separator=separator)
    return reader(path, wanted, found)


def ending_of(path: Path) -> str:
    """What says how a file is read: its suffix in small letters, without that of gzip."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def was_saved(folder: Path) -> bool:
    """Whether ``datasets`` wrote a folder with ``save_to_disk``."""
    return any((folder / name).is_file() for name in SAVED_FILES)


def _no_table(path: Path, readable: bool) -> str | None:
    """Why a path names no table that can be read, as far as its name and its first bytes tell."""
    if path.is_dir():
        what = "a folder that datasets saved (save_to_disk)" if was_saved(path) else "a folder"
        return f"it is {what}, and files takes files; name the folder as hub, in place of files"
    if readable and not path.is_file():
        return "there is no such file"
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(max(map(len, NO_TABLES)))
        if known := next((fault for mark, fault in NO_TABLES.items() if start.startswith(mark)), None):
            return known
    return None if readable else f"a table's name must end in {', '.join(_READERS)}; save other tables as csv"


def _csv(path: Path, wanted: Sequence[str], found: FoundFaults, separator: str = ",") -> Table | None:
    text = _text(path, found)
    return None if text is None else _delimited(path, _csv_records(text, separator), wanted, found)


def _tsv(path: Path, wanted: Sequence[str], found: FoundFaults) -> Table | None:
    text = _text(path, found)
    return None if text is None else _delimited(path, _tsv_records(text), wanted, found)


def _csv_records(text: str, separator: str) -> Iterator[Record]:
    """Rows of csv text with the line each starts on; csv.Error carries the line of a row that cannot be parsed."""
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
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
        if _repeats(path, header, wanted, found):
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


def _repeats(path: Path, header: Sequence[str], wanted: Sequence[str], found: FoundFaults) -> bool:
    """Whether a column that is to be read is there more than once, which is noted."""
    repeated = sorted({name for name in wanted if header.count(name) > 1})
    if repeated:
        found.whole(str(path), f"it has a column twice: {', '.join(repeated)}")
    return bool(repeated)


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
    rows = [(number, row) for number, line in _lines(text) if (row := _json_row(path, number, line, wanted, found)) is not None]
    available = tuple(dict.fromkeys(name for _, row in rows for name in row))
    columns = {name: [row.get(name) for _, row in rows] for name in wanted if name in available}
    return Table(str(path), available, columns, [number for number, _ in rows])


class _Object(dict[str, Any]):
    """A JSON object that remembers which of its keys are written more than once."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        names = [name for name, _ in pairs] if len(pairs) > len(self) else []
        self.repeated = {name for name in names if names.count(name) > 1}


def _json_row(path: Path, number: int, line: str, wanted: Sequence[str], found: FoundFaults) -> dict[str, Any] | None:
    try:
        row = json.loads(line, object_pairs_hook=_Object)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, _Object):
        found.row(str(path), number, "each line must be one JSON object", _shortened(line))
        return None
    if repeated := sorted(row.repeated & set(wanted)):
        found.row(str(path), number, f"it has a column twice: {', '.join(repeated)}")
        return None
    return row


def _parquet(path: Path, wanted: Sequence[str], found: FoundFaults) -> Table | None:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            available = tuple(file.schema_arrow.names)
            if _repeats(path, available, wanted, found):
                return None
            content = file.read(columns=[name for name in wanted if name in available])
        columns = {name: content[name].to_pylist() for name in content.column_names}
    except (*ARROW_ERRORS, OSError) as error:
        found.whole(str(path), f"not readable as parquet ({first_line(error)})")
        return None
    table = Table(str(path), available, columns, range(1, content.num_rows + 1))
    return with_classes(table, _classes_in(file.schema_arrow.metadata or {}))


def _classes_in(metadata: Mapping[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """The class names that ``datasets`` writes into a parquet file beside the indices."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {name: tuple(kind["names"]) for name, kind in features.items() if kind["_type"] == "ClassLabel"}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


def _text(path: Path, found: FoundFaults) -> str | None:
    """The file's text; bytes that are not UTF-8 are noted and replaced, so that the remaining faults are found too."""
    content = _bytes(path, found)
    if content is None:
        return None
    if content.startswith(UTF_16_MARKS) or content[:2].count(0) == 1:
        found.whole(str(path), "the file is UTF-16; save it as UTF-8")
        return None
    skipped = len(BYTE_ORDER_MARK) if content.startswith(BYTE_ORDER_MARK) else 0
    try:
        return content[skipped:].decode()
    except UnicodeDecodeError:
        _note_bad_bytes(path, content, found)
        return content[skipped:].decode(errors="replace")


def _bytes(path: Path, found: FoundFaults) -> bytes | None:
    content = path.read_bytes()
    try:
        return gzip.decompress(content) if content.startswith(GZIP_MARK) else content
    except (OSError, EOFError, zlib.error) as error:
        found.whole(str(path), f"not readable as gzip ({first_line(error)}); copy it again")
        return None


def _note_bad_bytes(path: Path, content: bytes, found: FoundFaults) -> None:
    offset = 0
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            found.row(str(path), number, "not UTF-8; save the file as UTF-8", f"byte {offset + error.start}")
        offset += len(line) + 1


SEPARATORS = {".csv": ",", ".tsv": "\t"}

_READERS: dict[str, Callable[[Path, Sequence[str], FoundFaults], Table | None]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _jsonl,
    ".parquet": _parquet,
}


def first_line(error: BaseException) -> str:
    """The first line that an error says."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _shortened(line: str) -> str:
    return repr(line if len(line) <= 40 else line[:39] + "…")
