"""Read shards: rows by position from memory-mapped files, each verified when it is first read."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.corpus import Split
from pipeline.config.errors import PipelineError
from pipeline.shards.manifest import SHARD_FILE, Manifest, ShardEntry, ShardMismatch, check_agreement
from pipeline.shards.schema import Content, description_of, shard_schema
from pipeline.store.keys import sha256_of
from pipeline.store.store import Store

Positions = npt.NDArray[np.integer[Any]]

Row = SimpleNamespace
"""One row with the columns of ``shard_schema`` as attributes; lists and bytes share the memory of the mapped file."""

AGAIN = "make it again with dvc repro"

STAGES: dict[Content, str] = {"soft_labels": "soft_label", "variants": "augment"}
"""The stages that write a set of shards."""

THREADS = 8
"""Shards that are fetched or verified at once."""


@dataclass(frozen=True)
class Lists:
    """The lists of several rows: all elements, row after row, and the number of elements of each row."""

    values: npt.NDArray[Any]
    lengths: npt.NDArray[np.int64]

    def inside(self, longest: int) -> npt.NDArray[np.bool_]:
        """Mask [rows, ``longest``] of the elements that exist."""
        return np.arange(longest) < self.lengths[:, None]

    def padded(self, fill: float, longest: int, kind: npt.DTypeLike) -> npt.NDArray[Any]:
        """The lists as an array [rows, ``longest``], padded on the right."""
        padded = np.full((len(self.lengths), longest), fill, dtype=kind)
        padded[self.inside(longest)] = self.values
        return padded


@dataclass(frozen=True, eq=False)
class LazyTable:
    """A table that is opened at the first access to its rows."""

    rows: int
    open: Callable[[], pa.Table]
    """Opens and verifies the table; later calls return the same one."""
    fetch_ahead: Callable[[], None] | None = None
    """Starts to fetch the table's file in the background."""

    @cached_property
    def batches(self) -> list[pa.RecordBatch]:
        """The record batches that have rows."""
        return [batch for batch in self.open().to_batches() if batch.num_rows]

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(batch.num_rows for batch in self.batches))

    @cached_property
    def _lists(self) -> dict[str, list[tuple[npt.NDArray[np.int32], npt.NDArray[Any]]]]:
        return {}

    def values(self, row: int, names: Iterable[str]) -> dict[str, Any]:
        """The columns of one row."""
        number, within = self._located(row)
        return {name: _value(self.batches[number].column(name)[within]) for name in names}

    def list_at(self, name: str, row: int) -> npt.NDArray[Any]:
        """The elements of a list, or the bytes, in one row; null is empty."""
        if name not in self._lists:
            self._lists[name] = [_offsets(batch.column(name)) for batch in self.batches]
        number, within = self._located(row)
        offsets, values = self._lists[name][number]
        return values[offsets[within] : offsets[within + 1]]

    def _located(self, row: int) -> tuple[int, int]:
        """The record batch of a row, and the row in it."""
        number = bisect_right(self._ends, row)
        return number, row - self._ends[number - 1] if number else row

    def __reduce__(self) -> tuple[Any, ...]:
        return LazyTable, (self.rows, self.open, self.fetch_ahead)


class Rows(Sequence[Row]):
    """The rows of several tables in order; training reads many at once with ``lists_at``."""

    def __init__(self, schema: pa.Schema, tables: Iterable[LazyTable]) -> None:
        self._schema, self._tables = schema, list(tables)
        self._ends = np.cumsum([table.rows for table in self._tables], dtype=np.int64)

    @classmethod
    def in_file(cls, path: Path) -> "Rows":
        """The rows of one file, which is verified already."""
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        return cls(table.schema, [LazyTable(table.num_rows, lambda: table)])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, position: int) -> Row:  # type: ignore[override]
        ((table, row),) = self._located(np.array([position]))
        return Row(**table.values(row, self._schema.names))

    def has(self, name: str) -> bool:
        """Whether there is a column of that name."""
        return name in self._schema.names

    def open(self) -> None:
        """Open all tables, several at once."""
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda table: table.open(), self._tables))

    def fetch_ahead(self, positions: Positions) -> None:
        """Start to fetch the files of these rows in the background, if they are in a remote store."""
        for number in np.unique(np.searchsorted(self._ends, positions, side="right")):
            if (fetch := self._tables[number].fetch_ahead) is not None:
                fetch()

    def column(self, name: str) -> pa.ChunkedArray:
        """One column over all rows, without a copy."""
        self.open()
        batches = [batch for table in self._tables for batch in table.batches]
        return pa.chunked_array([batch.column(name) for batch in batches], type=self._schema.field(name).type)

    def lengths(self) -> npt.NDArray[np.int64]:
        """Number of tokens of each row."""
        return np.asarray(pc.list_value_length(self.column("input_ids")), dtype=np.int64)

    def labels(self) -> npt.NDArray[np.float64]:
        """The labels as numbers, NaN for rows without one."""
        return np.asarray(pc.fill_null(self.column("label").cast(pa.float64()), float("nan")))

    def matrix(self, name: str) -> npt.NDArray[np.float32]:
        """A column of equally long lists as [rows, values]."""
        flat = np.asarray(pc.list_flatten(self.column(name)), dtype=np.float32)
        return flat.reshape(len(self), -1 if len(self) else 0)

    def lists_at(self, name: str, positions: Positions) -> Lists:
        """A column of lists or bytes at some positions, copied from the mapped files; null is an empty list."""
        parts = [table.list_at(name, row) for table, row in self._located(positions)]
        lengths = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
        return Lists(np.concatenate(parts) if parts else np.empty(0, _dtype(self._schema.field(name).type)), lengths)

    def _located(self, positions: Positions) -> Iterable[tuple[LazyTable, int]]:
        """The table of each position, and the row in it; negative positions do not count from the end."""
        if ((positions < 0) | (positions >= len(self))).any():
            raise IndexError(f"{len(self)} rows have no positions {positions}")
        numbers = np.searchsorted(self._ends, positions, side="right")
        within = positions - np.concatenate([[0], self._ends])[numbers]
        return zip([self._tables[number] for number in numbers.tolist()], within.tolist(), strict=True)


class Shards:
    """A complete set of shards, each verified when it is first read; a remote store's are fetched then."""

    def __init__(self, folder: Path, store: Store | None = None) -> None:
        """Open the folder of a set; hashes nothing.

        Args:
            folder: has the manifest and, unless the store is remote, all shards.
            store: has the shards that are not in the folder, if it is remote.

        Raises:
            ShardMismatch: lists every shard that is missing or has another size than in the manifest.
        """
        self.folder, self._store = folder, store
        self.manifest = Manifest.read(folder)
        self._schema = shard_schema(self.manifest.content, self.manifest.task.kind, self.manifest.token_types)
        self._opened: dict[str, pa.Table] = {}
        self._ahead: dict[str, Future[Path]] = {}
        errors = [error for entry in self.manifest.shards if (error := self._error(entry))]
        if errors:
            raise ShardMismatch("\n  - ".join([f"{folder} cannot be trusted; {AGAIN}:", *errors]))

    def __reduce__(self) -> tuple[Any, ...]:
        return Shards, (self.folder, self._store)

    @classmethod
    def holding(cls, content: Content, folder: Path, store: Store | None = None) -> "Shards":
        """The shards of a folder; raises ``ShardMismatch`` if they have other content."""
        found = cls(folder, store)
        if found.manifest.content != content:
            wanted = content.replace("_", " ")
            raise ShardMismatch(f"{folder} does not hold {wanted}; name a folder that the stage {STAGES[content]} wrote")
        return found

    def rows(self, split: Split, *variants: int) -> Rows:
        """The rows of some variants of a split, one variant after the other, each in partition order."""
        return self.rows_of(*(entry for entry in self.manifest.of_split(split) if entry.variant in variants))

    def rows_of(self, *entries: ShardEntry) -> Rows:
        """The rows of some shards."""
        return Rows(self._schema, [self._lazy(entry, partial(self._table, entry)) for entry in entries])

    def joined_to(self, soft_labels: "Shards", variants: Sequence[int]) -> Rows:
        """The train rows of some variants, one variant after the other, each in the order of the train rows of ``soft_labels``.

        Shards belong together if their keys name the same examples. That their rows have the same ids in the same order is
        checked when a shard is opened.

        Raises:
            ShardMismatch: a variant does not have exactly one shard, of equal size, for each of the soft labels.
        """
        clean, tables = soft_labels.manifest.of_split("train"), []
        for variant in variants:
            entries = [entry for entry in self.manifest.of_split("train") if entry.variant == variant]
            wanted, found = (Counter((e.receipt.key["examples"], e.receipt.rows) for e in some) for some in (clean, entries))
            if wanted != found:
                parts = (wanted - found, found - wanted, wanted)
                lacking, surplus, rows = (sum(rows * n for (_, rows), n in part.items()) for part in parts)
                raise ShardMismatch(
                    f"{lacking} of {rows} examples have no variant {variant} in {self.folder}, and {surplus} of its rows have "
                    "no example: soft labels and variants were made from different examples; make them again with dvc repro"
                )
            by_examples = {entry.receipt.key["examples"]: entry for entry in entries}
            for one in clean:
                entry = by_examples[one.receipt.key["examples"]]
                tables.append(self._lazy(entry, partial(self._joined_table, entry, soft_labels, one)))
        soft_labels.rows("train", 0).open()  # here, since several threads may compare ids with one of them
        return Rows(self._schema, tables)

    def close(self) -> None:
        """Stop fetching ahead; a shard that was not fetched yet is fetched when it is read."""
        if "_pool" in vars(self):
            self._pool.shutdown(cancel_futures=True)
            del self._pool
        self._ahead.clear()

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(THREADS)

    @property
    def _remote(self) -> bool:
        return self._store is not None and self._store.remote

    def _error(self, entry: ShardEntry) -> str | None:
        try:
            size = (self.folder / entry.file).stat().st_size
        except FileNotFoundError:
            return None if self._remote else f"{entry.file} is missing"
        wanted = entry.receipt.bytes
        return None if size == wanted else f"{entry.file} has {size} bytes, the manifest says {wanted}"

    def _lazy(self, entry: ShardEntry, table: Callable[[], pa.Table]) -> LazyTable:
        return LazyTable(entry.receipt.rows, table, partial(self._fetch_ahead, entry) if self._remote else None)

    def _fetch_ahead(self, entry: ShardEntry) -> None:
        if not (entry.file in self._opened or entry.file in self._ahead or (self.folder / entry.file).exists()):
            self._ahead[entry.file] = self._pool.submit(self._fetch, entry)

    def _fetch(self, entry: ShardEntry) -> Path:
        """The shard's file in the store's local folder, verified."""
        assert self._store is not None, "only shards of a remote store are fetched"
        receipt = entry.receipt
        try:
            found = self._store.fetch(receipt.key, receipt.files)
        except PipelineError as cause:
            again = f"dvc repro --force --single-item {STAGES[self.manifest.content]}@{self.manifest.task.name}"
            raise ShardMismatch(f"{self.folder / entry.file}: {cause}; if it is lost, make it again: {again}") from cause
        return found.folder / SHARD_FILE

    def _verified(self, entry: ShardEntry) -> Path:
        """The shard's file, of which every byte is as the manifest says."""
        path = self.folder / entry.file
        if self._remote and not path.exists():
            return self._ahead[entry.file].result() if entry.file in self._ahead else self._fetch(entry)
        error = self._error(entry)
        if error is None and sha256_of(path) != entry.receipt.sha256:
            error = f"{entry.file} has other bytes than when it was written (its sha256 differs from the manifest's)"
        if error:
            raise ShardMismatch(f"{self.folder}/{error}; {AGAIN}")
        return path

    def _table(self, entry: ShardEntry) -> pa.Table:
        """The rows of a shard, memory-mapped; verified once."""
        if entry.file in self._opened:
            return self._opened[entry.file]
        named = self.folder / entry.file
        try:
            source = pa.memory_map(str(self._verified(entry)))
        except FileNotFoundError:  # the cache needed the room for another process
            source = pa.memory_map(str(self._fetch(entry)))
        table = pa.ipc.open_file(source).read_all()
        if not table.schema.equals(self._schema) or table.num_rows != entry.receipt.rows:
            version = self.manifest.format_version
            raise ShardMismatch(f"{named} has other columns than format version {version}, or other rows; {AGAIN}")
        written = description_of(table.schema, str(named))["key"]
        check_agreement(f"the key in {named} and the manifest's", entry.receipt.key, written, "Make it again with dvc repro")
        self._opened[entry.file] = table
        return table

    def _joined_table(self, entry: ShardEntry, soft_labels: "Shards", clean: ShardEntry) -> pa.Table:
        """The rows of a shard of variants, if their ids are those of a shard of soft labels, in the same order."""
        table = self._table(entry)
        if not table.column("example_id").equals(soft_labels._table(clean).column("example_id")):
            other = soft_labels.folder / clean.file
            raise ShardMismatch(f"{self.folder / entry.file} has other example ids, or in another order, than {other}; {AGAIN}")
        return table


def _offsets(column: pa.Array) -> tuple[npt.NDArray[np.int32], npt.NDArray[Any]]:
    """Offsets [rows + 1] of the lists or bytes of a column, and all its elements; both share the memory of the file."""
    if pa.types.is_binary(column.type) or pa.types.is_string(column.type):
        _, offsets, values = column.buffers()
        whole = np.frombuffer(values, dtype=np.uint8) if values else np.zeros(0, dtype=np.uint8)
        return np.frombuffer(offsets, dtype=np.int32)[column.offset :], whole
    return column.offsets.to_numpy(), column.values.to_numpy()


def _dtype(column: pa.DataType) -> npt.DTypeLike:
    """Of the elements of a column of lists or bytes."""
    kind: npt.DTypeLike = column.value_type.to_pandas_dtype() if pa.types.is_list(column) else np.uint8
    return kind


def _value(scalar: pa.Scalar) -> Any:
    if scalar.is_valid and pa.types.is_list(scalar.type):
        return scalar.values.to_numpy()
    return memoryview(scalar.as_buffer()) if scalar.is_valid and pa.types.is_binary(scalar.type) else scalar.as_py()
