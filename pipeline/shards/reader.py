"""Read shards: reject what is incomplete, damaged or of another kind; then rows by position over memory-mapped files."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.corpus import Split
from pipeline.corpus.task import Floats
from pipeline.shards.manifest import Manifest, ShardEntry, ShardMismatch, check_agreement
from pipeline.shards.schema import Content, description_of, shard_schema
from pipeline.store.keys import sha256_of

Positions = npt.NDArray[np.integer[Any]]


ListView = tuple[npt.NDArray[np.int32], npt.NDArray[Any]]
"""Of a column of lists: where the list of each row begins and ends, and all elements, as numpy views of the mapped file."""


@dataclass(frozen=True)
class Row:
    """One row of a shard; arrays are views of the mapped file, never copies."""

    example_id: str
    variant: int
    input_ids: npt.NDArray[np.int32]
    token_type_ids: npt.NDArray[np.int8] | None
    label: float | None
    teacher_logits: Floats
    partner_ids: npt.NDArray[np.int32] | None = None
    own_weight: float | None = None
    delta: memoryview | None = None
    delta_scale: Floats | None = None
    perturbed_logits: Floats | None = None


@dataclass(frozen=True)
class Lists:
    """Lists of several rows: the elements of one row after those of the other, and how many each row has."""

    values: npt.NDArray[Any]
    lengths: npt.NDArray[np.int64]

    def inside(self, longest: int) -> npt.NDArray[np.bool_]:
        """Where [rows, ``longest``] a row has an element."""
        return np.arange(longest) < self.lengths[:, None]

    def padded(self, fill: float, longest: int, kind: npt.DTypeLike) -> npt.NDArray[Any]:
        """The rows under each other [rows, ``longest``], filled up on the right."""
        padded = np.full((len(self.lengths), longest), fill, dtype=kind)
        padded[self.inside(longest)] = self.values
        return padded


class Rows(Sequence[Row]):
    """The rows of several shards in order, as one sequence.

    One row at a time to look at; ``lists_at`` is the way of a training, which asks for many rows at once.
    """

    def __init__(self, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
        self._schema = schema
        self._batches = [batch for table in tables for batch in table.to_batches() if batch.num_rows]
        self._ends = np.cumsum([batch.num_rows for batch in self._batches])
        self._views: dict[str, list[ListView]] = {}
        self._numbers: dict[str, npt.NDArray[np.float32]] = {}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, position: int) -> Row:  # type: ignore[override]
        if not 0 <= position < len(self):
            raise IndexError(position)
        number = int(np.searchsorted(self._ends, position, side="right"))
        batch = self._batches[number]
        return _row(batch, position - (int(self._ends[number]) - batch.num_rows))

    def has(self, name: str) -> bool:
        """Whether there is a column of that name."""
        return name in self._schema.names

    def column(self, name: str) -> pa.ChunkedArray:
        """One column over all rows; copies nothing."""
        return pa.chunked_array([batch.column(name) for batch in self._batches], type=self._schema.field(name).type)

    def lengths(self) -> npt.NDArray[np.int64]:
        """Number of tokens of each row."""
        return np.asarray(pc.list_value_length(self.column("input_ids")), dtype=np.int64)

    def lists_at(self, name: str, positions: Positions) -> Lists:
        """What a column of lists or bytes holds at some positions, copied from the mapped files; nothing where it is null.

        Raises:
            IndexError: there is no such position, or no row at all.
        """
        if not len(self):
            raise IndexError("there is no row")
        views = self._views.get(name) or self._views.setdefault(name, [_list_view(b.column(name)) for b in self._batches])
        parts = [_part(views[number], row) for number, row in self._located(positions)]
        lengths = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
        return Lists(np.concatenate(parts) if parts else views[0][1][:0], lengths)

    def numbers_at(self, name: str, positions: Positions) -> npt.NDArray[np.float32]:
        """What a column of numbers holds at some positions, [rows]; NaN where it is null.

        Raises:
            IndexError: there is no such position.
        """
        if name not in self._numbers:
            self._numbers[name] = np.asarray(pc.fill_null(self.column(name).cast(pa.float32()), float("nan")))
        return self._numbers[name][self._checked(positions)]

    def texts_at(self, name: str, positions: Positions) -> list[str]:
        """What a column of texts holds at some positions.

        Raises:
            IndexError: there is no such position.
        """
        return [self._batches[number].column(name)[row].as_py() for number, row in self._located(positions)]

    def _located(self, positions: Positions) -> Iterator[tuple[int, int]]:
        """Of each position the record batch and the row there."""
        numbers = np.searchsorted(self._ends, self._checked(positions), side="right")
        within = positions - np.concatenate([[0], self._ends])[numbers]
        return zip(numbers.tolist(), within.tolist(), strict=True)

    def _checked(self, positions: Positions) -> Positions:
        """Reject positions that no row has; none counts from the end."""
        if ((positions < 0) | (positions >= len(self))).any():
            raise IndexError(f"{len(self)} rows have no positions {positions}")
        return positions

    def matrix(self, name: str) -> npt.NDArray[np.float32]:
        """A column of equally long lists as [rows, values]."""
        flat = np.asarray(pc.list_flatten(self.column(name)), dtype=np.float32)
        return flat.reshape(len(self), -1 if len(self) else 0)

    def lists(self, name: str) -> list[npt.NDArray[Any]]:
        """A column of lists as one array a row; views of the mapped file."""
        found: list[npt.NDArray[Any]] = []
        for batch in self._batches:
            column = batch.column(name)
            ends = column.offsets.to_numpy()
            found += np.split(column.values.to_numpy()[ends[0] : ends[-1]], (ends - ends[0])[1:-1])
        return found

    def labels(self) -> npt.NDArray[np.float64]:
        """The labels as numbers, NaN where there is none."""
        return np.asarray(pc.fill_null(self.column("label").cast(pa.float64()), float("nan")))


class Shards:
    """A complete, verified set of shards in one folder."""

    def __init__(self, folder: Path) -> None:
        """Open and verify a folder.

        Raises:
            ShardMismatch: no manifest, another format version, or a shard that is missing, damaged or not the one listed.
        """
        self.folder = folder
        self.manifest = Manifest.read(folder)
        self._schema = shard_schema(self.manifest.content, self.manifest.task.kind, self.manifest.token_types)
        errors = [error for entry in self.manifest.shards if (error := self._error(entry))]
        if errors:
            raise ShardMismatch("\n  - ".join([f"{folder} cannot be trusted; make it again with dvc repro:", *errors]))

    @classmethod
    def holding(cls, content: Content, folder: Path) -> "Shards":
        """The shards of a folder, if they are what it was named for.

        Raises:
            ShardMismatch: they are not, or as ``Shards`` itself.
        """
        found = cls(folder)
        if found.manifest.content != content:
            wanted = "the soft_labels of clean inputs" if content == "soft_labels" else "variants"
            stage = "score" if content == "soft_labels" else "augment"
            raise ShardMismatch(f"{folder} holds not {wanted}, which the stage {stage} writes; name that folder")
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
            version = self.manifest.format_version
            raise ShardMismatch(
                f"{path} has other columns than format version {version} asks for; make it again with dvc repro"
            )
        written = description_of(table.schema, str(path))["key"]
        check_agreement(f"the key in {path} and the manifest's", entry.receipt.key, written, "Make it again with dvc repro")
        return table


def join(examples: Rows, variants: Rows) -> Positions:
    """For each row of ``examples`` the position in ``variants`` of the row with the same id.

    Raises:
        ShardMismatch: an example without its variant, or a variant without its example.
    """
    ids, others = examples.column("example_id"), variants.column("example_id")
    positions = np.asarray(pc.fill_null(pc.index_in(ids, value_set=others.combine_chunks()), -1), dtype=np.int64)
    missing = int((positions < 0).sum())
    if missing or len(variants) != len(examples) or len(np.unique(positions)) != len(positions):
        raise ShardMismatch(
            f"{missing} of {len(examples)} examples have no perturbed row, and there are {len(variants)} perturbed rows: "
            "soft_labels and perturbations were made from different examples; make them again with dvc repro"
        )
    return positions


def _row(batch: pa.RecordBatch, index: int) -> Row:
    names = batch.schema.names
    label = batch.column("label")[index].as_py()
    perturbed = "delta" in names
    coded = perturbed and batch.column("delta")[index].is_valid
    mixed = perturbed and batch.column("partner_ids")[index].is_valid
    return Row(
        example_id=batch.column("example_id")[index].as_py(),
        variant=batch.column("variant")[index].as_py(),
        input_ids=_list(batch, "input_ids", index),
        token_type_ids=_list(batch, "token_type_ids", index) if "token_type_ids" in names else None,
        label=None if label is None else float(label),
        teacher_logits=_list(batch, "teacher_logits", index),
        partner_ids=_list(batch, "partner_ids", index) if mixed else None,
        own_weight=batch.column("own_weight")[index].as_py() if mixed else None,
        delta=memoryview(batch.column("delta")[index].as_buffer()) if coded else None,
        delta_scale=_list(batch, "delta_scale", index) if coded else None,
        perturbed_logits=_list(batch, "perturbed_logits", index) if perturbed else None,
    )


def _list_view(column: pa.Array) -> ListView:
    if pa.types.is_binary(column.type) or pa.types.is_string(column.type):
        _, offsets, values = column.buffers()
        whole = np.frombuffer(values, dtype=np.uint8) if values else np.zeros(0, dtype=np.uint8)
        return np.frombuffer(offsets, dtype=np.int32)[column.offset :], whole
    return column.offsets.to_numpy(), column.values.to_numpy()


def _part(view: ListView, row: int) -> npt.NDArray[Any]:
    offsets, values = view
    return values[offsets[row] : offsets[row + 1]]


def _list(batch: pa.RecordBatch, name: str, index: int) -> Any:
    """One list of a column as a numpy view of the mapped file."""
    return batch.column(name)[index].values.to_numpy()
