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
from pipeline.corpus.encoding import Batch, model_inputs, ordinary_tokens
from pipeline.corpus.task import measure
from pipeline.distill.dataset import Examples
from pipeline.distill.losses import ObjectiveSettings, clean_loss, imitation_loss
from pipeline.distill.settings import StudentSettings
from pipeline.distill.student import make_student
from pipeline.distill.training import Sources, write_student
from pipeline.models.folder import load_tokenizer
from pipeline.models.forward import embed, logits_from_embeddings, word_embeddings
from pipeline.perturbation.inputs import carried
from pipeline.perturbation.search import Effect, PerturbationSettings, Search, perturb, radius_of
from pipeline.shards.manifest import LINEAGE_FILE, manifest_hash
from pipeline.store.files import write_json
from pipeline.training.trainer import Objective, TrainDev, fine_tune

Aim = Literal["student", "teacher"]
"""Whose gradient is followed; the teacher labels the perturbed input in either case."""


@dataclass(frozen=True)
class OnlineLoss:
    """The loss of each row; the teacher labels the perturbed input."""

    teacher: FrozenTeacher
    map: Tensor | None
    """[teacher's embedding width, student's]; None if both share one space."""
    objective: ObjectiveSettings
    search: PerturbationSettings
    """How δ is searched by the teacher's gradient."""
    own: OwnGradient | None
    """None to follow the teacher's gradient."""

    def __call__(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """The loss, [rows]."""
        objective, kind = self.objective, self.teacher.task.kind
        answer = partial(logits_from_embeddings, model, model_inputs(batch))
        words, clean = embed(model, batch["input_ids"]), batch["teacher_logits"]
        logits = answer(words).float()
        teachers = self.teacher.words(batch["input_ids"])
        delta = self.own.delta(words, logits, batch) if self.own else self._of_the_teacher(batch, teachers)
        with torch.no_grad():
            moved = self.teacher.logits_at(batch, teachers + delta)
        perturbed = answer(words + carried(delta, self.map)).float()
        loss = clean_loss(logits, clean, batch["labels"], objective, kind)
        return loss + objective.perturbed * imitation_loss(perturbed, moved, objective, kind)

    def _of_the_teacher(self, batch: Batch, words: Tensor) -> Tensor:
        radius = self.search.radius
        assert isinstance(radius, float), "arms with the teacher in the loop state a radius, not an effect"
        return perturb(
            forward=lambda delta: self.teacher.logits_at(batch, words + delta),
            clean=batch["teacher_logits"],
            noise=torch.randn_like(words),
            free=ordinary_tokens(batch, self.teacher.tokenizer),
            search=Search(self.search, radius_of(radius, self.search.norm, self.teacher.table), self.teacher.task.kind),
        ).delta


def train_online(
    aim: Aim, teacher: Path, scores: Path, settings: StudentSettings, search: PerturbationSettings, out: Path, cost: Path
) -> None:
    """Train a student with the teacher in the loop and write it to ``out``, what it took to ``cost``, as `distill` does.

    The perturbed pass drops other neurons than the untouched one. ``search`` is how δ is searched by the teacher's gradient.

    Raises:
        PipelineError: the student is narrower than the teacher, which cannot label what the student's gradient moves, the
            radius is stated as an effect, which nothing here follows, or the task is a regression, whose students are fitted in
            units that the teacher here does not answer in.
    """
    sources, tokenizer = Sources.open(teacher, scores, None), load_tokenizer(teacher)
    task = sources.task
    if task.kind == "regression":
        raise PipelineError("arms with the teacher in the loop are for classifications")
    student = make_student(teacher, settings, settings.optimiser.seed)
    if aim == "student" and student.map is not None:
        raise PipelineError("the teacher can only label perturbations of a student that is as wide as itself")
    if isinstance(search.radius, Effect):
        raise PipelineError("an arm with the teacher in the loop states a radius as a number, not as an effect")
    own = OwnGradient.of(word_embeddings(student.model), task.kind, tokenizer) if aim == "student" else None
    loss = OnlineLoss(FrozenTeacher(teacher), student.map, settings.objective, search, own)
    rows, dev = (Examples(sources.scores, split) for split in ("train", "dev"))
    labels = dev.rows.labels()

    def worth(logits: Any) -> float:
        return measure(task, labels, logits)

    fit = fine_tune(f"online {task.name}", student.model, TrainDev(rows, dev), Objective(loss, worth), settings.optimiser)
    outcome = write_student(out, sources, student, fit.history)
    made_from = {
        "task": task.name,
        "student": "online",
        "teacher": sources.scores.manifest.key["teacher"],
        "scores": manifest_hash(scores),
        "shards": None,
    }
    write_json(out / LINEAGE_FILE, made_from | {"settings": settings.model_dump(mode="json", exclude_none=True)} | outcome)
    write_json(cost, {"seconds": round(fit.seconds, 1), "steps": fit.history[-1]["step"]})
