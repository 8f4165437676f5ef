"""One shard as a piece of work: its key, and how the teacher makes its rows. Knows keys and the store, not Ray."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.augment.partition import Partition
from pipeline.augment.teacher import FrozenTeacher, Inputs
from pipeline.encoding import encode
from pipeline.perturbation import PerturbationSettings
from pipeline.shards.codec import CodecName
from pipeline.shards.manifest import Key, Receipt
from pipeline.shards.schema import shard_schema
from pipeline.shards.store import ShardStore
from pipeline.shards.writer import write_shard
from pipeline.tasks import Split


class Job(Protocol):
    """What a worker can be given."""

    @property
    def name(self) -> str:
        """What a person calls it, in progress lines and errors."""

    def run(self, teacher: FrozenTeacher) -> Any:
        """Do it."""


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

    def run(self, teacher: FrozenTeacher) -> Receipt:
        """Compute the shard, write it to the store and its receipt after it."""


@dataclass(frozen=True)
class ScoreJob:
    """The teacher's logits on the untouched inputs of a partition: variant 0."""

    examples: Partition
    shared_key: Key
    max_length: int
    batch_rows: int
    store: ShardStore
    variant: int = 0

    @property
    def split(self) -> Split:
        return self.examples.split

    @property
    def partition(self) -> int:
        return self.examples.number

    @property
    def key(self) -> Key:
        return self.shared_key | {"variant": 0, "examples": self.examples.examples_hash()}

    @property
    def name(self) -> str:
        return f"scores of {self.split}, partition {self.partition}"

    def run(self, teacher: FrozenTeacher) -> Receipt:
        """Encode the texts and score them."""
        encoded = encode(teacher.tokenizer, self.examples.first, self.examples.second, self.max_length)
        ids = [np.array(row, dtype=np.int32) for row in encoded.input_ids]
        types = None if encoded.token_type_ids is None else [np.array(row, dtype=np.int8) for row in encoded.token_type_ids]
        inputs = Inputs(self.examples.example_ids, ids, types)
        columns = _columns(inputs, 0, self.examples.labels, teacher.logits(inputs, self.batch_rows))
        schema = shard_schema("scores", teacher.task.kind, types is not None)
        path, statistics = self.store.shard_path(self.key), {"truncated": float(encoded.truncated)}
        receipt = write_shard(path, schema, columns, self.key, {}, statistics)
        self.store.finish(receipt)
        return receipt


@dataclass(frozen=True)
class PerturbJob:
    """One perturbed variant of a partition of the train split."""

    inputs: Inputs
    labels: list[float | int | None]
    clean_logits: npt.NDArray[np.float32]
    examples_hash: str
    shared_key: Key
    partition: int
    variant: int
    seed: int
    radius: float
    settings: PerturbationSettings
    codec: CodecName
    batch_rows: int
    store: ShardStore
    split: Split = "train"

    @property
    def key(self) -> Key:
        return self.shared_key | {"variant": self.variant, "examples": self.examples_hash}

    @property
    def name(self) -> str:
        return f"variant {self.variant}, partition {self.partition}"

    def run(self, teacher: FrozenTeacher) -> Receipt:
        """Perturb the rows and have the teacher label them."""
        rows = teacher.perturb(
            self.inputs, self.clean_logits, self.variant, self.seed, self.radius, self.settings, self.codec, self.batch_rows
        )
        columns = _columns(self.inputs, self.variant, self.labels, self.clean_logits) | {
            "delta": [row.delta for row in rows],
            "delta_scale": [row.delta_scale for row in rows],
            "perturbed_logits": [row.logits for row in rows],
            "divergence": [row.divergence for row in rows],
            "flipped": [row.flipped for row in rows],
        }
        statistics = {
            "divergence": float(np.mean([row.divergence for row in rows])),
            "flipped": float(sum(row.flipped for row in rows)),
            "vanished": float(sum(row.vanished for row in rows)),
        }
        schema = shard_schema("perturbations", teacher.task.kind, self.inputs.token_type_ids is not None)
        description = {"codec": self.codec, "width": teacher.width}
        receipt = write_shard(self.store.shard_path(self.key), schema, columns, self.key, description, statistics)
        self.store.finish(receipt)
        return receipt


def _columns(
    inputs: Inputs, variant: int, labels: list[float | int | None], logits: npt.NDArray[np.float32]
) -> dict[str, list[Any]]:
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
