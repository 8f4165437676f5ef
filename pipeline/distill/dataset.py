"""The rows that a student learns from, as batches with their variants, and the policy that picks the variants of a step."""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from pipeline.config.errors import PipelineError
from pipeline.config.params import Settings
from pipeline.corpus.encoding import Batch
from pipeline.corpus.task import Floats, Split
from pipeline.models.outputs import Scale
from pipeline.perturbation.surrogate import Aims, aims_of
from pipeline.shards.batches import inputs_at, matrix_at, variant_at
from pipeline.shards.manifest import Manifest
from pipeline.shards.reader import Rows, Shards, join
from pipeline.training.order import Lengths, MicroBatch

VARIANT = "variant_"
"""Prefix of a batch's entries that belong to the variants."""

VALUES = ("labels", "teacher_logits", VARIANT + "logits")
"""Entries of a batch that have the unit of the labels in a regression."""


class WorstOf(Settings):
    """Of so many candidates of each example, computed without gradient, train on the one with the greatest divergence.

    Follows the selection of Glitter (Kamalloo et al. 2022), over variants in place of a pool of texts.
    """

    worst_of: Annotated[int, Field(ge=2)]


Use = Literal["rotate", "by_progress", "all", "none"] | WorstOf
"""Which stored variants a step shows: one per epoch, in turn; the one searched on the scout's snapshot at the same progress of
training, or in turn where none was; all; none; the worst of some."""


def aims_in(manifest: Manifest) -> Aims:
    """The snapshot of the scout on which each variant of a set was searched."""
    recipes = manifest.recipes
    perturbed = ("perturb" in recipes[number % len(recipes)] for number in range(manifest.variants))
    return aims_of(perturbed, snapshots_of(manifest))


def snapshots_of(manifest: Manifest) -> int:
    """Number of snapshots of the scout; 0 if there is no scout."""
    return int(manifest.details["snapshots"])


def check_use(use: Use, aims: Aims, snapshots: int) -> None:
    """Reject a policy that variants with these aims at ``snapshots`` snapshots (0: no scout) cannot satisfy."""
    variants = len(aims)
    if use == "none":
        return
    if not variants:
        raise PipelineError("there is no variant; set augment.variants above 0, or variants: none for the student")
    if isinstance(use, WorstOf) and use.worst_of > variants:
        raise PipelineError(f"variants: worst_of: {use.worst_of} is asked for, but the shards hold {variants} variants")
    if use == "by_progress" and any(aims) and (without := snapshots - len({aim for aim in aims if aim})):
        raise PipelineError(
            f"variants: by_progress follows the scout through its {snapshots} snapshots, but at the last {without} of them no "
            f"variant is aimed; set the scout's snapshots to {snapshots - without}, or have more variants"
        )


def chosen(use: Use, aims: Aims, snapshots: int, epoch: int, progress: float) -> list[int]:
    """The numbers, from 1, of the variants that a step shows of each of its examples.

    Args:
        use: the policy; not ``none``.
        aims: the snapshot on which each variant was searched.
        snapshots: of the scout; 0 if there is none.
        epoch: counted from 0.
        progress: share of the training before the step.
    """
    everyone = list(range(1, len(aims) + 1))
    if use == "all":
        return everyone
    if isinstance(use, WorstOf):
        return [everyone[(epoch * use.worst_of + number) % len(everyone)] for number in range(use.worst_of)]
    if use == "by_progress" and any(aims):
        away = {number: abs(aim - progress * snapshots) for number, aim in zip(everyone, aims, strict=True) if aim}
        everyone = [number for number, distance in away.items() if distance == min(away.values())]
    return [everyone[epoch % len(everyone)]]


class Variants:
    """All variants of the train split, found by the example they belong to."""

    def __init__(self, shards: Shards, examples: Rows, use: Use) -> None:
        """Join the variants to the examples.

        Raises:
            ShardMismatch: an example lacks its variant, or a variant its example.
        """
        self._manifest, self._use = shards.manifest, use
        self._aims, self._snapshots = aims_in(shards.manifest), snapshots_of(shards.manifest)
        numbers = range(1, shards.manifest.variants + 1)
        self._rows = shards.rows("train", *numbers)
        self._positions = [join(examples, shards.rows("train", number)) + self._before(shards, number) for number in numbers]

    def batch(self, piece: MicroBatch) -> Batch:
        """The variants that a piece shows: the first one of all rows, then the second one of all rows."""
        numbers = chosen(self._use, self._aims, self._snapshots, piece.epoch, piece.progress)
        positions = np.concatenate([self._positions[number - 1][piece.rows] for number in numbers])
        logits = matrix_at(self._rows, "perturbed_logits", positions)
        return variant_at(self._rows, positions, self._manifest) | {"logits": logits}

    @staticmethod
    def _before(shards: Shards, number: int) -> int:
        """Number of rows of the preceding variants."""
        return sum(entry.receipt.rows for entry in shards.manifest.of_split("train") if entry.variant < number)


@dataclass(frozen=True)
class Examples:
    """One split with the teacher's scores and, for the train split, variants."""

    shards: Shards
    split: Split
    variants: Variants | None = None
    scale: Scale | None = None
    """The units of labels and logits in a batch of a regression."""

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
        """Label of each row; NaN where there is none."""
        return self._labels

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, piece: MicroBatch) -> Batch:
        """Inputs, labels and teacher logits of a piece's rows; their variants under names with the prefix ``VARIANT``."""
        batch = inputs_at(self.rows, piece.rows, self.shards.manifest.pad_token_id)
        batch["labels"] = torch.from_numpy(self._labels[piece.rows])
        batch["teacher_logits"] = matrix_at(self.rows, "teacher_logits", piece.rows)
        if self.variants is not None:
            batch |= {VARIANT + name: value for name, value in self.variants.batch(piece).items()}
        scale = self.scale
        return batch if scale is None else batch | {name: scale.reduced(batch[name]) for name in VALUES if name in batch}
