"""Variants of a partition: edited or perturbed, coded, and labelled by the teacher on the decoded δ."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.augment.batches import Columns, Inputs
from pipeline.augment.candidates import RowCandidates, read_candidates, replace
from pipeline.augment.jobs import Done, ShardJob, kept, read_inputs, rows_of
from pipeline.augment.recipes import TextEdits, special_ids
from pipeline.augment.teacher import Arriving, FrozenTeacher, ModelSet, check_finite
from pipeline.config.settings import OPERATIONS, AugmentSettings, CodecName, Recipe
from pipeline.corpus.encoding import Batch, Integers, Types, ordinary_tokens
from pipeline.corpus.seeding import seed_of
from pipeline.models.forward import divergence, flipped
from pipeline.perturbation.search import Forward, Search, perturb, random_start, scaled_epsilon
from pipeline.shards.codec import CODECS, dequantise
from pipeline.shards.manifest import SHARD_FILE, Receipt, ShardEntry
from pipeline.shards.reader import Positions, Rows
from pipeline.shards.schema import shard_schema
from pipeline.shards.writer import write_shard
from pipeline.store.keys import Key
from pipeline.store.store import Store, needed


@dataclass(frozen=True)
class LabelledRows:
    """Clean rows with the teacher's logits [rows, outputs] and, to be stored with a variant, their gold labels."""

    inputs: Inputs
    logits: npt.NDArray[np.float32]
    labels: list[float | int | None] = field(default_factory=list)

    def take(self, positions: Integers) -> "LabelledRows":
        """The rows at these positions, without gold labels."""
        return LabelledRows(self.inputs.take(positions), self.logits[positions])


def read_labelled(rows: Rows, positions: Positions | None = None) -> LabelledRows:
    """All rows of shards of soft labels, or those at some positions."""
    at = np.arange(len(rows)) if positions is None else positions
    labels, logits = rows.column("label").take(at).to_pylist(), rows.lists_at("teacher_logits", at)
    return LabelledRows(read_inputs(rows, at), logits.values.reshape(len(at), -1), labels)


@dataclass(frozen=True)
class VariantSpec:
    """A variant and how it is made."""

    variant: int
    settings: AugmentSettings
    epsilon: float
    """Fraction of the mean norm of a word embedding; read only if the recipe perturbs."""
    checkpoint: int | None
    """Number of the surrogates' checkpoint whose gradients are followed; None for the teacher's."""

    @property
    def recipe(self) -> Recipe:
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
    """The stored perturbation of one row and the teacher's output on it."""

    delta: bytes | None
    delta_scale: list[float] | None
    logits: list[float]
    divergence: float
    flipped: bool
    vanished: bool


@dataclass(frozen=True)
class Made:
    """A finished variant of some rows."""

    inputs: Inputs
    labels: list[Label]

    def columns(self, variant: int, labelled: LabelledRows) -> Columns:
        """The columns of a shard."""
        return self.inputs.columns(variant, labelled.labels, labelled.logits) | {
            "delta": [label.delta for label in self.labels],
            "delta_scale": [label.delta_scale for label in self.labels],
            "perturbed_logits": [label.logits for label in self.labels],
            "divergence": [label.divergence for label in self.labels],
            "flipped": [label.flipped for label in self.labels],
        }

    def statistics(self) -> dict[str, float]:
        """Statistics for the shard's receipt."""
        return {
            "divergence": float(np.mean([label.divergence for label in self.labels])),
            "flipped": float(sum(label.flipped for label in self.labels)),
            "vanished": float(sum(label.vanished for label in self.labels)),
        }


def make_variant(
    models: ModelSet, labelled: LabelledRows, candidates: Sequence[RowCandidates] | None, spec: VariantSpec
) -> Made:
    """Make one variant of each row; ``candidates`` are needed if the recipe contains masked_lm."""
    teacher, settings = models.teacher, spec.settings
    inputs = edited(labelled.inputs, teacher, candidates, spec)
    search = _search(teacher, spec)

    def compute(rows: Inputs, positions: Integers, tokens: int) -> Arriving:
        clean = teacher.sent(torch.from_numpy(labelled.logits[positions]))
        return _labelled(models, rows, clean, teacher.padded(rows, tokens), search, spec)

    pieces = models.batches.pieces(inputs, settings.inference.batch_size, compute)
    last = (np.empty(0, dtype=np.int64), Arriving())
    lengths, found = inputs.lengths(), dict[int, Label]()
    for (positions, arriving), _ in pairwise(chain(pieces, [last])):  # while the device computes the next batch
        labels = _labels(arriving, lengths[positions], settings.codec)
        found.update(zip(positions.tolist(), labels, strict=True))
    made = [found[row] for row in range(len(inputs))]
    logits = np.array([label.logits for label in made], dtype=np.float32).reshape(len(made), -1)
    check_finite(logits, inputs, f"variant {spec.variant}")
    return Made(inputs, made)


def _labelled(models: ModelSet, rows: Inputs, clean: Tensor, batch: Batch, search: Search, spec: VariantSpec) -> Arriving:
    """Search and code δ of one batch, and run the teacher on the decoded δ; ``clean`` are its logits on the clean inputs.

    The result is logits [rows, outputs], divergence, flipped and vanished [rows] and, if δ is searched, its codes and scales.
    """
    teacher, kind = models.teacher, search.kind
    with torch.inference_mode(mode=not spec.moves):
        words = teacher.words(batch["input_ids"])
    coded: tuple[Tensor, ...] = ()
    vanished = torch.zeros(len(rows), dtype=torch.bool)
    if spec.moves:
        coded, vanished = _searched(models, rows, clean, batch, _followed(models, batch, words, spec), search, spec)
    with torch.inference_mode():
        logits = teacher.logits_at(batch, words + dequantise(*coded) if coded else words)
    return Arriving(logits, divergence(clean, logits, kind), flipped(clean, logits, kind), vanished, *coded)


def divergence_growth(models: ModelSet, labelled: LabelledRows, spec: VariantSpec) -> npt.NDArray[np.float32]:
    """By how much the decoded δ raises the divergence of the followed models' outputs from the teacher's on the clean input.

    The result is the mean over these models, [rows]; the recipe is [perturb].
    """
    teacher, search = models.teacher, _search(models.teacher, spec)

    def compute(rows: Inputs, positions: Integers, tokens: int) -> Arriving:
        clean, batch = teacher.sent(torch.from_numpy(labelled.logits[positions])), teacher.padded(rows, tokens)
        followed = _followed(models, batch, teacher.words(batch["input_ids"]), spec)
        coded, _ = _searched(models, rows, clean, batch, followed, search, spec)
        with torch.inference_mode():
            delta = dequantise(*coded)
            after, before = (
                torch.stack([divergence(clean, forward(at), search.kind) for forward in followed]).mean(dim=0)
                for at in (delta, torch.zeros_like(delta))
            )
        return Arriving(after - before)

    growth = np.empty(len(labelled.inputs), dtype=np.float32)
    for positions, found in list(models.batches.pieces(labelled.inputs, spec.settings.inference.batch_size, compute)):
        growth[positions] = found.tensors[0].numpy()
    return growth


def _search(teacher: FrozenTeacher, spec: VariantSpec) -> Search:
    """The search of a variant; epsilon is 0 if its recipe does not perturb."""
    settings = spec.settings.perturbation
    epsilon = scaled_epsilon(spec.epsilon, settings.norm, teacher.table) if spec.moves else 0.0
    return Search(settings, epsilon, teacher.task.kind)


def _searched(
    models: ModelSet, rows: Inputs, clean: Tensor, batch: Batch, followed: Sequence[Forward], search: Search, spec: VariantSpec
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Codes and scales of the δ found for one batch, and where its gradient vanished, [rows]."""
    teacher = models.teacher
    names: list[tuple[str | int, ...]] = [(spec.settings.seed, name, spec.variant) for name in rows.example_ids]
    noise = random_start(names, rows.lengths().tolist(), teacher.width, batch["input_ids"].shape[1], teacher.device)
    found = perturb(followed, clean, noise, ordinary_tokens(batch, teacher.tokenizer), search)
    return CODECS[spec.settings.codec].quantise(found.delta), found.vanished


def _followed(models: ModelSet, batch: Batch, words: Tensor, spec: VariantSpec) -> list[Forward]:
    """The functions from δ to the logits of the models whose gradients are followed."""
    if spec.checkpoint is None:
        return [lambda delta: models.teacher.logits_at(batch, words + delta)]
    return [partial(surrogate.logits_at_delta, batch) for surrogate in models.surrogates(spec.checkpoint)]


def _labels(arriving: Arriving, lengths: Integers, codec: CodecName) -> list[Label]:
    """The result of a batch split into its rows, which have these lengths."""
    columns, coded = arriving.tensors[:4], arriving.tensors[4:]
    deltas: list[tuple[bytes | None, list[float] | None]] = [(None, None)] * len(lengths)
    if coded:
        codes, scales = (part.numpy() for part in coded)
        pack = CODECS[codec].pack
        deltas = [(pack(codes[row, :length]), scales[row, :length].tolist()) for row, length in enumerate(lengths)]
    values = zip(*(column.tolist() for column in columns), strict=True)
    return [Label(*delta, *value) for delta, value in zip(deltas, values, strict=True)]


def edited(inputs: Inputs, teacher: FrozenTeacher, candidates: Sequence[RowCandidates] | None, spec: VariantSpec) -> Inputs:
    """The rows after the recipe's text edits: first words are replaced, then token operations are applied."""
    types: Sequence[Types | None] = inputs.token_type_ids or [None] * len(inputs)
    rows = list(zip(inputs.input_ids, types, strict=True))
    if "masked_lm" in spec.recipe:
        assert candidates is not None, "the job reads them"
        share = spec.settings.masked_lm.replace
        seeds = [spec.seed(example_id, "masked_lm") for example_id in inputs.example_ids]
        rows = [replace(*row, found, share, seed) for row, found, seed in zip(rows, candidates, seeds, strict=True)]
    if operations := [step for step in spec.recipe if step in OPERATIONS]:
        tokenizer = teacher.tokenizer
        edits = TextEdits(operations, spec.settings.text_edits, special_ids(tokenizer), tokenizer.mask_token_id)
        seeds = [spec.seed(example_id, "text_edits") for example_id in inputs.example_ids]
        rows = [edits.row(*row, seed) for row, seed in zip(rows, seeds, strict=True)]
    return Inputs(inputs.example_ids, [ids for ids, _ in rows], [types for _, types in rows if types is not None] or None)


def variant_job(entry: ShardEntry, spec: VariantSpec, shared_key: Key, candidates: Key | None) -> ShardJob:
    """One variant of a partition of the train split; ``candidates`` is their key if the recipe replaces words."""
    key = shared_key | {"variant": spec.variant, "examples": entry.receipt.key["examples"]}
    name = f"variant {spec.variant}, partition {entry.partition}"
    work = partial(_variant_work, spec, key, entry.receipt, candidates)
    return ShardJob(name, key, "train", spec.variant, entry.partition, entry.receipt.rows, work)


def _variant_work(
    spec: VariantSpec, key: Key, soft_labels: Receipt, candidates: Key | None, models: ModelSet, store: Store
) -> Done:
    """Read the rows and the candidates of their words, and write the variant."""
    words = None
    if candidates is not None:
        words = read_candidates(needed(store, candidates, "the word candidates of its partition").folder / SHARD_FILE)
    return write_variant(spec, key, read_labelled(rows_of(soft_labels, store)), words, models, store)


def write_variant(
    spec: VariantSpec,
    key: Key,
    labelled: LabelledRows,
    candidates: Sequence[RowCandidates] | None,
    models: ModelSet,
    store: Store,
) -> Done:
    """Make the variant, label it and write the shard."""
    made = make_variant(models, labelled, candidates, spec)
    columns, statistics = made.columns(spec.variant, labelled), made.statistics()
    schema = shard_schema("variants", models.teacher.task.kind, made.inputs.token_type_ids is not None)
    description = {"codec": spec.settings.codec, "width": models.teacher.width} if spec.moves else {}
    receipt = kept(store, key, lambda path: write_shard(path, schema, columns, key, description, statistics))
    return Done(receipt, models.batches.notes())
