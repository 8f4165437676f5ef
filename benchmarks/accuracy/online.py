"""The reference outside the pipeline: a student with the teacher at work in every step, as AD² is published.

Knows the same settings, rows and optimiser as a student from shards; what it costs is benchmarks.cost's.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.accuracy.adversary import OwnGradient
from pipeline.augment.teacher import FrozenTeacher
from pipeline.config.errors import PipelineError
from pipeline.config.settings import Effect, LossSettings, PerturbationSettings, StudentSettings
from pipeline.corpus.encoding import Batch, model_inputs, ordinary_tokens
from pipeline.corpus.task import measure
from pipeline.distill.dataset import Examples
from pipeline.distill.losses import clean_loss, imitation_loss
from pipeline.distill.student import make_student
from pipeline.distill.training import Sources, write_student
from pipeline.models.folder import ModelFolder
from pipeline.models.forward import embed, logits_from_embeddings, word_embeddings
from pipeline.perturbation.search import Search, perturb, scaled_epsilon
from pipeline.perturbation.surrogate import mapped
from pipeline.shards.manifest import LINEAGE_FILE, manifest_hash
from pipeline.store.files import write_json
from pipeline.training.trainer import Objective, TrainDev, fine_tune

GradientOwner = Literal["student", "teacher"]
"""Whose gradient is followed; the teacher labels the perturbed input in either case."""


@dataclass(frozen=True)
class OnlineLoss:
    """The loss of each row; the teacher labels the perturbed input."""

    teacher: FrozenTeacher
    map: Tensor | None
    """[teacher's embedding width, student's]; None if both share one space."""
    settings: LossSettings
    search: PerturbationSettings
    """How δ is searched by the teacher's gradient."""
    own: OwnGradient | None
    """None to follow the teacher's gradient."""

    def __call__(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """The loss, [rows]."""
        settings, kind = self.settings, self.teacher.task.kind
        logits_at = partial(logits_from_embeddings, model, model_inputs(batch))
        words, clean = embed(model, batch["input_ids"]), batch["teacher_logits"]
        logits = logits_at(words).float()
        teachers = self.teacher.words(batch["input_ids"])
        delta = self.own.delta(words, logits, batch) if self.own else self._of_the_teacher(batch, teachers)
        with torch.no_grad():
            label = self.teacher.logits_at(batch, teachers + delta)
        perturbed = logits_at(words + mapped(delta, self.map)).float()
        loss = clean_loss(logits, clean, batch["labels"], settings, kind)
        return loss + settings.variants * imitation_loss(perturbed, label, settings, kind)

    def _of_the_teacher(self, batch: Batch, words: Tensor) -> Tensor:
        epsilon = self.search.epsilon
        assert isinstance(epsilon, float), "arms with the teacher in the loop state epsilon as a number, not as an effect"
        return perturb(
            forwards=[lambda delta: self.teacher.logits_at(batch, words + delta)],
            clean=batch["teacher_logits"],
            noise=torch.randn_like(words),
            free=ordinary_tokens(batch, self.teacher.tokenizer),
            search=Search(self.search, scaled_epsilon(epsilon, self.search.norm, self.teacher.table), self.teacher.task.kind),
        ).delta


def train_online(
    owner: GradientOwner,
    teacher: Path,
    soft_labels: Path,
    settings: StudentSettings,
    search: PerturbationSettings,
    out: Path,
    cost: Path,
) -> None:
    """Train a student with the teacher in the loop and write it to ``out``, what it took to ``cost``, as `distill` does.

    The perturbed pass drops other neurons than the clean one. ``search`` is how δ is searched by the teacher's gradient.

    Raises:
        PipelineError: the student is narrower than the teacher, which cannot label what the student's gradient moves,
            epsilon is stated as an effect, which nothing here calibrates, or the task is a regression, whose students are
            fitted in other units than those of the teacher's logits.
    """
    sources = Sources.open(ModelFolder(teacher), soft_labels, None)
    task = sources.task
    if task.kind == "regression":
        raise PipelineError("arms with the teacher in the loop are for classifications")
    student = make_student(sources.teacher, settings, settings.training.seed)
    if owner == "student" and student.map is not None:
        raise PipelineError("the teacher can only label perturbations of a student that is as wide as itself")
    if isinstance(search.epsilon, Effect):
        raise PipelineError("an arm with the teacher in the loop states epsilon as a number, not as an effect")
    own = OwnGradient.of(word_embeddings(student.model), task.kind, sources.teacher.tokenizer) if owner == "student" else None
    loss = OnlineLoss(FrozenTeacher(sources.teacher), student.map, settings.loss, search, own)
    rows, dev = (Examples(sources.soft_labels, split) for split in ("train", "dev"))
    labels = dev.rows.labels()

    def worth(logits: Any) -> float:
        return measure(task, labels, logits)

    fit = fine_tune(f"online {task.name}", student.model, TrainDev(rows, dev), Objective(loss, worth), settings.training)
    outcome = write_student(out, sources, student, fit.history)
    made_from = {"task": task.name, "student": "online", "teacher": sources.soft_labels.manifest.key["teacher"]}
    made_from |= {"soft_labels": manifest_hash(soft_labels), "shards": None}
    write_json(out / LINEAGE_FILE, made_from | {"settings": settings.model_dump(mode="json", exclude_none=True)} | outcome)
    write_json(cost, {"seconds": round(fit.seconds, 1), "steps": fit.history[-1]["step"]})
