"""One shard as a piece of work: its key, what a worker needs for it, and how its rows are made. Knows the store, not Ray.

The driver holds jobs, which are small; it reads a job's rows only when a worker takes it, and they travel with it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from pipeline.augment.inputs import Inputs, Packed, Partner, packed, unpacked
from pipeline.augment.masked_lm import RowCandidates
from pipeline.augment.model_set import ModelSet
from pipeline.augment.partition import Partition, Place
from pipeline.augment.teacher import FrozenTeacher
from pipeline.augment.variants import Made, Making, Scored, make_variant
from pipeline.encoding import encode
from pipeline.errors import PipelineError
from pipeline.shards.manifest import Key, Receipt, ShardEntry
from pipeline.shards.reader import Rows, Shards
from pipeline.shards.schema import candidates_schema, shard_schema
from pipeline.shards.store import ShardStore
from pipeline.shards.writer import write_shard
from pipeline.tasks import Floats, Split


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
        layers: list[int] = self.key["hidden"]
        logits, states = models.teacher.answers(inputs, models.batches, self.batch_rows, layers)
        columns = _columns(inputs, 0, self.examples.labels, logits) | ({"hidden": list(states)} if layers else {})
        schema = shard_schema("scores", models.teacher.task.kind, inputs.token_type_ids is not None, bool(layers))
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
        columns: dict[str, list[Any]] = {
            "example_id": list(self.inputs.example_ids),
            "input_ids": list(self.inputs.input_ids),
            "starts": [row.starts for row in found],
            "stops": [row.stops for row in found],
            "candidates": [row.ids for row in found],
        }
        schema = candidates_schema()
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
        words = None if self.candidates is None else _packed_words(self.candidates)
        return _variant_work, (self.scored, self.labels, words, self.making, self.key)

    def run(self, models: ModelSet, store: ShardStore) -> Done:
        """Write the shard of the variant."""
        made = make_variant(models, self.scored, self.candidates, self.making)
        columns = _columns(made.inputs, self.making.variant, self.labels, self.scored.logits) | _variant_columns(made)
        schema = shard_schema("perturbations", models.teacher.task.kind, made.inputs.token_type_ids is not None)
        coding = {"codec": self.making.settings.codec, "width": models.teacher.width}
        description = coding if self.making.moves else {}
        statistics = _statistics(made)
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


def read_candidates(path: Path) -> list[RowCandidates]:
    """What a ``CandidatesJob`` wrote."""
    with pa.ipc.open_file(pa.memory_map(str(path))) as file:
        rows = Rows(candidates_schema(), [file.read_all()])
    columns = [rows.lists(name) for name in ("starts", "stops", "candidates")]
    return [RowCandidates(*row) for row in zip(*columns, strict=True)]


def _packed_words(candidates: Sequence[RowCandidates]) -> list[Packed]:
    return [packed([getattr(row, field.name) for row in candidates]) for field in fields(RowCandidates)]


def _variant_work(
    scored: Scored, labels: list[float | int | None], words: list[Packed] | None, making: Making, key: Key
) -> VariantWork:
    """What travelled, as it was."""
    rows = None if words is None else zip(*map(unpacked, words), strict=True)
    return VariantWork(scored, labels, None if rows is None else [RowCandidates(*row) for row in rows], making, key)


def _variant_columns(made: Made) -> dict[str, list[Any]]:
    partners: Sequence[Partner | None] = made.inputs.partners or [None] * len(made.labels)
    return {
        "partner_id": [None if partner is None else partner.example_id for partner in partners],
        "partner_ids": [None if partner is None else partner.input_ids for partner in partners],
        "own_weight": [None if partner is None else partner.own_weight for partner in partners],
        "delta": [label.delta for label in made.labels],
        "delta_scale": [label.delta_scale for label in made.labels],
        "perturbed_logits": [label.logits for label in made.labels],
        "divergence": [label.divergence for label in made.labels],
        "flipped": [label.flipped for label in made.labels],
    }


def _statistics(made: Made) -> dict[str, float]:
    return {
        "divergence": float(np.mean([label.divergence for label in made.labels])),
        "flipped": float(sum(label.flipped for label in made.labels)),
        "vanished": float(sum(label.vanished for label in made.labels)),
        "shortened": float(sum(label.shortened for label in made.labels)),
    }


def _columns(inputs: Inputs, variant: int, labels: list[float | int | None], logits: Floats) -> dict[str, list[Any]]:
    """The columns that scores and perturbations share."""
    types = {} if inputs.token_type_ids is None else {"token_type_ids": list(inputs.token_type_ids)}
    return {
        "example_id": list(inputs.example_ids),
        "variant": [variant] * len(inputs.example_ids),
        "input_ids": list(inputs.input_ids),
        **types,
        "label": labels,
        "teacher_logits": list(logits),
    }
