"""Read shards: verify a set, then give its rows by position from memory-mapped files."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.corpus import Split
from pipeline.shards.manifest import Manifest, ShardEntry, ShardMismatch, check_agreement
from pipeline.shards.schema import Content, description_of, shard_schema
from pipeline.store.keys import sha256_of

Positions = npt.NDArray[np.integer[Any]]

Row = SimpleNamespace
"""One row with the columns of ``shard_schema`` as attributes; lists and bytes share the memory of the mapped file."""

AGAIN = "make it again with dvc repro"


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


class Rows(Sequence[Row]):
    """The rows of several shards in order; training reads many at once with ``lists_at``."""

    def __init__(self, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
        self._schema = schema
        self._batches = [batch for table in tables for batch in table.to_batches() if batch.num_rows]
        self._ends = np.cumsum([batch.num_rows for batch in self._batches])
        self._lists: dict[str, list[tuple[npt.NDArray[np.int32], npt.NDArray[Any]]]] = {}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, position: int) -> Row:  # type: ignore[override]
        ((number, row),) = self._located(np.array([position]))
        return Row(**{name: _value(self._batches[number].column(name)[row]) for name in self._schema.names})

    def has(self, name: str) -> bool:
        """Whether there is a column of that name."""
        return name in self._schema.names

    def column(self, name: str) -> pa.ChunkedArray:
        """One column over all rows, without a copy."""
        return pa.chunked_array([batch.column(name) for batch in self._batches], type=self._schema.field(name).type)

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
        if not len(self):
            raise IndexError("there is no row")
        if name not in self._lists:
            self._lists[name] = [_offsets(batch.column(name)) for batch in self._batches]
        columns = self._lists[name]
        parts = []
        for number, row in self._located(positions):
            offsets, values = columns[number]
            parts.append(values[offsets[row] : offsets[row + 1]])
        lengths = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
        return Lists(np.concatenate(parts) if parts else columns[0][1][:0], lengths)

    def _located(self, positions: Positions) -> Iterable[tuple[int, int]]:
        """The record batch of each position, and the row in it; negative positions do not count from the end."""
        if ((positions < 0) | (positions >= len(self))).any():
            raise IndexError(f"{len(self)} rows have no positions {positions}")
        numbers = np.searchsorted(self._ends, positions, side="right")
        within = positions - np.concatenate([[0], self._ends])[numbers]
        return zip(numbers.tolist(), within.tolist(), strict=True)


class Shards:
    """A complete, verified set of shards in one folder."""

    def __init__(self, folder: Path) -> None:
        """Open and verify a folder; raises a ``ShardMismatch`` that lists every missing or damaged shard."""
        self.folder = folder
        self.manifest = Manifest.read(folder)
        self._schema = shard_schema(self.manifest.content, self.manifest.task.kind, self.manifest.token_types)
        errors = [error for entry in self.manifest.shards if (error := self._error(entry))]
        if errors:
            raise ShardMismatch("\n  - ".join([f"{folder} cannot be trusted; {AGAIN}:", *errors]))

    @classmethod
    def holding(cls, content: Content, folder: Path) -> "Shards":
        """The shards of a folder; raises ``ShardMismatch`` if they have other content."""
        found = cls(folder)
        if found.manifest.content != content:
            wanted, stage = ("soft labels", "soft_label") if content == "soft_labels" else ("variants", "augment")
            raise ShardMismatch(f"{folder} does not hold {wanted}; name a folder that the stage {stage} wrote")
        return found

    def rows(self, split: Split, *variants: int) -> Rows:
        """The rows of some variants of a split, one variant after the other, each in partition order."""
        return Rows(self._schema, (self._table(e) for e in self.manifest.of_split(split) if e.variant in variants))

    def rows_of(self, entry: ShardEntry) -> Rows:
        """The rows of one shard."""
        return Rows(self._schema, [self._table(entry)])

    def _error(self, entry: ShardEntry) -> str | None:
        path = self.folder / entry.file
        if not path.exists():
            return f"{entry.file} is missing"
        size = path.stat().st_size
        if size != entry.receipt.bytes:
            return f"{entry.file} has {size} bytes, the manifest says {entry.receipt.bytes}"
        if sha256_of(path) != entry.receipt.sha256:
            return f"{entry.file} has other bytes than when it was written (its sha256 differs from the manifest's)"
        return None

    def _table(self, entry: ShardEntry) -> pa.Table:
        path = self.folder / entry.file
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        if not table.schema.equals(self._schema):
            raise ShardMismatch(f"{path} has other columns than format version {self.manifest.format_version}; {AGAIN}")
        written = description_of(table.schema, str(path))["key"]
        check_agreement(f"the key in {path} and the manifest's", entry.receipt.key, written, "Make it again with dvc repro")
        return table


def join(examples: Rows, variants: Rows) -> Positions:
    """For each row of ``examples`` the position in ``variants`` of the row with the same id; rejects unmatched rows."""
    ids, others = examples.column("example_id"), variants.column("example_id")
    positions = np.asarray(pc.fill_null(pc.index_in(ids, value_set=others.combine_chunks()), -1), dtype=np.int64)
    missing = int((positions < 0).sum())
    if missing or len(variants) != len(examples) or len(np.unique(positions)) != len(positions):
        raise ShardMismatch(
            f"{missing} of {len(examples)} examples have no variant, and there are {len(variants)} rows of variants: "
            "soft labels and variants were made from different examples; make them again with dvc repro"
        )
    return positions


def _offsets(column: pa.Array) -> tuple[npt.NDArray[np.int32], npt.NDArray[Any]]:
    """Offsets [rows + 1] of the lists or bytes of a column, and all its elements; both share the memory of the file."""
    if pa.types.is_binary(column.type) or pa.types.is_string(column.type):
        _, offsets, values = column.buffers()
        whole = np.frombuffer(values, dtype=np.uint8) if values else np.zeros(0, dtype=np.uint8)
        return np.frombuffer(offsets, dtype=np.int32)[column.offset :], whole
    return column.offsets.to_numpy(), column.values.to_numpy()


def _value(scalar: pa.Scalar) -> Any:
    if scalar.is_valid and pa.types.is_list(scalar.type):
        return scalar.values.to_numpy()
    return memoryview(scalar.as_buffer()) if scalar.is_valid and pa.types.is_binary(scalar.type) else scalar.as_py()
