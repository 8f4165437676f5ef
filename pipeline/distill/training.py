"""Training of one student: its sources, the fit, and the Hugging Face folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from pipeline.config.errors import PipelineError
from pipeline.config.settings import StudentSettings
from pipeline.corpus.task import Task, measure
from pipeline.distill.dataset import Examples, Variants, check_policy, checkpoints_of, followed_in
from pipeline.distill.losses import StudentLoss
from pipeline.distill.student import Student, make_student
from pipeline.models.folder import ModelFolder
from pipeline.models.forward import Scale, freeze_unused, head_of
from pipeline.shards.manifest import Manifest, ShardMismatch, check_agreement, lineage, manifest_hash
from pipeline.shards.reader import Shards
from pipeline.store.store import Store
from pipeline.training.callbacks import RunOptions
from pipeline.training.order import MicroBatch
from pipeline.training.trainer import Fit, Objective, TrainDev, fine_tune, write_history

AGAIN = "Make them again for this teacher: dvc repro"

Outcome = dict[str, Any]
"""Result of a training: dev metrics of student and teacher, and facts on the initial weights."""

FRESH_SHARE_NOTED = 0.05
"""Share of random initial weights above which a line is printed; a new head has less."""


@dataclass(frozen=True)
class Sources:
    """The data that a student learns from, all of one teacher."""

    teacher: ModelFolder
    soft_labels: Shards
    variants: Shards | None
    """None for a student without variants."""

    @classmethod
    def open(cls, teacher: ModelFolder, soft_labels: Path, shards: Path | None, store: Store | None = None) -> "Sources":
        """Open soft labels and, if given, variants; ``store`` has them if it is remote.

        Raises:
            ShardMismatch: they do not belong to the teacher or to each other, or a shard is missing.
            PipelineError: the cache of a remote store is too small for them.
        """
        known = Shards.holding("soft_labels", soft_labels, store)
        check_agreement(f"the soft labels in {soft_labels}", lineage(teacher), known.manifest.key, AGAIN)
        if store is not None:
            sets = [known.manifest, *([] if shards is None else [Manifest.read(shards)])]
            size = sum(entry.receipt.bytes for one in sets for entry in one.shards)
            store.check_fits(size, f"the shards that students of {known.manifest.task.name} read")
        if shards is None:
            return cls(teacher, known, None)
        variants = Shards.holding("variants", shards, store)
        check_agreement(f"the variants in {shards}", lineage(teacher), variants.manifest.key, AGAIN)
        check_made_from(shards, soft_labels)
        if not variants.manifest.variants:
            raise ShardMismatch(
                f"{shards} holds no variant; set augment.variants above 0, or variant_policy: none for this student"
            )
        return cls(teacher, known, variants)

    @property
    def task(self) -> Task:
        """The task of the soft labels."""
        return self.soft_labels.manifest.task


def check_made_from(shards: Path, soft_labels: Path) -> None:
    """Reject variants that were made from other soft labels.

    Raises:
        ShardMismatch: names both manifests.
    """
    made_from = {"soft_labels": Manifest.read(shards).details["soft_labels"]}
    check_agreement(f"the variants in {shards}", {"soft_labels": manifest_hash(soft_labels)}, made_from, AGAIN)


def train(name: str, sources: Sources, settings: StudentSettings, options: RunOptions) -> tuple[Student, Fit]:
    """Build a student and train it.

    Raises:
        PipelineError: the student cannot be built, its policy does not fit the variants, or a shard is damaged.
    """
    task, student = sources.task, make_student(sources.teacher, settings, settings.training.seed)
    if (share := student.fresh_share()) > FRESH_SHARE_NOTED:
        print(f"{name}: {share:.0%} of its weights have no counterpart and start at random", flush=True)
    scale = units_of(sources, student.model)
    rows, dev = _train_rows(sources, settings, scale), Examples(sources.soft_labels, "dev", scale=scale)
    loss = settings.loss
    if not loss.soft_labels and not (rows.variants and loss.variants) and np.isnan(rows.labels()).all():
        raise PipelineError(f"{name}: no train row has a label, and the loss has no other term; set loss.soft_labels above 0")
    if scale is not None:
        _to_training_units(student, scale)
    if dist.is_initialized():
        freeze_unused(student.model, dev.batch(MicroBatch(np.zeros(1, dtype=np.int64), 0, 0.0, 1.0)))
    labels = dev.rows.labels()
    if rows.variants is not None and options.dataloader_num_workers:
        rows.variants.open_all()
    try:
        fit = fine_tune(
            name,
            student.model,
            TrainDev(rows, dev),
            Objective(StudentLoss(student.map, loss, task.kind), lambda logits: measure(task, labels, logits)),
            settings.training,
            options,
        )
    finally:
        if sources.variants is not None:
            sources.variants.close()
    if scale is not None:
        scale.put_into(student.model)
    return student, fit


def _train_rows(sources: Sources, settings: StudentSettings, scale: Scale | None) -> Examples:
    """The train split, with the variants if there are any."""
    rows = Examples(sources.soft_labels, "train", scale=scale)
    if sources.variants is None:
        return rows
    manifest = sources.variants.manifest
    check_policy(settings.variant_policy, followed_in(manifest), checkpoints_of(manifest))
    variants = Variants(sources.variants, sources.soft_labels, settings.variant_policy)
    return Examples(sources.soft_labels, "train", variants, scale)


def units_of(sources: Sources, model: PreTrainedModel) -> Scale | None:
    """Units in which the student of a regression is trained, so that the learning rate does not depend on the labels' unit.

    They are those of the teacher's values on train; None for a classification.
    """
    if sources.task.kind != "regression":
        return None
    values = sources.soft_labels.rows("train", 0).matrix("teacher_logits")[:, 0]
    return Scale.of(values.astype(np.float64), model)


def _to_training_units(student: Student, scale: Scale) -> None:
    """Make a student predict in training units; a new head starts about 0, so a copied bias is cleared."""
    head = head_of(student.model)
    if not student.new_head:
        scale.take_out_of(student.model)
    elif head.bias is not None:
        torch.nn.init.zeros_(head.bias)


def write_student(folder: Path, sources: Sources, student: Student, history: list[dict[str, float]]) -> Outcome:
    """Write a trained student as a Hugging Face folder with its history."""
    student.model.save_pretrained(folder)
    sources.teacher.tokenizer.save_pretrained(folder)
    write_history(folder, history)
    task, dev = sources.task, sources.soft_labels.rows("dev", 0)
    return {
        "dev": history[-1]["dev"],
        "teacher_dev": measure(task, dev.labels(), dev.matrix("teacher_logits")),
        "start": student.facts,
    }
