"""One variant of some rows: edited, mixed or perturbed, coded, and labelled by the teacher on what the code gives back.

Knows models and rows; not shards, keys or Ray.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.augment.inputs import Inputs, Partner
from pipeline.augment.masked_lm import RowCandidates, replace
from pipeline.augment.model_set import ModelSet
from pipeline.augment.recipes import AugmentSettings, Recipe
from pipeline.augment.teacher import Arriving, FrozenTeacher, check_finite
from pipeline.augment.text_edits import OPERATIONS, edit, special_ids
from pipeline.corpus.encoding import Batch, Integers, ordinary_tokens
from pipeline.corpus.seeding import seed_of
from pipeline.corpus.task import Floats
from pipeline.perturbation.inputs import filled, view_embeddings
from pipeline.perturbation.search import Answer, Perturbed, divergence, flipped, perturb, radius_of, random_start
from pipeline.shards.codec import CODECS, dequantise
from pipeline.shards.schema import CodecName

SHORTENINGS = (0.5, 0.25, 0.125, 0.0)
"""What is left of a δ that changed the teacher's answer, tried in turn; with 0 the answer is the untouched one."""

Coded = tuple[Tensor, Tensor]
"""Codes [rows, tokens, width] and scales [rows, tokens]."""


@dataclass(frozen=True)
class Scored:
    """Rows with what is known of them."""

    inputs: Inputs
    labels: Floats
    """[rows], class indices or values; NaN where there is none."""
    logits: npt.NDArray[np.float32]
    """[rows, outputs], the teacher's on the untouched rows."""

    def take(self, positions: Integers) -> "Scored":
        """The rows at these positions."""
        return Scored(self.inputs.take(positions), self.labels[positions], self.logits[positions])

    @staticmethod
    def joined(parts: Sequence["Scored"]) -> "Scored":
        """The rows of several parts, one after the other."""
        labels, logits = [part.labels for part in parts], [part.logits for part in parts]
        return Scored(Inputs.joined([part.inputs for part in parts]), np.concatenate(labels), np.concatenate(logits))


@dataclass(frozen=True)
class Making:
    """Which variant is made, and how."""

    variant: int
    settings: AugmentSettings
    radius: float
    """Fraction of the mean word-embedding length; read only where the recipe perturbs."""
    snapshot: int | None
    """Which snapshot of the scout the perturbation is aimed at; None: at the teacher itself."""

    @property
    def recipe(self) -> Recipe:
        """The steps, in order."""
        return self.settings.recipe(self.variant)

    @property
    def moves(self) -> bool:
        """Whether there is a δ."""
        return self.settings.moves(self.recipe)

    def seed(self, example_id: str, step: str) -> int:
        """Of one step on one row."""
        return seed_of(self.settings.seed, example_id, self.variant, step)


@dataclass(frozen=True)
class Label:
    """What is stored of one row beside its input."""

    delta: bytes | None
    delta_scale: list[float] | None
    logits: list[float]
    divergence: float
    flipped: bool
    vanished: bool
    shortened: bool


class Answered:
    """What a batch gave, turned into rows once, while the next batch is computed."""

    def __init__(self, columns: Sequence[Tensor], coded: Coded | None, lengths: Integers, codec: CodecName) -> None:
        """``columns`` are logits [rows, outputs], then divergence, flipped, vanished and shortened, each [rows]."""
        self._arriving: Arriving | None = Arriving(*columns, *(coded or ()))
        self._columns, self._lengths, self._codec = len(columns), lengths, codec
        self._labels: list[Label] = []

    def settle(self) -> None:
        """Wait for the copies, make rows of them and let them go."""
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


def make_variant(models: ModelSet, scored: Scored, candidates: Sequence[RowCandidates] | None, making: Making) -> Made:
    """Make one variant of each row.

    Args:
        models: the teacher, and what the recipe needs beside it.
        scored: the untouched rows.
        candidates: words that may stand for others, where the recipe has ``masked_lm``.
        making: the variant.

    Raises:
        PipelineError: the teacher's answer to a row is no number, or a row does not fit into memory.
    """
    viewed = edited(scored.inputs, models.teacher, candidates, making)
    if "mix" in making.recipe:
        viewed = mixed(viewed, models.teacher.pad_token_id, making)

    teacher, settings = models.teacher, making.settings
    radius = radius_of(making.radius, settings.perturbation.norm, teacher.table) if making.moves else 0.0

    def compute(rows: Inputs, positions: Integers, tokens: int) -> list[tuple[Answered, int]]:
        known = (torch.from_numpy(part[positions]) for part in (scored.logits, labels))
        answered = _answered(models, rows, Answer(*(teacher.sent(part) for part in known)), tokens, radius, making)
        if before:
            before.pop().settle()  # while the device is at work on this one
        before.append(answered)
        return [(answered, row) for row in range(len(rows))]

    labels, before = scored.labels.astype(np.float32), list[Answered]()
    answers = models.batches.run(viewed, settings.batch_rows, compute)
    made = [answered.labels[row] for answered, row in answers]
    logits = np.array([label.logits for label in made], dtype=np.float32).reshape(len(made), -1)
    check_finite(logits, viewed, f"variant {making.variant}")
    return Made(viewed, made)


def edited(inputs: Inputs, teacher: FrozenTeacher, candidates: Sequence[RowCandidates] | None, making: Making) -> Inputs:
    """The rows after the text edits of the recipe, each text of a pair on its own: words replaced, then token operations."""
    operations = [step for step in making.recipe if step in OPERATIONS]
    rows = [
        (ids, None if inputs.token_type_ids is None else inputs.token_type_ids[row]) for row, ids in enumerate(inputs.input_ids)
    ]
    if "masked_lm" in making.recipe:
        assert candidates is not None, "the job brings them"
        assert making.settings.masked_lm is not None, "no recipe has this step without its settings"
        share = making.settings.masked_lm.replace
        seeds = [making.seed(example_id, "masked_lm") for example_id in inputs.example_ids]
        rows = [replace(*row, found, share, seed) for row, found, seed in zip(rows, candidates, seeds, strict=True)]
    if operations:
        special, mask_id = special_ids(teacher.tokenizer), teacher.tokenizer.mask_token_id
        seeds = [making.seed(example_id, "text_edits") for example_id in inputs.example_ids]
        settings = making.settings.text_edits
        rows = [edit(operations, *row, special, mask_id, settings, seed) for row, seed in zip(rows, seeds, strict=True)]
    types = [types for _, types in rows if types is not None]
    return Inputs(inputs.example_ids, [ids for ids, _ in rows], types or None)


def mixed(inputs: Inputs, pad_token_id: int, making: Making) -> Inputs:
    """Every row with another of them as its partner, both filled to the length of the longer."""
    order = np.argsort([making.seed(example_id, "partner") for example_id in inputs.example_ids])
    after = dict(zip(order.tolist(), np.roll(order, -1).tolist(), strict=True))
    ids, types, partners = [], [], []
    for row, example_id in enumerate(inputs.example_ids):
        other = after[row]
        length = max(len(inputs.input_ids[row]), len(inputs.input_ids[other]))
        ids.append(filled(inputs.input_ids[row], length, pad_token_id))
        own_weight = _drawn_weight(making.seed(example_id, "mix"), making.settings.mixing.alpha)
        partner_ids = filled(inputs.input_ids[other], length, pad_token_id)
        partners.append(Partner(inputs.example_ids[other], partner_ids, own_weight))
        if inputs.token_type_ids is not None:
            own = inputs.token_type_ids[row]
            types.append(np.concatenate([own, inputs.token_type_ids[other][len(own) :]]))
    return Inputs(inputs.example_ids, ids, types or None, partners)


def _drawn_weight(seed: int, alpha: float) -> float:
    """λ as it is stored, in float32."""
    return float(np.float32(np.random.Generator(np.random.Philox(key=seed)).beta(alpha, alpha)))


def _answered(models: ModelSet, rows: Inputs, answer: Answer, tokens: int, radius: float, making: Making) -> Answered:
    """One batch: search δ, code it, have the teacher answer."""
    teacher, kind = models.teacher, models.teacher.task.kind
    batch = teacher.padded(rows, tokens)
    with torch.inference_mode(mode=not making.moves):
        words = view_embeddings(teacher.words, batch)
    coded, vanished, shortened = None, torch.zeros(len(rows), dtype=torch.bool), torch.zeros(len(rows), dtype=torch.bool)
    if making.moves:
        found = _searched(models, batch, words, answer, rows, radius, making)
        coded, vanished = CODECS[making.settings.codec].quantise(found.delta), found.vanished
    logits = _logits(teacher, batch, words, coded)
    if coded is not None and making.settings.keep_label:
        coded, logits, shortened = _kept_label(teacher, batch, words, coded, logits, answer)
    columns = (logits, divergence(answer.logits, logits, kind), flipped(answer.logits, logits, kind), vanished, shortened)
    return Answered(columns, coded, rows.lengths(), making.settings.codec)


def _searched(
    models: ModelSet, batch: Batch, words: Tensor, answer: Answer, rows: Inputs, radius: float, making: Making
) -> Perturbed:
    """δ, before it is coded."""
    teacher, search = models.teacher, making.settings.perturbation
    names: list[tuple[str | int, ...]] = [(making.settings.seed, name, making.variant) for name in rows.example_ids]
    return perturb(
        forward=_aimed(models, batch, words, making.snapshot),
        answer=answer,
        noise=random_start(names, rows.lengths().tolist(), teacher.width, words.shape[1], teacher.device),
        free=batch["attention_mask"] == 1 if search.special_tokens else ordinary_tokens(batch, teacher.tokenizer),
        radius=radius,
        settings=search,
        kind=teacher.task.kind,
    )


def _aimed(models: ModelSet, batch: Batch, words: Tensor, snapshot: int | None) -> Callable[[Tensor], Tensor]:
    """From δ to the logits of the model whose gradient is followed."""
    if snapshot is None:
        return lambda delta: models.teacher.logits_at(batch, words + delta)
    scout = models.scout(snapshot)
    return lambda delta: scout.logits_at_delta(batch, delta)


@torch.inference_mode()
def _logits(teacher: FrozenTeacher, batch: Batch, words: Tensor, coded: Coded | None) -> Tensor:
    """The teacher's logits on what is stored."""
    return teacher.logits_at(batch, words if coded is None else words + dequantise(*coded))


def _kept_label(
    teacher: FrozenTeacher, batch: Batch, words: Tensor, coded: Coded, logits: Tensor, answer: Answer
) -> tuple[Coded, Tensor, Tensor]:
    """δ shortened where the teacher's answer would change, its logits, and where that was so."""
    (codes, scales), kind = coded, teacher.task.kind
    shortened, left = flipped(answer.logits, logits, kind), scales
    for share in SHORTENINGS:
        changed = flipped(answer.logits, logits, kind)
        if not changed.any():
            break
        left = torch.where(changed[:, None], scales * share, left)
        logits = torch.where(changed[:, None], _logits(teacher, batch, words, (codes, left)), logits)
    return (codes, left), logits, shortened
