"""What benchmarks.cost times: stage 1, students from its shards, and reference trainings that do the same work.

The references are as lean as they can be written: batches ready in memory, no trainer, no checkpoints, no dev. Knows no ratio.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet as pq
import torch
from torch import Tensor
from transformers import PreTrainedModel, get_scheduler

from benchmarks.timing import timed
from benchmarks.worlds import EPSILON, first_rows, runtime_of
from pipeline.augment.passes import augment, soft_label
from pipeline.augment.plans import Augmentation
from pipeline.augment.teacher import FrozenTeacher
from pipeline.config import params as config
from pipeline.config.corpus import Kind
from pipeline.config.errors import PipelineError
from pipeline.config.params import Settings
from pipeline.config.sections import augment_places, student_places
from pipeline.config.settings import AugmentSettings, StudentSettings, TrainingSettings
from pipeline.corpus.encoding import Batch, model_inputs, ordinary_tokens
from pipeline.distill.dataset import VARIANT, Examples, Variants
from pipeline.distill.losses import clean_loss, imitation_loss
from pipeline.distill.student import Student, make_student
from pipeline.distill.training import Sources, train, write_student
from pipeline.models.folder import ModelFolder
from pipeline.models.forward import embed, logits_from_embeddings, pick_device
from pipeline.perturbation.search import Search, perturb, scaled_epsilon
from pipeline.perturbation.surrogate import mapped
from pipeline.shards.batches import CODES, SCALES
from pipeline.shards.codec import dequantise
from pipeline.shards.reader import Shards
from pipeline.training.callbacks import Checkpoints, RunOptions
from pipeline.training.order import EpochOrder, MicroBatch, StepSharding
from pipeline.training.trainer import Loss

VARIANTS = 3

DELTA = "delta"
"""Of a variant's batch: δ, decoded."""

Pair = tuple[Tensor, Tensor]
"""Logits of student and teacher on one input, both [rows, outputs]."""


class OneStudent(Settings):
    """What a student needs of params.yaml, stage 1 included."""

    augment: AugmentSettings
    student: StudentSettings


class Needs(Settings):
    """What of params.yaml is measured."""

    augment: AugmentSettings
    students: dict[str, StudentSettings]

    @classmethod
    def of(cls, params: Path) -> "Needs":
        """All students that take stored variants, in their order; variants follow the teacher at an epsilon that is known.

        Raises:
            PipelineError: there is none.
        """
        given = config.read_params(params)
        names = config.lookup(given, "students") or {}
        augment = augment_places(given, next(iter(config.lookup(given, "tasks") or {}), ""))
        every = {name: config.load(params, OneStudent, student=student_places(given, name), augment=augment) for name in names}
        students = {name: found.student for name, found in every.items() if found.student.variant_policy != "none"}
        if not students:
            raise PipelineError(f"{params} has no student that takes stored variants; give one of them variant_policy: rotate")
        usual = next(iter(every.values())).augment
        search = usual.perturbation.model_copy(update={"gradient_from": "teacher", "epsilon": EPSILON})
        made = {"variants": VARIANTS, "recipes": [["perturb"]], "perturbation": search}
        return cls(augment=usual.model_copy(update=made), students=students)


@dataclass(frozen=True)
class StageOne:
    """What the teacher did once, and how long it took."""

    soft_labels: Path
    shards: Path
    soft_label_seconds: float
    augment_seconds: float

    def megabytes(self) -> float:
        """Of shards on the disk, the store included; a file that is linked from it counts once."""
        found = {file.stat().st_ino: file.stat().st_size for file in self.soft_labels.parent.rglob("*.arrow")}
        return sum(found.values()) / 1e6


@dataclass(frozen=True)
class World:
    """The first rows of a prepared task, in a folder of their own, and a student that learns from them."""

    folder: Path
    prepared: Path
    teacher: Path
    needs: Needs
    name: str
    """Of the student."""

    @classmethod
    def of(cls, folder: Path, prepared: Path, teacher: Path, rows: int, needs: Needs) -> "World":
        """Cut a corpus to so many rows; the student is the first."""
        share = min(rows / pq.read_metadata(prepared / "train.parquet").num_rows, 1.0)
        sample = {"calibration_rows": max(round(share * needs.augment.calibration_rows), 1)}
        fitting = needs.model_copy(update={"augment": needs.augment.model_copy(update=sample)})
        return cls(folder, first_rows(prepared, folder / "prepared", rows), teacher, fitting, next(iter(needs.students)))

    def sizes(self) -> "list[World]":
        """The same rows, once for each student."""
        return [replace(self, name=name) for name in self.needs.students]

    def stage_one(self, name: str) -> StageOne:
        """Soft labels and variants, by a store that is empty; loading the teacher, writing and publishing included."""
        folder = self.folder / name
        runtime = runtime_of(folder / "store")
        soft_labels, shards, settings = folder / "soft_labels", folder / "shards", self.needs.augment
        first = timed(lambda: soft_label(self.prepared, self.teacher, settings.inference, runtime, soft_labels))
        second = timed(lambda: augment(Augmentation.of(soft_labels, self.teacher, settings), runtime, shards))
        return StageOne(soft_labels, shards, first, second)

    def student(self, epochs: int, **changed: Any) -> StudentSettings:
        """Settings of the student, in float32 and whole steps as the loops here take them."""
        usual = self.needs.students[self.name]
        fitting = usual.training.model_dump() | {
            "num_train_epochs": epochs,
            "gradient_accumulation_steps": 1,
            "precision": "float32",
        }
        fixed = {"variant_policy": "rotate", "training": fitting}
        return StudentSettings.model_validate(usual.model_dump() | fixed | changed)


class Loop:
    """The least that trains: AdamW, a clipped gradient, a learning rate that follows its schedule."""

    def __init__(self, model: PreTrainedModel, settings: TrainingSettings, steps: int) -> None:
        self._device, self._clip = pick_device(), settings.max_grad_norm
        self._model = model.to(self._device).train()  # type: ignore[arg-type]
        decaying = [parameter for parameter in model.parameters() if parameter.dim() > 1]
        others = [parameter for parameter in model.parameters() if parameter.dim() < 2]
        groups = [{"params": decaying, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self._optimiser = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
        self._schedule = get_scheduler(settings.lr_scheduler_type, self._optimiser, round(settings.warmup_ratio * steps), steps)

    def run(self, batches: Iterable[Batch], loss: Loss) -> None:
        """One step a batch."""
        for batch in batches:
            sent = {name: value.to(self._device) for name, value in batch.items()}
            loss(self._model, sent).mean().backward()
            if self._clip:
                torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._clip)
            self._optimiser.step()
            self._schedule.step()
            self._optimiser.zero_grad()


@dataclass(frozen=True)
class TeacherInLoop:
    """The loss of each row with the teacher at work in every step: it runs, perturbs anew and runs again."""

    teacher: FrozenTeacher
    student: Student
    augment: AugmentSettings
    settings: StudentSettings
    cached: bool
    """Whether the logits on the clean inputs are at hand."""

    def __call__(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """The loss, [rows]."""
        words = self.teacher.words(batch["input_ids"])
        clean = batch["teacher_logits"] if self.cached else self._logits(batch, words)
        delta = self._searched(batch, words, clean)
        label = self._logits(batch, words + delta)
        own = embed(model, batch["input_ids"])
        logits, perturbed = (logits_from_embeddings(model, batch, at) for at in (own, own + mapped(delta, self.student.map)))
        return _whole_loss((logits, clean), (perturbed, label), batch, self.settings, self.teacher.task.kind)

    @cached_property
    def _epsilon(self) -> float:
        return scaled_epsilon(EPSILON, self.augment.perturbation.norm, self.teacher.table)

    @torch.no_grad()
    def _logits(self, batch: Batch, words: Tensor) -> Tensor:
        return self.teacher.logits_at(batch, words)

    def _searched(self, batch: Batch, words: Tensor, clean: Tensor) -> Tensor:
        """δ from a start of its own, as augment searches it."""
        search = self.augment.perturbation
        return perturb(
            forwards=[lambda delta: self.teacher.logits_at(batch, words + delta)],
            clean=clean,
            noise=torch.randn_like(words),
            free=ordinary_tokens(batch, self.teacher.tokenizer),
            search=Search(search, self._epsilon, self.teacher.task.kind),
        ).delta


@dataclass(frozen=True)
class BareLoss:
    """The loss of each row as anybody would write it, on a variant whose δ is ready under DELTA."""

    student: Student
    settings: StudentSettings
    kind: Kind

    def __call__(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """The loss, [rows]."""
        variant = {name.removeprefix(VARIANT): value for name, value in batch.items() if name.startswith(VARIANT)}
        inputs = model_inputs(variant)
        words = model.get_input_embeddings()(inputs.pop("input_ids")) + mapped(variant[DELTA], self.student.map)
        clean, perturbed = model(**model_inputs(batch)).logits, model(inputs_embeds=words, **inputs).logits
        pairs = (clean, batch["teacher_logits"]), (perturbed, variant["logits"])
        return _whole_loss(*pairs, batch, self.settings, self.kind)


def _whole_loss(clean: Pair, perturbed: Pair, batch: Batch, settings: StudentSettings, kind: Kind) -> Tensor:
    """What a student on stored variants makes small, [rows]: its logits against the teacher's on two inputs."""
    loss = clean_loss(*clean, batch["labels"], settings.loss, kind)
    return loss + settings.loss.variants * imitation_loss(*perturbed, settings.loss, kind)


def pieces_of(rows: Examples, settings: TrainingSettings, epoch: int) -> list[MicroBatch]:
    """The steps of an epoch, as every training here takes them."""
    order = EpochOrder(rows.lengths(), settings.batch_size, settings.num_train_epochs, settings.seed, StepSharding())
    order.set_epoch(epoch)
    return list(order)


def clean_batches(world: World, made: StageOne, epochs: int) -> list[list[Batch]]:
    """Every epoch's batches without variants, ready."""
    settings = world.student(epochs).training
    rows = Examples(Shards(made.soft_labels), "train")
    return [[rows.batch(piece) for piece in pieces_of(rows, settings, epoch)] for epoch in range(epochs)]


def varied_batches(world: World, made: StageOne, epochs: int, epoch: int) -> list[Batch]:
    """One epoch's batches with their variants, δ decoded, ready."""
    settings = world.student(epochs)
    rows = train_rows(made, settings)
    batches = [rows.batch(piece) for piece in pieces_of(rows, settings.training, epoch)]
    for batch in batches:
        batch[VARIANT + DELTA] = dequantise(batch.pop(VARIANT + CODES), batch.pop(VARIANT + SCALES))
    return batches


def train_rows(made: StageOne, settings: StudentSettings) -> Examples:
    """The train split as a student of these settings sees it."""
    known = Examples(Shards(made.soft_labels), "train")
    if settings.variant_policy == "none":
        return known
    return replace(known, variants=Variants(Shards(made.shards), known.shards, settings.variant_policy))


def from_shards(world: World, made: StageOne, epochs: int, folder: Path) -> list[float]:
    """Open and verify the shards, train a student with its checkpoints kept, as the stage distill does, and write it.

    Returns the seconds of all epochs but the first, each from one whole checkpoint to the next: steps, dev and that checkpoint.
    """
    ends: list[float] = []
    save = Checkpoints.on_save

    def timed_save(self: Checkpoints, *facts: Any, **named: Any) -> None:
        save(self, *facts, **named)
        ends.append(time.perf_counter())

    with mock.patch.object(Checkpoints, "on_save", timed_save):
        sources, settings = Sources.open(ModelFolder(world.teacher), made.soft_labels, made.shards), world.student(epochs)
        student, fit = train("offline", sources, settings, RunOptions(folder / "checkpoints"))
        write_student(folder / "student", sources, student, fit.history)
    return [end - before for before, end in pairwise(ends)]


def with_teacher(world: World, epochs: Sequence[list[Batch]], cached: bool, folder: Path) -> list[float]:
    """Train the same student on the same rows with the teacher in the loop and write it; returns the epochs' seconds."""
    settings = world.student(len(epochs))
    teacher = ModelFolder(world.teacher)
    student = make_student(teacher, settings, settings.training.seed)
    loss = TeacherInLoop(FrozenTeacher(teacher), student, world.needs.augment, settings, cached)
    loop = Loop(student.model, settings.training, sum(map(len, epochs)))
    seconds = [timed(partial(loop.run, batches, loss)) for batches in epochs]
    student.model.save_pretrained(folder)
    return seconds
