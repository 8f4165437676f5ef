"""Rows of scores and of their variants, as the batches that a student learns from.

Knows shards and which variants are shown when; not models or losses.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from pipeline.corpus.encoding import Batch
from pipeline.corpus.task import Floats, Split
from pipeline.distill.uses import Use, aims_in, chosen, snapshots_of
from pipeline.models.scale import Scale
from pipeline.shards.batches import inputs_at, matrix_at, variant_at
from pipeline.shards.reader import Positions, Rows, Shards, join
from pipeline.store.seeding import seed_of
from pipeline.training.order import Lengths, MicroBatch

VARIANT = "variant_"
"""Before the names of a batch's entries that belong to the variants."""

VALUES = ("labels", "teacher_logits", VARIANT + "logits")
"""Of a batch: what has the unit of the labels in a regression."""

SEEDS = "seeds"
"""Of a batch: one number a row, of its example and the epoch, for whoever draws something for it."""


class Variants:
    """All variants of the train split, each found by the example it belongs to."""

    def __init__(self, shards: Shards, examples: Rows, use: Use) -> None:
        """Find them.

        Raises:
            ShardMismatch: an example without its variant, or a variant without its example.
        """
        self._manifest, self._use = shards.manifest, use
        self._aims, self._snapshots = aims_in(shards.manifest), snapshots_of(shards.manifest)
        numbers = range(1, shards.manifest.variants + 1)
        self._rows = shards.rows("train", *numbers)
        self._positions = [join(examples, shards.rows("train", number)) + self._before(shards, number) for number in numbers]

    def batch(self, piece: MicroBatch) -> Batch:
        """The variants that a piece shows: all rows' first one, then all rows' second."""
        numbers = chosen(self._use, self._aims, self._snapshots, piece.epoch, piece.progress)
        positions = np.concatenate([self._positions[number - 1][piece.rows] for number in numbers])
        logits = matrix_at(self._rows, "perturbed_logits", positions)
        return variant_at(self._rows, positions, self._manifest) | {"logits": logits}

    @staticmethod
    def _before(shards: Shards, number: int) -> int:
        """How many rows the variants before this one have."""
        return sum(entry.receipt.rows for entry in shards.manifest.of_split("train") if entry.variant < number)


@dataclass(frozen=True)
class Examples:
    """One split with its scores and, of the train split, variants."""

    shards: Shards
    split: Split
    seed: int
    variants: Variants | None = None
    seeded: bool = False
    """Whether a batch has SEEDS."""
    hidden: bool = False
    """Whether a batch has the teacher's states, [rows, layers, width]."""
    scale: Scale | None = None
    """Of a regression, the units in which a batch gives labels and the teacher's answers."""

    @cached_property
    def rows(self) -> Rows:
        """The scored examples."""
        return self.shards.rows(self.split, 0)

    @cached_property
    def _labels(self) -> npt.NDArray[np.float32]:
        return self.rows.labels().astype(np.float32)

    def lengths(self) -> Lengths:
        """Number of tokens of each row."""
        return self.rows.lengths()

    def labels(self) -> Floats:
        """Of each row; NaN where there is none."""
        return self._labels

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, piece: MicroBatch) -> Batch:
        """Inputs, labels and scores of a piece's rows, and under names of their own their variants."""
        batch = inputs_at(self.rows, piece.rows, self.shards.manifest.pad_token_id)
        batch["labels"] = torch.from_numpy(self._labels[piece.rows])
        batch["teacher_logits"] = matrix_at(self.rows, "teacher_logits", piece.rows)
        batch["progress"] = torch.tensor(piece.progress)
        if self.hidden:
            states = matrix_at(self.rows, "hidden", piece.rows)
            batch["hidden"] = states.reshape(len(piece.rows), len(self.shards.manifest.hidden), -1)
        if self.seeded:
            batch[SEEDS] = torch.from_numpy(self._seeds(piece.rows, piece.epoch))
        if self.variants is not None:
            batch |= {VARIANT + name: value for name, value in self.variants.batch(piece).items()}
        return batch if self.scale is None else batch | self._reduced(batch, self.scale)

    @staticmethod
    def _reduced(batch: Batch, scale: Scale) -> Batch:
        return {name: scale.reduced(batch[name]) for name in VALUES if name in batch}

    def _seeds(self, rows: Positions, epoch: int) -> npt.NDArray[np.int64]:
        names = self.rows.texts_at("example_id", rows)
        return np.array([seed_of("own", self.seed, name, epoch) for name in names], dtype=np.int64)
