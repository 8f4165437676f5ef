"""One variant of some rows: edited, mixed or perturbed, coded, and labelled by the teacher on the decoded δ."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.augment.batches import Columns, Inputs, Partner
from pipeline.augment.candidates import RowCandidates, replace
from pipeline.augment.teacher import Arriving, FrozenTeacher, ModelSet, check_finite
from pipeline.augment.text_edits import TextEdits, special_ids
from pipeline.config.settings import OPERATIONS, AugmentSettings, CodecName, Recipe
from pipeline.corpus.encoding import Batch, Integers, ordinary_tokens
from pipeline.corpus.seeding import seed_of
from pipeline.models.forward import divergence, flipped
from pipeline.perturbation.inputs import filled, variant_embeddings
from pipeline.perturbation.search import Search, perturb, random_start, scaled_epsilon
from pipeline.shards.codec import CODECS, dequantise

Coded = tuple[Tensor, Tensor]
"""Codes [rows, tokens, width] and scales [rows, tokens]."""


@dataclass(frozen=True)
class LabelledRows:
    """Clean rows with the teacher's logits."""

    inputs: Inputs
    logits: npt.NDArray[np.float32]
    """[rows, outputs]."""

    def take(self, positions: Integers) -> "LabelledRows":
        """The rows at these positions."""
        return LabelledRows(self.inputs.take(positions), self.logits[positions])

    @staticmethod
    def joined(parts: Sequence["LabelledRows"]) -> "LabelledRows":
        """The rows of several parts in order."""
        return LabelledRows(Inputs.joined([part.inputs for part in parts]), np.concatenate([part.logits for part in parts]))


@dataclass(frozen=True)
class VariantSpec:
    """Which variant is made, and how."""

    variant: int
    settings: AugmentSettings
    epsilon: float
    """Fraction of the mean word-embedding length; read only where the recipe perturbs."""
    checkpoint: int | None
    """Number of the surrogate's checkpoint whose gradient is followed; None for the teacher's own."""

    @property
    def recipe(self) -> Recipe:
        """The steps, in order."""
        return self.settings.recipe(self.variant)

    @property
    def moves(self) -> bool:
        """Whether embeddings are perturbed."""
        return "perturb" in self.recipe

    def seed(self, example_id: str, step: str) -> int:
        """Seed of one step on one row."""
        return seed_of(self.settings.seed, example_id, self.variant, step)


@dataclass(frozen=True)
class Label:
    """The stored perturbation of one row, and the teacher's output on it."""

    delta: bytes | None
    delta_scale: list[float] | None
    logits: list[float]
    divergence: float
    flipped: bool
    vanished: bool


class Answered:
    """The results of a batch, split into rows while the device computes the next batch."""

    def __init__(self, columns: Sequence[Tensor], coded: Coded | None, lengths: Integers, codec: CodecName) -> None:
        """``columns`` are logits [rows, outputs], then divergence, flipped and vanished, each [rows]."""
        self._arriving: Arriving | None = Arriving(*columns, *(coded or ()))
        self._columns, self._lengths, self._codec = len(columns), lengths, codec
        self._labels: list[Label] = []

    def settle(self) -> None:
        """Wait for the copies, split them into rows and release them."""
        if self._arriving is not None:
            tensors, self._arriving = self._arriving.tensors, None
            values = zip(*(column.tolist() for column in tensors[: self._columns]), strict=True)
            deltas = self._packed(*tensors[self._columns :])
            self._labels = [Label(*delta, *value) for delta, value in zip(deltas, values, strict=True)]

    @property
    def labels(self) -> list[Label]:
        """One a row."""
        self.settle()
        return self._labels

    def _packed(self, *coded: Tensor) -> list[tuple[bytes | None, list[float] | None]]:
        """Codes as bytes and scales of each row's tokens."""
        if not coded:
            return [(None, None)] * len(self._lengths)
        codes, scales = (part.numpy() for part in coded)
        pack = CODECS[self._codec].pack
        return [(pack(codes[i, :length]), scales[i, :length].tolist()) for i, length in enumerate(self._lengths)]


@dataclass(frozen=True)
class Made:
    """A finished variant of some rows."""

    inputs: Inputs
    labels: list[Label]

    def columns(self, variant: int, labels: list[float | int | None], logits: npt.NDArray[np.float32]) -> Columns:
        """As the columns of a shard; ``logits`` [rows, outputs] are the teacher's on the clean inputs."""
        partners: Sequence[Partner | None] = self.inputs.partners or [None] * len(self.labels)
        return self.inputs.columns(variant, labels, logits) | {
            "partner_id": [None if partner is None else partner.example_id for partner in partners],
            "partner_ids": [None if partner is None else partner.input_ids for partner in partners],
            "own_weight": [None if partner is None else partner.own_weight for partner in partners],
            "delta": [label.delta for label in self.labels],
            "delta_scale": [label.delta_scale for label in self.labels],
            "perturbed_logits": [label.logits for label in self.labels],
            "divergence": [label.divergence for label in self.labels],
            "flipped": [label.flipped for label in self.labels],
        }

    def statistics(self) -> dict[str, float]:
        """Statistics of the rows for the shard's receipt."""
        return {
            "divergence": float(np.mean([label.divergence for label in self.labels])),
            "flipped": float(sum(label.flipped for label in self.labels)),
            "vanished": float(sum(label.vanished for label in self.labels)),
        }


def make_variant(
    models: ModelSet, labelled: LabelledRows, candidates: Sequence[RowCandidates] | None, spec: VariantSpec
) -> Made:
    """Make one variant of each row.

    Args:
        models: the teacher, and the other models that the recipe needs.
        labelled: the clean rows.
        candidates: of words, if the recipe has ``masked_lm``.
        spec: the variant.

    Raises:
        PipelineError: the teacher's logits of a row are not finite, or a row does not fit into memory.
    """
    viewed = edited(labelled.inputs, models.teacher, candidates, spec)
    if "mix" in spec.recipe:
        viewed = mixed(viewed, models.teacher.pad_token_id, spec)

    teacher, settings = models.teacher, spec.settings
    epsilon = scaled_epsilon(spec.epsilon, settings.perturbation.norm, teacher.table) if spec.moves else 0.0
    search = Search(settings.perturbation, epsilon, teacher.task.kind)

    def compute(rows: Inputs, positions: Integers, tokens: int) -> list[tuple[Answered, int]]:
        clean = teacher.sent(torch.from_numpy(labelled.logits[positions]))
        answered = _answered(models, rows, clean, teacher.padded(rows, tokens), search, spec)
        if before:
            before.pop().settle()  # while the device computes this one
        before.append(answered)
        return [(answered, row) for row in range(len(rows))]

    before = list[Answered]()
    answers = models.batches.run(viewed, settings.inference.batch_size, compute)
    made = [answered.labels[row] for answered, row in answers]
    logits = np.array([label.logits for label in made], dtype=np.float32).reshape(len(made), -1)
    check_finite(logits, viewed, f"variant {spec.variant}")
    return Made(viewed, made)


def edited(inputs: Inputs, teacher: FrozenTeacher, candidates: Sequence[RowCandidates] | None, spec: VariantSpec) -> Inputs:
    """The rows after the text edits of the recipe, each text of a pair on its own: words replaced, then token operations."""
    operations = [step for step in spec.recipe if step in OPERATIONS]
    rows = [
        (ids, None if inputs.token_type_ids is None else inputs.token_type_ids[row]) for row, ids in enumerate(inputs.input_ids)
    ]
    if "masked_lm" in spec.recipe:
        assert candidates is not None, "the job reads them"
        share = spec.settings.masked_lm.replace
        seeds = [spec.seed(example_id, "masked_lm") for example_id in inputs.example_ids]
        rows = [replace(*row, found, share, seed) for row, found, seed in zip(rows, candidates, seeds, strict=True)]
    if operations:
        tokenizer = teacher.tokenizer
        edits = TextEdits(operations, spec.settings.text_edits, special_ids(tokenizer), tokenizer.mask_token_id)
        seeds = [spec.seed(example_id, "text_edits") for example_id in inputs.example_ids]
        rows = [edits.row(*row, seed) for row, seed in zip(rows, seeds, strict=True)]
    types = [types for _, types in rows if types is not None]
    return Inputs(inputs.example_ids, [ids for ids, _ in rows], types or None)


def mixed(inputs: Inputs, pad_token_id: int, spec: VariantSpec) -> Inputs:
    """Every row with another of them as its partner, both filled to the length of the longer."""
    order = np.argsort([spec.seed(example_id, "partner") for example_id in inputs.example_ids])
    after = dict(zip(order.tolist(), np.roll(order, -1).tolist(), strict=True))
    ids, types, partners = [], [], []
    for row, example_id in enumerate(inputs.example_ids):
        other = after[row]
        length = max(len(inputs.input_ids[row]), len(inputs.input_ids[other]))
        ids.append(filled(inputs.input_ids[row], length, pad_token_id))
        own_weight = _drawn_weight(spec.seed(example_id, "mix"), spec.settings.mix_alpha)
        partner_ids = filled(inputs.input_ids[other], length, pad_token_id)
        partners.append(Partner(inputs.example_ids[other], partner_ids, own_weight))
        if inputs.token_type_ids is not None:
            own = inputs.token_type_ids[row]
            types.append(np.concatenate([own, inputs.token_type_ids[other][len(own) :]]))
    return Inputs(inputs.example_ids, ids, types or None, partners)


def _drawn_weight(seed: int, alpha: float) -> float:
    """λ, rounded to float32 as it is stored."""
    return float(np.float32(np.random.Generator(np.random.Philox(key=seed)).beta(alpha, alpha)))


def _answered(models: ModelSet, rows: Inputs, clean: Tensor, batch: Batch, search: Search, spec: VariantSpec) -> Answered:
    """One batch of rows: search δ, code it, run the teacher on the decoded δ."""
    teacher, kind = models.teacher, search.kind
    with torch.inference_mode(mode=not spec.moves):
        words = variant_embeddings(teacher.words, batch)
    coded, vanished = None, torch.zeros(len(rows), dtype=torch.bool)
    if spec.moves:
        names: list[tuple[str | int, ...]] = [(spec.settings.seed, name, spec.variant) for name in rows.example_ids]
        noise = random_start(names, rows.lengths().tolist(), teacher.width, words.shape[1], teacher.device)
        free = ordinary_tokens(batch, teacher.tokenizer)
        found = perturb(_followed(models, batch, words, spec.checkpoint), clean, noise, free, search)
        coded, vanished = CODECS[spec.settings.codec].quantise(found.delta), found.vanished
    logits = _logits(teacher, batch, words, coded)
    columns = (logits, divergence(clean, logits, kind), flipped(clean, logits, kind), vanished)
    return Answered(columns, coded, rows.lengths(), spec.settings.codec)


def _followed(models: ModelSet, batch: Batch, words: Tensor, checkpoint: int | None) -> Callable[[Tensor], Tensor]:
    """From δ to the logits of the model whose gradient is followed."""
    if checkpoint is None:
        return lambda delta: models.teacher.logits_at(batch, words + delta)
    surrogate = models.surrogate(checkpoint)
    return lambda delta: surrogate.logits_at_delta(batch, delta)


@torch.inference_mode()
def _logits(teacher: FrozenTeacher, batch: Batch, words: Tensor, coded: Coded | None) -> Tensor:
    """The teacher's logits at the decoded δ."""
    return teacher.logits_at(batch, words if coded is None else words + dequantise(*coded))
