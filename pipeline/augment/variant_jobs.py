"""One variant of a partition as a job, with all that its work needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.augment.batches import Packed
from pipeline.augment.candidates import RowCandidates, packed_candidates, read_candidates, unpacked_candidates
from pipeline.augment.jobs import Done, kept
from pipeline.augment.soft_labels import SoftLabelShard
from pipeline.augment.teacher import ModelSet
from pipeline.augment.variants import LabelledRows, VariantSpec, make_variant
from pipeline.config.corpus import Split
from pipeline.shards.schema import shard_schema
from pipeline.shards.writer import write_shard
from pipeline.store.keys import Key
from pipeline.store.store import Store


def read_labelled(soft_labels: SoftLabelShard) -> tuple[LabelledRows, list[float | int | None]]:
    """The rows of a shard of soft_labels, and their labels as the schema stores them."""
    rows = soft_labels.rows()
    return LabelledRows(soft_labels.inputs(), rows.matrix("teacher_logits")), rows.column("label").to_pylist()


@dataclass(frozen=True)
class VariantJob:
    """One variant of a partition of the train split."""

    soft_labels: SoftLabelShard
    shared_key: Key
    deciding: Key
    spec: VariantSpec
    candidates: Path | None = None
    """Where the words lie that may stand for others, if the recipe replaces words."""
    split: Split = "train"

    @property
    def variant(self) -> int:
        return self.spec.variant

    @property
    def partition(self) -> int:
        return self.soft_labels.entry.partition

    @property
    def key(self) -> Key:
        return self.shared_key | self.deciding | {"variant": self.variant, "examples": self.soft_labels.examples_hash}

    @property
    def name(self) -> str:
        return f"variant {self.variant}, partition {self.partition}"

    def work(self) -> "VariantWork":
        """The rows with their soft_labels."""
        labelled, labels = read_labelled(self.soft_labels)
        candidates = None if self.candidates is None else read_candidates(self.candidates)
        return VariantWork(labelled, labels, candidates, self.spec, self.key)


@dataclass(frozen=True)
class VariantWork:
    """Make the variant and have the teacher label it."""

    labelled: LabelledRows
    labels: list[float | int | None]
    candidates: Sequence[RowCandidates] | None
    spec: VariantSpec
    key: Key

    def __reduce__(self) -> tuple[Any, ...]:
        words = None if self.candidates is None else packed_candidates(self.candidates)
        return _variant_work, (self.labelled, self.labels, words, self.spec, self.key)

    def run(self, models: ModelSet, store: Store) -> Done:
        """Write the shard of the variant."""
        made = make_variant(models, self.labelled, self.candidates, self.spec)
        columns = made.columns(self.spec.variant, self.labels, self.labelled.logits)
        schema = shard_schema("variants", models.teacher.task.kind, made.inputs.token_type_ids is not None)
        coding = {"codec": self.spec.settings.codec, "width": models.teacher.width}
        description = coding if self.spec.moves else {}
        statistics = made.statistics()
        receipt = kept(store, self.key, lambda path: write_shard(path, schema, columns, self.key, description, statistics))
        return Done(receipt, tuple(models.batches.notes()))


def _variant_work(
    labelled: LabelledRows, labels: list[float | int | None], words: list[Packed] | None, spec: VariantSpec, key: Key
) -> VariantWork:
    """What travelled, as it was."""
    return VariantWork(labelled, labels, None if words is None else unpacked_candidates(words), spec, key)
