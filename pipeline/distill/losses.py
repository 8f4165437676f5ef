"""The loss of a student, row by row: every term, its weight, the temperature, and the inputs that the logits come from."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from pipeline.config.corpus import Kind
from pipeline.config.settings import LossSettings
from pipeline.corpus.encoding import Batch
from pipeline.distill.dataset import VARIANT
from pipeline.models.forward import embed, logits_from_embeddings, logits_from_ids
from pipeline.perturbation.surrogate import mapped
from pipeline.shards.batches import CODES, SCALES
from pipeline.shards.codec import dequantise
from pipeline.training.trainer import label_loss


def soft_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """KL(teacher ‖ student) at ``temperature`` of each row, [rows], in nats.

    Both logits are [rows, classes] at temperature 1. The result is multiplied by temperature² so that its gradient keeps
    the size of the hard loss's when the temperature changes (Hinton et al. 2015, §2).
    """
    student = (student_logits / temperature).log_softmax(dim=-1)
    teacher = (teacher_logits / temperature).log_softmax(dim=-1)
    return functional.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1) * temperature**2


def imitation_loss(student_logits: Tensor, teacher_logits: Tensor, settings: LossSettings, kind: Kind) -> Tensor:
    """Distance of the student's logits from the teacher's, both [rows, outputs]; returns [rows]."""
    if kind == "regression" or settings.form == "mse":
        return (student_logits - teacher_logits).square().mean(dim=-1)
    return soft_loss(student_logits, teacher_logits, settings.temperature)


def clean_loss(logits: Tensor, teacher_logits: Tensor, labels: Tensor, settings: LossSettings, kind: Kind) -> Tensor:
    """soft_labels · imitation loss + labels · label loss on clean inputs, [rows].

    Args:
        logits: the student's, [rows, outputs].
        teacher_logits: the teacher's, [rows, outputs].
        labels: [rows], NaN where there is none.
        settings: the weights and the form.
        kind: of the task.
    """
    loss = settings.soft_labels * imitation_loss(logits, teacher_logits, settings, kind)
    return loss + settings.labels * label_loss(logits, labels, kind) if settings.labels else loss


@dataclass(frozen=True)
class StudentLoss:
    """The whole loss of a batch: ``clean_loss`` + variants · the mean imitation loss on the variants used."""

    map: Tensor | None
    """[teacher's embedding width, student's]: maps δ to the student's word embeddings; None if they share one space."""
    settings: LossSettings
    kind: Kind

    def __call__(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """The loss of each row, [rows]."""
        rows = len(batch["teacher_logits"])
        loss = torch.zeros_like(batch["teacher_logits"][:, 0])
        if self.settings.soft_labels or self.settings.labels:  # otherwise the clean pass is skipped
            logits = logits_from_ids(model, batch).float()
            loss = clean_loss(logits, batch["teacher_logits"], batch["labels"], self.settings, self.kind)
        variants = {name.removeprefix(VARIANT): value for name, value in batch.items() if name.startswith(VARIANT)}
        if variants:
            imitation = imitation_loss(self.logits_on(model, variants), variants["logits"], self.settings, self.kind)
            loss = loss + self.settings.variants * imitation.reshape(-1, rows).mean(dim=0)
        return loss

    def logits_on(self, model: PreTrainedModel, variants: Batch) -> Tensor:
        """The student's logits [variants, outputs] on what the teacher labelled: word embeddings plus the mapped δ."""
        words = embed(model, variants["input_ids"])
        if CODES in variants:
            words = words + mapped(dequantise(variants[CODES], variants[SCALES]), self.map)
        return logits_from_embeddings(model, variants, words).float()
