"""Which examples become one shard. Decides the bytes; knows prepared tables, not who computes them or where."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.corpus import Split
from pipeline.corpus.seeding import seed_of
from pipeline.store.keys import hash_of

ROWS_A_READ = 4096
"""So many rows of a table are in memory at once while it is cut."""


@dataclass(frozen=True)
class Partition:
    """The examples of one shard."""

    example_ids: list[str]
    first: list[str]
    second: list[str] | None
    labels: list[float | int | None]

    def examples_hash(self) -> str:
        """Names the examples by all that is given of them."""
        return hash_of([self.example_ids, self.first, self.second, self.labels])


@dataclass(frozen=True)
class Place:
    """Where the examples of one shard stand in the prepared table of their split."""

    prepared: Path
    split: Split
    number: int
    start: int
    stop: int
    examples_hash: str

    def read(self) -> Partition:
        """The examples; reads only the row groups that hold them."""
        with pq.ParquetFile(self.prepared / f"{self.split}.parquet") as file:
            groups = range(file.metadata.num_row_groups)
            ends = np.cumsum([file.metadata.row_group(group).num_rows for group in groups])
            first, last = (int(np.searchsorted(ends, at, side="right")) for at in (self.start, self.stop - 1))
            before = int(ends[first - 1]) if first else 0
            table = file.read_row_groups(list(range(first, last + 1)))
        return _partition(table.slice(self.start - before, self.stop - self.start))


def places(prepared: Path, split: Split, rows: int) -> Iterator[Place]:
    """Cut the table of a split into partitions of about ``rows`` examples, reading it once and keeping little of it."""
    with pq.ParquetFile(prepared / f"{split}.parquet") as file:
        held, start, number = file.schema_arrow.empty_table(), 0, 0
        for part, last in _with_last(file.iter_batches(ROWS_A_READ)):
            held = pa.concat_tables([held, pa.table(part)])
            runs = list(cut(held.column("id").to_pylist(), rows))
            for run in runs if last else runs[:-1]:
                partition = _partition(held.slice(run.start, len(run)))
                yield Place(prepared, split, number, start, start + len(run), partition.examples_hash())
                start, number = start + len(run), number + 1
            held = held.slice(runs[-1].start).combine_chunks()


def cut(example_ids: Iterable[str], rows: int) -> Iterator[range]:
    """Cut a split into runs of about ``rows`` examples, at places that the examples themselves decide.

    A run ends after an example whose hash says so (one in ``rows``/2), not before ``rows``/2 and at the latest at
    2 × ``rows``. So a row that is added, changed or removed alters its own run, and the cuts after it fall where they fell
    before: only the shards that changed are computed again (content-defined chunking, as in rsync and its successors).
    """
    start = stop = 0
    for stop, example_id in enumerate(example_ids, start=1):
        length = stop - start
        chosen = length >= rows / 2 and seed_of(example_id) % max(rows // 2, 1) == 0
        if chosen or length >= 2 * rows:
            yield range(start, stop)
            start = stop
    if start < stop:
        yield range(start, stop)


def _with_last(parts: Iterable[Any]) -> Iterator[tuple[Any, bool]]:
    """Each item, and whether it is the last."""
    before: list[Any] = []
    for part in parts:
        for held in before:
            yield held, False
        before = [part]
    for held in before:
        yield held, True


def _partition(table: pa.Table) -> Partition:
    columns = table.to_pydict()
    return Partition(columns["id"], columns["text_a"], columns.get("text_b"), columns["label"])
