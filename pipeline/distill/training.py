"""Train one student from shards: pair each example with a variant, decode its perturbation, minimise the objective.

Knows shards and a student; the corpus is not read and the teacher never runs.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.distill.card import write_card
from pipeline.distill.objective import ObjectiveSettings, distillation_loss
from pipeline.distill.student import SizeSettings, Student, make_student
from pipeline.encoding import Batch, collate, model_inputs
from pipeline.errors import PipelineError
from pipeline.files import folder_written_whole, write_json
from pipeline.finetuning import Item, OptimiserSettings, best_epoch, fine_tune, write_history
from pipeline.models import embed, load_tokenizer, logits_from_embeddings, logits_from_ids
from pipeline.shards.codec import CODECS, dequantise
from pipeline.shards.lineage import lineage
from pipeline.shards.manifest import ShardMismatch, check_agreement, manifest_hash
from pipeline.shards.reader import Positions, Row, Rows, Shards, join
from pipeline.tasks import Floats, Task, measure, predictions
from pipeline.views import carried, mixing_batch, view_embeddings

LINEAGE_FILE = "lineage.json"

AGAIN = "Make them again for this teacher: dvc repro"

VARIANT = "variant_"
"""Before the names of a batch's entries that belong to the variants."""


class StudentSettings(SizeSettings):
    """One student: its size, and how it learns."""

    augmentation: Literal["shards", "none"]
    """Whether it learns from the perturbed variants; ``none`` is the control."""
    objective: ObjectiveSettings
    optimiser: OptimiserSettings


@dataclass(frozen=True)
class DistillRows:
    """The train split: every example with its score and, where there are variants, one perturbed row.

    Variants take turns: epoch e shows variant 1 + e modulo V of every example.
    """

    scores: Rows
    variants: list[tuple[Rows, Positions]]

    def lengths(self) -> npt.NDArray[np.int64]:
        """Number of tokens of each row."""
        return self.scores.lengths()

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, item: Item) -> tuple[Row, Row | None]:
        row, epoch = item
        if not self.variants:
            return self.scores[row], None
        perturbed, positions = self.variants[epoch % len(self.variants)]
        return self.scores[row], perturbed[int(positions[row])]


def distill(name: str, scores: Path, shards: Path, teacher: Path, settings: StudentSettings, out: Path) -> dict[str, Any]:
    """Train a student and write it to ``out`` as a Hugging Face folder; returns its lineage.

    Raises:
        ShardMismatch: scores, perturbations and teacher do not belong together, or a shard is missing or damaged.
        PipelineError: the student cannot be built, or its embeddings cannot take the stored perturbations.
    """
    known, perturbations = _open(scores, shards, teacher, settings)
    student = make_student(teacher, settings, settings.optimiser.seed)
    if perturbations is not None and settings.start == "scratch":
        raise PipelineError(
            f"student {name} starts from scratch, so no map carries the stored perturbations into its embeddings; "
            "use start: teacher, or augmentation: none"
        )
    task = known.manifest.task
    history = train_student(f"distill {task.name} {name}", student, known, perturbations, settings)
    dev = known.rows("dev", 0)
    facts = {
        "task": task.name,
        "student": name,
        "settings": settings.model_dump(mode="json", exclude_none=True),
        "teacher": known.manifest.key["teacher"],
        "scores": manifest_hash(scores),
        "shards": None if perturbations is None else manifest_hash(shards),
        "dev": best_epoch(history)["dev"],
        "teacher_dev": measure(task, answers(task, dev), dev.matrix("teacher_logits")),
        "best_epoch": best_epoch(history)["epoch"],
        "start": student.facts,
    }
    tokenizer = load_tokenizer(teacher)
    with folder_written_whole(out) as folder:
        student.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_history(folder, history)
        write_json(folder / LINEAGE_FILE, facts)
        write_card(folder, task, facts, known.manifest, perturbations.manifest if perturbations else None)
    return facts


def train_student(
    name: str,
    student: Student,
    known: Shards,
    perturbations: Shards | None,
    settings: StudentSettings,
    snapshots: Sequence[Path] = (),
) -> list[dict[str, float]]:
    """Train a student in place and return its history; ``snapshots`` are folders for its weights on the way."""
    task, dev = known.manifest.task, known.rows("dev", 0)
    labels = answers(task, dev)
    return fine_tune(
        name,
        student.model,
        _train_rows(known, perturbations),
        DistillRows(dev, []),
        Collator(known, perturbations),
        StudentLoss(student, settings.objective, task),
        lambda logits: measure(task, labels, logits),
        settings.optimiser,
        snapshots,
    )


def answers(task: Task, rows: Rows) -> Floats:
    """The labels of a split, or the teacher's answers where the corpus has none."""
    labels = rows.labels()
    return predictions(task, rows.matrix("teacher_logits")) if np.isnan(labels).any() else labels


@dataclass(frozen=True)
class Collator:
    """Rows to a batch: token ids padded, labels, the teacher's logits, and under names of their own the variants."""

    scores: Shards
    perturbations: Shards | None

    def __call__(self, pairs: list[tuple[Row, Row | None]]) -> Batch:
        rows = [row for row, _ in pairs]
        types = None if rows[0].token_type_ids is None else [row.token_type_ids for row in rows]
        batch = collate([row.input_ids for row in rows], types, self.scores.manifest.pad_token_id)  # type: ignore[arg-type]
        labels = [np.nan if row.label is None else row.label for row in rows]
        batch["labels"] = torch.tensor(labels, dtype=torch.float32)
        batch["teacher_logits"] = torch.from_numpy(np.stack([row.teacher_logits for row in rows]))
        variants = [row for _, row in pairs if row is not None]
        of_variants = self._variant(variants) if variants else {}
        return batch | {VARIANT + name: value for name, value in of_variants.items()}

    def _variant(self, rows: list[Row]) -> Batch:
        """The variants' own inputs, the teacher's logits on them and, where they are perturbed, codes and scales of δ."""
        types = None if rows[0].token_type_ids is None else [row.token_type_ids for row in rows]
        batch = mixing_batch(
            [row.input_ids for row in rows],
            types,  # type: ignore[arg-type]
            [row.partner_ids for row in rows],
            [row.own_weight for row in rows],
            self.scores.manifest.pad_token_id,
        )
        if any(row.delta is not None for row in rows):
            batch |= self._coded(rows, batch["input_ids"].shape[1])
        batch["logits"] = torch.from_numpy(np.stack([row.perturbed_logits for row in rows]))  # type: ignore[misc]
        return batch

    def _coded(self, rows: list[Row], tokens: int) -> Batch:
        """Codes [rows, tokens, width] and scales [rows, tokens]; zero on padding and for rows that are not perturbed."""
        assert self.perturbations is not None, "variants come from shards"
        assert self.perturbations.manifest.coding is not None, "shards of variants say how they are coded"
        width, codec = self.perturbations.manifest.coding.width, CODECS[self.perturbations.manifest.coding.codec]
        codes = np.zeros((len(rows), tokens, width), dtype=codec.dtype)
        scales = np.zeros((len(rows), tokens), dtype=np.float32)
        for number, row in enumerate(rows):
            if row.delta is not None:
                unpacked = codec.unpack(row.delta, width)
                codes[number, : len(unpacked)] = unpacked
                scales[number, : len(unpacked)] = row.delta_scale
        return {"codes": torch.from_numpy(codes), "scales": torch.from_numpy(scales)}


@dataclass(frozen=True)
class StudentLoss:
    """The objective on a batch, and the student's logits on its untouched inputs."""

    student: Student
    objective: ObjectiveSettings
    task: Task

    def __call__(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = logits_from_ids(model, model_inputs(batch))
        variant = {name.removeprefix(VARIANT): value for name, value in batch.items() if name.startswith(VARIANT)}
        perturbed = (self._on_variant(model, variant), variant["logits"]) if variant else None
        loss = distillation_loss(logits, batch["teacher_logits"], batch["labels"], perturbed, self.objective, self.task.kind)
        return loss, logits

    def _on_variant(self, model: PreTrainedModel, variant: Batch) -> Tensor:
        """The student's logits on what the teacher labelled."""
        words = view_embeddings(functools.partial(embed, model), variant)
        if "codes" in variant:
            words = words + carried(dequantise(variant["codes"], variant["scales"]), self.student.map)
        return logits_from_embeddings(model, model_inputs(variant), words)


def open_scores(scores: Path, teacher: Path) -> Shards:
    """Open the scores, and refuse those of another teacher."""
    known = Shards(scores)
    check_agreement(f"the scores in {scores}", lineage(teacher), known.manifest.key, AGAIN)
    return known


def _open(scores: Path, shards: Path, teacher: Path, settings: StudentSettings) -> tuple[Shards, Shards | None]:
    """Open what the student learns from, and refuse what does not belong together."""
    known = open_scores(scores, teacher)
    if settings.augmentation == "none":
        return known, None
    perturbations = Shards(shards)
    check_agreement(f"the perturbations in {shards}", lineage(teacher), perturbations.manifest.key, AGAIN)
    made_from = {"scores": perturbations.manifest.details["scores"]}
    check_agreement(f"the perturbations in {shards}", {"scores": manifest_hash(scores)}, made_from, AGAIN)
    if not perturbations.manifest.variants:
        raise ShardMismatch(f"{shards} holds no variant; set augment.variants above 0, or augmentation: none for this student")
    return known, perturbations


def _train_rows(known: Shards, perturbations: Shards | None) -> DistillRows:
    rows = known.rows("train", 0)
    if perturbations is None:
        return DistillRows(rows, [])
    numbers = range(1, perturbations.manifest.variants + 1)
    variants = [perturbations.rows("train", number) for number in numbers]
    return DistillRows(rows, [(variant, join(rows, variant)) for variant in variants])
