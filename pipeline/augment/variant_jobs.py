"""One variant of a partition as a job, with all that its work needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.augment.batches import Packed
from pipeline.augment.candidates import RowCandidates, packed_candidates, read_candidates, unpacked_candidates
from pipeline.augment.jobs import Done, kept
from pipeline.augment.scoring import ScoreShard
from pipeline.augment.teacher import ModelSet
from pipeline.augment.variants import Making, Scored, make_variant
from pipeline.corpus.task import Split
from pipeline.shards.schema import shard_schema
from pipeline.shards.writer import write_shard
from pipeline.store.hashing import Key
from pipeline.store.store import Store


def read_scored(scores: ScoreShard) -> tuple[Scored, list[float | int | None]]:
    """The rows of a shard of scores, and their labels as the schema stores them."""
    rows = scores.rows()
    return Scored(scores.inputs(), rows.matrix("teacher_logits")), rows.column("label").to_pylist()


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
        columns = made.columns(self.making.variant, self.labels, self.scored.logits)
        schema = shard_schema("perturbations", models.teacher.task.kind, made.inputs.token_type_ids is not None)
        coding = {"codec": self.making.settings.codec, "width": models.teacher.width}
        description = coding if self.making.moves else {}
        statistics = made.statistics()
        receipt = kept(store, self.key, lambda path: write_shard(path, schema, columns, self.key, description, statistics))
        return Done(receipt, tuple(models.batches.notes()))


def _variant_work(
    scored: Scored, labels: list[float | int | None], words: list[Packed] | None, making: Making, key: Key
) -> VariantWork:
    """What travelled, as it was."""
    return VariantWork(scored, labels, None if words is None else unpacked_candidates(words), making, key)
