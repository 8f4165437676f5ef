"""Train one student: open what it learns from, refuse what does not belong together, fit, write a Hugging Face folder.

Knows shards, a student and the objective; the corpus is not read and the teacher never runs.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.config.errors import PipelineError
from pipeline.corpus.task import Task, measure
from pipeline.distill.adversary import OwnAdversary, check_search
from pipeline.distill.examples import Examples, Variants
from pipeline.distill.settings import StudentSettings
from pipeline.distill.step import StudentLoss
from pipeline.distill.student import Student, make_student
from pipeline.distill.uses import aims_in, check_use, snapshots_of
from pipeline.models.folder import depth_of, embedding_width, load_tokenizer
from pipeline.models.forward import freeze_unused, head_of, word_embeddings
from pipeline.models.scale import Scale
from pipeline.perturbation.search import Effect, PerturbationSettings
from pipeline.shards.lineage import LINEAGE_FILE, lineage
from pipeline.shards.manifest import Manifest, ShardMismatch, check_agreement, manifest_hash
from pipeline.shards.reader import Shards
from pipeline.store.files import write_json
from pipeline.training.callbacks import RunOptions
from pipeline.training.order import MicroBatch
from pipeline.training.trainer import Fit, Objective, TrainDev, best_epoch, fine_tune, write_history

AGAIN = "Make them again for this teacher: dvc repro"

Outcome = dict[str, Any]
"""What came of a training: dev metrics of student and teacher, the best epoch, and what the student began with."""

FRESH_UNTOLD = 0.05
"""Of a student's weights no more than this share may begin at random without a word: a new head has less."""


@dataclass(frozen=True)
class Sources:
    """What a student learns from, opened, verified and of one teacher."""

    teacher: Path
    scores: Shards
    variants: Shards | None
    """None for a student that sees none."""

    @classmethod
    def open(cls, teacher: Path, scores: Path, shards: Path | None) -> "Sources":
        """Open scores and, where they are wanted, variants.

        Raises:
            ShardMismatch: they do not belong to the teacher or to each other, or a shard is missing or damaged.
        """
        known = Shards.holding("scores", scores)
        check_agreement(f"the scores in {scores}", lineage(teacher), known.manifest.key, AGAIN)
        if shards is None:
            return cls(teacher, known, None)
        variants = Shards.holding("perturbations", shards)
        check_agreement(f"the perturbations in {shards}", lineage(teacher), variants.manifest.key, AGAIN)
        check_made_from(shards, scores)
        if not variants.manifest.variants:
            raise ShardMismatch(
                f"{shards} holds no variant; set augment.variants above 0, or adversary: student or none for this student"
            )
        return cls(teacher, known, variants)

    @property
    def task(self) -> Task:
        """Of the scores."""
        return self.scores.manifest.task


def check_made_from(shards: Path, scores: Path) -> None:
    """Refuse variants of other scores than these; reads two manifests.

    Raises:
        ShardMismatch: they are of others.
    """
    made_from = {"scores": Manifest.read(shards).details["scores"]}
    check_agreement(f"the perturbations in {shards}", {"scores": manifest_hash(scores)}, made_from, AGAIN)


def train(name: str, sources: Sources, settings: StudentSettings, options: RunOptions) -> tuple[Student, Fit]:
    """Build a student and train it.

    Raises:
        PipelineError: the student cannot be built, or the variants cannot be used as asked.
    """
    if sources.variants is not None:
        manifest = sources.variants.manifest
        check_use(settings.variants, aims_in(manifest), snapshots_of(manifest))
    student, tokenizer = make_student(sources.teacher, settings, settings.optimiser.seed), load_tokenizer(sources.teacher)
    if (share := student.fresh_share()) > FRESH_UNTOLD:
        print(f"{name}: {share:.0%} of its weights have no counterpart to be cut from and begin at random", flush=True)
    scale = units_of(sources, student.model)
    train_rows, dev = (
        _train_rows(sources, settings, scale),
        Examples(sources.scores, "dev", settings.optimiser.seed, scale=scale),
    )
    if _labels_alone(settings, sources.variants is not None) and np.isnan(train_rows.rows.labels()).all():
        raise PipelineError(f"{name}: no train row has a label, and nothing else is learnt from; set objective.soft above 0")
    if scale is not None:
        _begin_reduced(student, scale)
    if dist.is_initialized():
        freeze_unused(student.model, dev.batch(MicroBatch(np.zeros(1, dtype=np.int64), 0, 0.0, 1.0)))
    adversary = _own_adversary(student, settings, sources.task, tokenizer, scale)
    if settings.residual and sources.variants is not None:
        student.learn_residual(embedding_width(sources.teacher))
    loss = StudentLoss(
        student=student,
        objective=settings.objective,
        kind=sources.task.kind,
        use=settings.variants,
        stored=settings.adversary.shards,
        own=settings.adversary.student,
        adversary=adversary,
        layers=_compared_layers(student, sources, settings),
    )
    labels = dev.rows.labels()
    fit = fine_tune(
        name,
        student.model,
        TrainDev(train_rows, dev),
        Objective(loss, lambda logits: measure(sources.task, labels, logits), memory=adversary),
        settings.optimiser,
        options,
    )
    student.forget_residual()
    if scale is not None:
        scale.put_into(student.model)
    if adversary is not None:
        student.facts["own_radius"] = round(adversary.radius, 4)
    return student, fit


def units_of(sources: Sources, model: PreTrainedModel) -> Scale | None:
    """The units in which a student of a regression is fitted: those of its teacher's answers on train.

    None for a classification. In the labels' own unit a step moved the head too little or too much, and the weights of the
    objective would mean something else in every task.
    """
    if sources.task.kind != "regression":
        return None
    told = sources.scores.rows("train", 0).matrix("teacher_logits")[:, 0]
    return Scale.of(told.astype(np.float64), model)


def _begin_reduced(student: Student, scale: Scale) -> None:
    """Make a student give reduced values; a head that is new begins about 0, whatever bias was copied beside it."""
    head = head_of(student.model)
    if not student.new_head:
        scale.take_out_of(student.model)
    elif head.bias is not None:
        torch.nn.init.zeros_(head.bias)


def write_student(folder: Path, sources: Sources, student: Student, history: list[dict[str, float]]) -> Outcome:
    """Write a trained student as a Hugging Face folder with its history."""
    student.model.save_pretrained(folder)
    load_tokenizer(sources.teacher).save_pretrained(folder)
    write_history(folder, history)
    task, dev = sources.task, sources.scores.rows("dev", 0)
    return {
        "dev": best_epoch(history)["dev"],
        "teacher_dev": measure(task, dev.labels(), dev.matrix("teacher_logits")),
        "best_epoch": best_epoch(history)["epoch"],
        "start": student.facts,
    }


def write_lineage(
    folder: Path, name: str, scores: Path, shards: Path | None, settings: StudentSettings, outcome: Outcome
) -> dict[str, Any]:
    """Write what a student was made from, and how, beside its weights; returns it.

    Args:
        folder: the student's.
        name: what it is called.
        scores: the folder of the scores that it learnt from.
        shards: that of the variants; None where it sees none.
        settings: all of its settings.
        outcome: what came of its training.
    """
    manifest = Manifest.read(scores)
    made_from = {
        "task": manifest.task.name,
        "student": name,
        "settings": settings.model_dump(mode="json", exclude_none=True),
        "teacher": manifest.key["teacher"],
        "scores": manifest_hash(scores),
        "shards": None if shards is None else manifest_hash(shards),
    }
    write_json(folder / LINEAGE_FILE, made_from | outcome)
    return made_from | outcome


def _labels_alone(settings: StudentSettings, variants: bool) -> bool:
    """Whether a student without labels would learn nothing; a scout sees no variants, whatever its shares are."""
    objective = settings.objective
    return not objective.soft + objective.hidden + (objective.perturbed if variants else 0.0)


def _own_adversary(
    student: Student, settings: StudentSettings, task: Task, tokenizer: PreTrainedTokenizerBase, scale: Scale | None
) -> OwnAdversary | None:
    if not settings.adversary.student:
        return None
    check_search(settings.perturbation, task.kind)
    turns = settings.optimiser.gradient_accumulation_steps
    search = settings.perturbation if scale is None else _in_reduced_units(settings.perturbation, scale)
    return OwnAdversary(search, task.kind, word_embeddings(student.model), tokenizer, turns)


def _in_reduced_units(search: PerturbationSettings, scale: Scale) -> PerturbationSettings:
    """The search with its effect, which is stated as a squared error of real values, as one of reduced values."""
    if not isinstance(search.radius, Effect) or search.radius.divergence is None:
        return search
    return search.model_copy(update={"radius": Effect(divergence=search.radius.divergence / scale.deviation**2)})


def _compared_layers(student: Student, sources: Sources, settings: StudentSettings) -> list[int]:
    """The student's layers that lie as deep as those of the teacher whose states are kept.

    Raises:
        PipelineError: none are kept, or the map of the embeddings does not carry them to the student.
    """
    if not settings.objective.hidden:
        return []
    stored = sources.scores.manifest.hidden
    if not stored:
        raise PipelineError(
            "objective.hidden is above 0, but the scores hold no states of the teacher; name layers in score.hidden"
        )
    width = sources.scores.rows("dev", 0).lists_at("hidden", np.array([0])).lengths[0] // len(stored)
    carried = width if student.map is None else student.map.shape[1] if student.map.shape[0] == width else None
    if carried != student.model.config.hidden_size:
        raise PipelineError(
            f"the teacher's states are {width} wide and its embeddings' map does not bring them to the student's "
            f"{student.model.config.hidden_size}; set objective.hidden: 0, or give the student the teacher's width"
        )
    depth, own = depth_of(sources.teacher), student.model.config.num_hidden_layers
    return [max(1, round(layer * own / depth)) for layer in stored]


def _train_rows(sources: Sources, settings: StudentSettings, scale: Scale | None) -> Examples:
    """The train split, with variants where they are wanted and seeds where something is drawn for each row."""
    search, seed = settings.perturbation, settings.optimiser.seed
    seeded = bool(settings.adversary.student) and (search.start > 0 or search.objective == "noise")
    rows = Examples(sources.scores, "train", seed, seeded=seeded, hidden=bool(settings.objective.hidden), scale=scale)
    if sources.variants is None:
        return rows
    return dataclasses.replace(rows, variants=Variants(sources.variants, rows.rows, settings.variants))
