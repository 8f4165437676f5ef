"""What a student is trained to make small. Knows logits and labels, not models or shards: change the loss here."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from pipeline.config import Settings
from pipeline.finetuning import label_loss
from pipeline.tasks import Kind

Weight = Annotated[float, Field(ge=0)]


class ObjectiveSettings(Settings):
    """Weights and form of the loss."""

    hard: Weight
    """Of the labels; rows without one do not count."""
    soft: Weight
    """Of the teacher's logits on the untouched input."""
    perturbed: Weight
    """Of the teacher's logits on the perturbed input."""
    form: Literal["kl", "mse"]
    """How logits are compared; a regression is always compared by squared error."""
    temperature: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _something_to_learn(self) -> "ObjectiveSettings":
        if not self.hard + self.soft + self.perturbed:
            raise ValueError("one of the weights hard, soft and perturbed must be above 0")
        return self


def soft_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """KL(teacher ‖ student) at ``temperature``, mean over the batch, in nats.

    Both logits are [rows, classes] at temperature 1. The result is multiplied by temperature² so that its gradient keeps
    the size of the hard loss's when the temperature changes (Hinton et al. 2015, §2).
    """
    student = (student_logits / temperature).log_softmax(dim=-1)
    teacher = (teacher_logits / temperature).log_softmax(dim=-1)
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def imitation_loss(student_logits: Tensor, teacher_logits: Tensor, settings: ObjectiveSettings, kind: Kind) -> Tensor:
    """How far the student is from the teacher, mean over the batch; both logits are [rows, outputs]."""
    if kind == "regression" or settings.form == "mse":
        return functional.mse_loss(student_logits, teacher_logits)
    return soft_loss(student_logits, teacher_logits, settings.temperature)


def distillation_loss(
    logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    perturbed: tuple[Tensor, Tensor] | None,
    settings: ObjectiveSettings,
    kind: Kind,
) -> Tensor:
    """The weighted sum: hard · label loss + soft · imitation, untouched + perturbed · imitation, perturbed.

    Args:
        logits: the student's, untouched input, [rows, outputs].
        teacher_logits: the teacher's, untouched input, [rows, outputs].
        labels: [rows], NaN where there is none.
        perturbed: the student's and the teacher's logits on the perturbed input, each [rows, outputs]; None without.
        settings: the weights and the form.
        kind: of the task.
    """
    loss = settings.soft * imitation_loss(logits, teacher_logits, settings, kind)
    if settings.hard:
        loss = loss + settings.hard * label_loss(logits, labels, kind)
    if perturbed is not None:
        loss = loss + settings.perturbed * imitation_loss(*perturbed, settings, kind)
    return loss
