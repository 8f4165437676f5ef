"""The rows that a student learns from, as batches with their variants, and the policy that picks the variants of a step."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from pipeline.config.corpus import Split
from pipeline.config.errors import PipelineError
from pipeline.config.settings import VariantPolicy
from pipeline.corpus.encoding import Batch
from pipeline.corpus.task import Floats
from pipeline.models.forward import Scale
from pipeline.perturbation.surrogate import CheckpointsFollowed, checkpoints_followed
from pipeline.shards.batches import inputs_at, matrix_at, variant_at
from pipeline.shards.manifest import Manifest
from pipeline.shards.reader import Positions, Rows, Shards
from pipeline.training.order import Lengths, MicroBatch

VARIANT = "variant_"
"""Prefix of a batch's entries that belong to the variants."""

VALUES = ("labels", "teacher_logits", VARIANT + "logits")
"""Entries of a batch that have the unit of the labels in a regression."""


def followed_in(manifest: Manifest) -> CheckpointsFollowed:
    """Which checkpoint of the surrogate each variant of a set follows."""
    recipes = manifest.recipes
    perturbed = ("perturb" in recipes[number % len(recipes)] for number in range(manifest.variants))
    return checkpoints_followed(perturbed, checkpoints_of(manifest))


def checkpoints_of(manifest: Manifest) -> int:
    """Number of the surrogate's checkpoints; 0 if there is no surrogate."""
    return int(manifest.details["checkpoints"])


def check_policy(policy: VariantPolicy, followed: CheckpointsFollowed, checkpoints: int) -> None:
    """Reject a policy that these variants cannot satisfy; ``checkpoints`` is 0 without a surrogate."""
    if policy == "none":
        return
    if not followed:
        raise PipelineError("there is no variant; set augment.variants above 0, or variant_policy: none for the student")
    if policy == "curriculum" and any(followed) and (without := checkpoints - len({number for number in followed if number})):
        raise PipelineError(
            f"variant_policy: curriculum needs a variant for each of the surrogate's {checkpoints} checkpoints, but {without} "
            f"have none; set surrogate.checkpoints to {checkpoints - without}, or raise augment.variants"
        )


def chosen(policy: VariantPolicy, followed: CheckpointsFollowed, checkpoints: int, epoch: int, progress: float) -> list[int]:
    """The numbers, from 1, of the variants that a training step uses of each of its examples.

    Args:
        policy: not ``none``.
        followed: the checkpoint that each variant follows.
        checkpoints: of the surrogate; 0 if there is none.
        epoch: counted from 0.
        progress: share of the training before the step.
    """
    everyone = list(range(1, len(followed) + 1))
    if policy == "all":
        return everyone
    if policy == "curriculum" and any(followed):
        pairs = zip(everyone, followed, strict=True)
        away = {number: abs(checkpoint - progress * checkpoints) for number, checkpoint in pairs if checkpoint}
        everyone = [number for number, distance in away.items() if distance == min(away.values())]
    return [everyone[epoch % len(everyone)]]


def shown(policy: VariantPolicy, followed: CheckpointsFollowed) -> list[int]:
    """The numbers of the variants that a training may show, in the order in which it first needs them."""
    numbers = {number: checkpoint or 0 for number, checkpoint in enumerate(followed, start=1)}
    if policy == "curriculum" and any(followed):
        return sorted((number for number in numbers if numbers[number]), key=numbers.__getitem__)
    return list(numbers)


class Variants:
    """The variants of the train split that a training may show, joined to its examples by id."""

    def __init__(self, shards: Shards, soft_labels: Shards, policy: VariantPolicy) -> None:
        """Join the variants to the examples; no shard of variants is read yet.

        Raises:
            ShardMismatch: an example lacks its variant, or a variant its example.
        """
        self._shards, self._policy = shards, policy
        self._followed, self._checkpoints = followed_in(shards.manifest), checkpoints_of(shards.manifest)
        self._shown = shown(policy, self._followed)
        self._rows = shards.joined_to(soft_labels, self._shown)
        self._examples = len(soft_labels.rows("train", 0))
        self._begun: set[int] = set()

    def batch(self, piece: MicroBatch) -> Batch:
        """The variants that a piece uses: the first one of all rows, then the second one of all rows.

        Raises:
            ShardMismatch: a shard that is read for the first time is damaged, or has other ids than the soft labels.
        """
        numbers = chosen(self._policy, self._followed, self._checkpoints, piece.epoch, piece.progress)
        places = [self._shown.index(number) for number in numbers]
        positions = np.concatenate([piece.rows + place * self._examples for place in places])
        if not self._begun.issuperset(places):
            self._fetch_ahead(positions, places)
        logits = matrix_at(self._rows, "perturbed_logits", positions)
        return variant_at(self._rows, positions, self._shards.manifest) | {"logits": logits}

    def open_all(self) -> None:
        """Fetch and verify all shards now, since forked workers can share neither threads nor connections."""
        self._rows.open()

    def _fetch_ahead(self, positions: Positions, places: list[int]) -> None:
        """Start to fetch these rows, then the rest of their variants and of those that follow."""
        self._rows.fetch_ahead(positions)
        for place in [*places, *((place + 1) % len(self._shown) for place in places)]:
            self._rows.fetch_ahead(np.arange(self._examples) + place * self._examples)
        self._begun.update(places)


@dataclass(frozen=True)
class Examples:
    """One split with the teacher's soft_labels and, for the train split, variants."""

    shards: Shards
    split: Split
    variants: Variants | None = None
    scale: Scale | None = None
    """The units of labels and logits in a batch of a regression."""

    @cached_property
    def rows(self) -> Rows:
        """The labelled examples."""
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
