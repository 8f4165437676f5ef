"""One variant of a partition as a job, and its rows as the columns of a shard."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.augment.columns import Columns, packed_candidates, read_candidates, shared_columns, unpacked_candidates
from pipeline.augment.inputs import Packed, Partner
from pipeline.augment.jobs import Done, kept
from pipeline.augment.masked_lm import RowCandidates
from pipeline.augment.model_set import ModelSet
from pipeline.augment.scoring import ScoreShard
from pipeline.augment.variants import Made, Making, Scored, make_variant
from pipeline.corpus.task import Floats, Split
from pipeline.shards.schema import shard_schema
from pipeline.shards.writer import write_shard
from pipeline.store.hashing import Key
from pipeline.store.store import Store


def read_scored(scores: ScoreShard) -> tuple[Scored, list[float | int | None]]:
    """The rows of a shard of scores, and their labels as the schema stores them."""
    rows = scores.rows()
    return Scored(scores.inputs(), rows.labels(), rows.matrix("teacher_logits")), rows.column("label").to_pylist()


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
        scored, labels = read_scored(self.scores)
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

    def run(self, models: ModelSet, store: Store) -> Done:
        """Write the shard of the variant."""
        made = make_variant(models, self.scored, self.candidates, self.making)
        columns = variant_columns(made, self.making.variant, self.labels, self.scored.logits)
        schema = shard_schema("perturbations", models.teacher.task.kind, made.inputs.token_type_ids is not None)
        coding = {"codec": self.making.settings.codec, "width": models.teacher.width}
        description = coding if self.making.moves else {}
        statistics = statistics_of(made)
        receipt = kept(store, self.key, lambda path: write_shard(path, schema, columns, self.key, description, statistics))
        return Done(receipt, tuple(models.batches.notes()))


def variant_columns(made: Made, variant: int, labels: list[float | int | None], logits: Floats) -> Columns:
    """Of one variant; ``logits`` [rows, outputs] are the teacher's on the untouched inputs."""
    partners: Sequence[Partner | None] = made.inputs.partners or [None] * len(made.labels)
    return shared_columns(made.inputs, variant, labels, logits) | {
        "partner_id": [None if partner is None else partner.example_id for partner in partners],
        "partner_ids": [None if partner is None else partner.input_ids for partner in partners],
        "own_weight": [None if partner is None else partner.own_weight for partner in partners],
        "delta": [label.delta for label in made.labels],
        "delta_scale": [label.delta_scale for label in made.labels],
        "perturbed_logits": [label.logits for label in made.labels],
        "divergence": [label.divergence for label in made.labels],
        "flipped": [label.flipped for label in made.labels],
    }


def statistics_of(made: Made) -> dict[str, float]:
    """What a variant's receipt says of its rows."""
    return {
        "divergence": float(np.mean([label.divergence for label in made.labels])),
        "flipped": float(sum(label.flipped for label in made.labels)),
        "vanished": float(sum(label.vanished for label in made.labels)),
        "shortened": float(sum(label.shortened for label in made.labels)),
    }


def _variant_work(
    scored: Scored, labels: list[float | int | None], words: list[Packed] | None, making: Making, key: Key
) -> VariantWork:
    """What travelled, as it was."""
    return VariantWork(scored, labels, None if words is None else unpacked_candidates(words), making, key)
