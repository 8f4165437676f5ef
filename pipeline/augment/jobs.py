"""One shard as a piece of work: its key, what a worker needs for it, and how its rows are made. Knows the store, not Ray.

The driver holds jobs, which are small; it reads a job's rows only when a worker takes it, and they travel with it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.augment.columns import (
    candidates_columns,
    packed_candidates,
    perturbations_columns,
    read_candidates,
    scores_columns,
    statistics_of,
    unpacked_candidates,
)
from pipeline.augment.inputs import Inputs, Packed
from pipeline.augment.masked_lm import RowCandidates
from pipeline.augment.model_set import ModelSet
from pipeline.augment.partition import Partition, Place
from pipeline.augment.teacher import FrozenTeacher
from pipeline.augment.variants import Making, Scored, make_variant
from pipeline.config.errors import PipelineError
from pipeline.corpus.encoding import encode
from pipeline.corpus.task import Split
from pipeline.shards.manifest import Key, Receipt, ShardEntry
from pipeline.shards.reader import Shards
from pipeline.shards.schema import candidates_schema, shard_schema
from pipeline.shards.store import ShardStore
from pipeline.shards.writer import write_shard


@dataclass(frozen=True)
class Done:
    """What a worker says of finished work."""

    result: Any
    """A receipt, or what else the work gives."""
    notes: tuple[str, ...] = ()
    """What a person should know and no product says."""


class Work(Protocol):
    """What a worker does; it travels with all that it needs beside the models."""

    def run(self, models: ModelSet, store: ShardStore) -> Done:
        """Do it; a shard goes into the store."""


class Job(Protocol):
    """What the driver has to give away."""

    @property
    def name(self) -> str:
        """What a person calls it, in progress lines and errors."""

    def work(self) -> Work:
        """Read what a worker needs for it."""


class ShardJob(Job, Protocol):
    """A job that finishes one shard in the store."""

    @property
    def key(self) -> Key:
        """What decides the shard's bytes."""

    @property
    def split(self) -> Split: ...

    @property
    def partition(self) -> int: ...

    @property
    def variant(self) -> int: ...


@dataclass(frozen=True)
class ScoreJob:
    """The teacher's logits on the untouched inputs of a partition: variant 0."""

    place: Place
    shared_key: Key
    batch_rows: int
    variant: int = 0

    @property
    def split(self) -> Split:
        return self.place.split

    @property
    def partition(self) -> int:
        return self.place.number

    @property
    def key(self) -> Key:
        return self.shared_key | {"variant": 0, "examples": self.place.examples_hash}

    @property
    def name(self) -> str:
        return f"scores of {self.split}, partition {self.partition}"

    def work(self) -> "ScoreWork":
        """The texts.

        Raises:
            PipelineError: they are no longer those that the key names.
        """
        examples = self.place.read()
        if examples.examples_hash() != self.place.examples_hash:
            raise PipelineError(f"the tables in {self.place.prepared} were changed while this run was going; start it again")
        return ScoreWork(examples, self.key, self.key["max_length"], self.batch_rows)


@dataclass(frozen=True)
class ScoreWork:
    """Encode texts and score them."""

    examples: Partition
    key: Key
    max_length: int
    batch_rows: int

    def run(self, models: ModelSet, store: ShardStore) -> Done:
        """Write the shard of scores."""
        inputs, truncated = self.encoded(models.teacher)
        logits = models.teacher.logits(inputs, models.batches, self.batch_rows)
        columns = scores_columns(inputs, self.examples.labels, logits)
        schema = shard_schema("scores", models.teacher.task.kind, inputs.token_type_ids is not None)
        statistics = {"truncated": float(truncated)}
        receipt = kept(store, self.key, lambda path: write_shard(path, schema, columns, self.key, {}, statistics))
        return Done(receipt, tuple(models.batches.notes()))

    def encoded(self, teacher: FrozenTeacher) -> tuple[Inputs, int]:
        """The texts as token ids, and how many were cut."""
        encoded = encode(teacher.tokenizer, self.examples.first, self.examples.second, self.max_length)
        return Inputs(self.examples.example_ids, encoded.input_ids, encoded.token_type_ids), encoded.truncated


@dataclass(frozen=True)
class ScoreShard:
    """One shard of scores, read when it is needed."""

    source: Shards
    entry: ShardEntry

    @property
    def examples_hash(self) -> str:
        """Names the examples."""
        return str(self.entry.receipt.key["examples"])

    def read(self) -> tuple[Scored, list[float | int | None]]:
        """The rows, and their labels as the schema wants them."""
        shard = self.source.rows_of(self.entry)
        types = shard.lists("token_type_ids") if self.source.manifest.token_types else None
        inputs = Inputs(shard.column("example_id").to_pylist(), shard.lists("input_ids"), types)
        return Scored(inputs, shard.labels(), shard.matrix("teacher_logits")), shard.column("label").to_pylist()


@dataclass(frozen=True)
class CandidatesJob:
    """The words that a masked language model finds likely at every place of a partition's texts."""

    scores: ScoreShard
    shared_key: Key
    variant: int = 0
    split: Split = "train"

    @property
    def partition(self) -> int:
        return self.scores.entry.partition

    @property
    def key(self) -> Key:
        return self.shared_key | {"examples": self.scores.examples_hash}

    @property
    def name(self) -> str:
        return f"word candidates, partition {self.partition}"

    def work(self) -> "CandidatesWork":
        """The token ids."""
        return CandidatesWork(self.scores.read()[0].inputs, self.key)


@dataclass(frozen=True)
class CandidatesWork:
    """Ask a masked language model for candidates."""

    inputs: Inputs
    key: Key

    def run(self, models: ModelSet, store: ShardStore) -> Done:
        """Write the candidates; they serve every variant of these rows."""
        found = models.masked_lm.candidates(self.inputs.input_ids, self.inputs.token_type_ids)
        schema, columns = candidates_schema(), candidates_columns(self.inputs, found)
        receipt = kept(store, self.key, lambda path: write_shard(path, schema, columns, self.key, {}, {}))
        return Done(receipt)


@dataclass(frozen=True)
class VariantJob:
    """One variant of a partition of the train split."""

    scores: ScoreShard
    shared_key: Key
    deciding: Key
    making: Making
    candidates: Path | None = None
    """Where the words lie that may stand for others, if the recipe replaces words."""
    split: Split = "train"

    @property
    def variant(self) -> int:
        return self.making.variant

    @property
    def partition(self) -> int:
        return self.scores.entry.partition

    @property
    def key(self) -> Key:
        return self.shared_key | self.deciding | {"variant": self.variant, "examples": self.scores.examples_hash}

    @property
    def name(self) -> str:
        return f"variant {self.variant}, partition {self.partition}"

    def work(self) -> "VariantWork":
        """The rows with their scores."""
        scored, labels = self.scores.read()
        candidates = None if self.candidates is None else read_candidates(self.candidates)
        return VariantWork(scored, labels, candidates, self.making, self.key)


@dataclass(frozen=True)
class VariantWork:
    """Make the variant and have the teacher label it."""

    scored: Scored
    labels: list[float | int | None]
    candidates: Sequence[RowCandidates] | None
    making: Making
    key: Key

    def __reduce__(self) -> tuple[Any, ...]:
        words = None if self.candidates is None else packed_candidates(self.candidates)
        return _variant_work, (self.scored, self.labels, words, self.making, self.key)

    def run(self, models: ModelSet, store: ShardStore) -> Done:
        """Write the shard of the variant."""
        made = make_variant(models, self.scored, self.candidates, self.making)
        columns = perturbations_columns(made, self.making.variant, self.labels, self.scored.logits)
        schema = shard_schema("perturbations", models.teacher.task.kind, made.inputs.token_type_ids is not None)
        coding = {"codec": self.making.settings.codec, "width": models.teacher.width}
        description = coding if self.making.moves else {}
        statistics = statistics_of(made)
        receipt = kept(store, self.key, lambda path: write_shard(path, schema, columns, self.key, description, statistics))
        return Done(receipt, tuple(models.batches.notes()))


def kept(store: ShardStore, key: Key, write: Callable[[Path], Receipt]) -> Receipt:
    """Write a shard into the store and its receipt after it.

    Raises:
        PipelineError: the store cannot be written to; nothing half-written is left.
    """
    try:
        receipt = write(store.shard_path(key))
        store.finish(receipt)
    except OSError as cause:
        raise PipelineError(f"the store {store.folder} does not take it: {cause.strerror or cause}") from cause
    return receipt


def _variant_work(
    scored: Scored, labels: list[float | int | None], words: list[Packed] | None, making: Making, key: Key
) -> VariantWork:
    """What travelled, as it was."""
    return VariantWork(scored, labels, None if words is None else unpacked_candidates(words), making, key)
