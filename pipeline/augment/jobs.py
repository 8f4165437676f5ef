"""Jobs, which the driver sends, and their work, which a worker does: soft labels and replacement candidates of words.

A job is small: what it reads, texts and shards of soft labels, is in the store under keys that the job names.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.augment.batches import Arrays, Inputs
from pipeline.augment.candidates import candidates_columns
from pipeline.augment.teacher import ModelSet
from pipeline.config.corpus import Split
from pipeline.config.errors import PipelineError
from pipeline.corpus.encoding import encode
from pipeline.corpus.seeding import parts_of, seeds_of
from pipeline.shards.manifest import SHARD_FILE, Receipt, ShardEntry
from pipeline.shards.reader import Positions, Rows
from pipeline.shards.schema import candidates_schema, shard_schema
from pipeline.shards.writer import write_shard
from pipeline.store.keys import Key, hash_of
from pipeline.store.store import Facts, Store, needed, writing_to

ROWS_A_READ = 4096
"""Rows of a table that are read at once."""

EXAMPLES_FILE = "examples.parquet"
"""The file of an entry with the examples of a partition."""


@dataclass(frozen=True)
class Done:
    """The result of finished work, such as a receipt, and messages to the user."""

    result: Any
    notes: tuple[str, ...] = ()


Work = Callable[[ModelSet, Store], Done]
"""What a worker calls; it reads its rows from the store and writes its shard there."""


class Job(Protocol):
    """A unit of work, with a name for progress lines and errors."""

    @property
    def name(self) -> str: ...

    @property
    def work(self) -> Work:
        """Small, since it is sent to a worker."""

    @property
    def prepare(self) -> Callable[[Store], None]:
        """Puts what the work reads into the store; called by the driver just before the job is sent."""


def nothing_to_prepare(store: Store) -> None:
    """All that the work reads is in the store."""


@dataclass(frozen=True)
class ShardJob:
    """Writes one shard, which is decided by its key."""

    name: str
    key: Key
    split: Split
    variant: int
    partition: int
    rows: int
    work: Work
    prepare: Callable[[Store], None] = nothing_to_prepare


def kept(store: Store, key: Key, write: Callable[[Path], Receipt]) -> Receipt:
    """Put a shard that ``write`` writes into the store; raises ``PipelineError`` if that fails, and leaves no partial file."""
    facts: Facts = {}
    with writing_to(store), store.put(key, facts) as folder:
        receipt = write(folder / SHARD_FILE)
        facts |= receipt.facts()
    return receipt


Examples = dict[str, list[Any]]
"""The examples of one shard as columns: id, text_a, text_b of pairs, and label."""


def hash_of_examples(examples: Examples) -> str:
    """Hash of ids, texts and labels."""
    return hash_of([examples["id"], examples["text_a"], examples.get("text_b"), examples["label"]])


@dataclass(frozen=True)
class Place:
    """Position of a shard's examples in the prepared table of their split."""

    prepared: Path
    split: Split
    number: int
    start: int
    stop: int
    examples_hash: str

    def read(self) -> Examples:
        """The examples, from the row groups that hold them."""
        with pq.ParquetFile(self.prepared / f"{self.split}.parquet") as file:
            groups = range(file.metadata.num_row_groups)
            ends = np.cumsum([file.metadata.row_group(group).num_rows for group in groups])
            first, last = (int(np.searchsorted(ends, at, side="right")) for at in (self.start, self.stop - 1))
            before = int(ends[first - 1]) if first else 0
            table = file.read_row_groups(list(range(first, last + 1)))
        examples: Examples = table.slice(self.start - before, self.stop - self.start).to_pydict()
        return examples


def places(prepared: Path, split: Split, rows: int) -> Iterator[Place]:
    """Cut the table of a split into partitions of about ``rows`` examples, with few rows in memory at a time."""
    with pq.ParquetFile(prepared / f"{split}.parquet") as file, pq.ParquetFile(prepared / f"{split}.parquet") as again:
        ids = chain.from_iterable(part.column(0).to_pylist() for part in file.iter_batches(ROWS_A_READ, columns=["id"]))
        parts, held = again.iter_batches(ROWS_A_READ), again.schema_arrow.empty_table()
        for number, run in enumerate(cut(ids, rows)):
            while held.num_rows < len(run):
                held = pa.concat_tables([held, pa.table(next(parts))])
            digest = hash_of_examples(held.slice(0, len(run)).to_pydict())
            yield Place(prepared, split, number, run.start, run.stop, digest)
            held = held.slice(len(run)).combine_chunks()


def cut(example_ids: Iterable[str], rows: int) -> Iterator[range]:
    """Cut a split into runs of about ``rows`` examples by content-defined chunking, as in rsync.

    A run ends after an example that its hash selects (one in ``rows``/2), after at least ``rows``/2 and at most 2 × ``rows``
    examples. An added, changed or removed row alters its own run; later cuts stay, so few shards are computed again.
    """
    start = stop = 0
    selected = chain.from_iterable((seeds_of(part) % max(rows // 2, 1) == 0).tolist() for part in parts_of(example_ids))
    for stop, chosen in enumerate(selected, start=1):
        length = stop - start
        if (chosen and length >= rows / 2) or length >= 2 * rows:
            yield range(start, stop)
            start = stop
    if start < stop:
        yield range(start, stop)


def soft_label_job(place: Place, shared_key: Key, batch_rows: int) -> ShardJob:
    """The teacher's logits on the clean inputs of a partition: variant 0."""
    key = shared_key | {"variant": 0, "examples": place.examples_hash}
    name = f"soft labels of {place.split}, partition {place.number}"
    work, prepare = partial(write_soft_labels, key, batch_rows), partial(put_examples, place)
    return ShardJob(name, key, place.split, 0, place.number, place.stop - place.start, work, prepare)


def examples_key(examples_hash: str) -> Key:
    """The key of the entry that holds the examples of a partition while their soft labels are computed."""
    return {"content": "examples", "examples": examples_hash}


def put_examples(place: Place, store: Store) -> None:
    """Put the examples of a partition into the store; raises ``PipelineError`` if the table changed since it was cut."""
    key = examples_key(place.examples_hash)
    if store.get(key) is not None:
        return
    examples = place.read()
    if hash_of_examples(examples) != place.examples_hash:
        raise PipelineError(f"the tables in {place.prepared} were changed during this run; start it again")
    with writing_to(store), store.put(key) as folder:
        pq.write_table(pa.table(examples), folder / EXAMPLES_FILE)


def read_examples(examples_hash: str, store: Store) -> Examples:
    """The examples that ``put_examples`` put."""
    entry = needed(store, examples_key(examples_hash), "the texts of its partition")
    examples: Examples = pq.read_table(entry.folder / EXAMPLES_FILE).to_pydict()
    return examples


def write_soft_labels(key: Key, batch_rows: int, models: ModelSet, store: Store) -> Done:
    """Encode texts, run the teacher and write the shard."""
    teacher, examples = models.teacher, read_examples(key["examples"], store)
    encoded = encode(teacher.tokenizer, examples["text_a"], examples.get("text_b"), key["max_length"])
    inputs = Inputs(examples["id"], encoded.input_ids, encoded.token_type_ids)
    columns = inputs.columns(0, examples["label"], teacher.logits(inputs, models.batches, batch_rows))
    schema = shard_schema("soft_labels", teacher.task.kind, inputs.token_type_ids is not None)
    statistics = {"truncated": float(encoded.truncated)}
    receipt = kept(store, key, lambda path: write_shard(path, schema, columns, key, {}, statistics))
    return Done(receipt, models.batches.notes())


def rows_of(receipt: Receipt, store: Store) -> Rows:
    """The rows of a shard in the store, verified."""
    return Rows.in_file(store.fetch(receipt.key, receipt.files).folder / SHARD_FILE)


def read_inputs(rows: Rows, positions: Positions | None = None) -> Inputs:
    """Token ids of all rows of shards, or of those at some positions."""
    at = np.arange(len(rows)) if positions is None else positions
    ids = Arrays.of(rows.lists_at("input_ids", at))
    types = Arrays.of(rows.lists_at("token_type_ids", at)) if rows.has("token_type_ids") else None
    return Inputs(rows.column("example_id").take(at).to_pylist(), ids, types)


def candidates_job(entry: ShardEntry, shared_key: Key) -> ShardJob:
    """The words of a partition's texts that a masked language model proposes as replacements."""
    key, number, receipt = shared_key | {"examples": entry.receipt.key["examples"]}, entry.partition, entry.receipt
    work = partial(write_candidates, key, receipt)
    return ShardJob(f"word candidates, partition {number}", key, "train", 0, number, receipt.rows, work)


def write_candidates(key: Key, soft_labels: Receipt, models: ModelSet, store: Store) -> Done:
    """Run the masked language model and write the candidates, which every variant of these rows uses."""
    inputs = read_inputs(rows_of(soft_labels, store))
    columns = candidates_columns(inputs, models.masked_lm.candidates(inputs))
    receipt = kept(store, key, lambda path: write_shard(path, candidates_schema(), columns, key, {}, {}))
    return Done(receipt, models.masked_lm.batches.notes())
