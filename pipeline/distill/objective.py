"""What a student is trained to make small, row by row. Knows logits and labels, not models or shards: change the loss here."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from pipeline.config.params import Settings
from pipeline.corpus.task import Kind
from pipeline.training.trainer import label_loss

Weight = Annotated[float, Field(ge=0)]
Temperature = Annotated[float, Field(gt=0)]


class Annealed(Settings):
    """A temperature that changes evenly over the training."""

    first: Temperature
    last: Temperature


class ObjectiveSettings(Settings):
    """Weights and form of the loss."""

    hard: Weight
    """Of the labels; rows without one count as having nothing to learn from them."""
    soft: Weight
    """Of the teacher's logits on the untouched input."""
    perturbed: Weight
    """Of the teacher's logits on the perturbed inputs, whoever perturbed them."""
    hidden: Weight
    """Of the teacher's states on the first token of the untouched input, where the scores hold some."""
    form: Literal["kl", "mse"]
    """How logits are compared; a regression is always compared by squared error."""
    temperature: Temperature | Annealed

    @model_validator(mode="after")
    def _something_to_learn(self) -> "ObjectiveSettings":
        if not self.hard + self.soft + self.perturbed + self.hidden:
            raise ValueError("one of the weights hard, soft, perturbed and hidden must be above 0")
        return self

    def temperature_at(self, progress: float | Tensor) -> float | Tensor:
        """The temperature when that share of the training is done."""
        if isinstance(self.temperature, float):
            return self.temperature
        return self.temperature.first + (self.temperature.last - self.temperature.first) * progress


def soft_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor) -> Tensor:
    """KL(teacher ‖ student) at ``temperature`` of each row, [rows], in nats.

    Both logits are [rows, classes] at temperature 1. The result is multiplied by temperature² so that its gradient keeps
    the size of the hard loss's when the temperature changes (Hinton et al. 2015, §2).
    """
    student = (student_logits / temperature).log_softmax(dim=-1)
    teacher = (teacher_logits / temperature).log_softmax(dim=-1)
    return functional.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1) * temperature**2


def imitation_loss(
    student_logits: Tensor, teacher_logits: Tensor, settings: ObjectiveSettings, kind: Kind, progress: float | Tensor
) -> Tensor:
    """How far the student is from the teacher, [rows]; both logits are [rows, outputs]."""
    if kind == "regression" or settings.form == "mse":
        return (student_logits - teacher_logits).square().mean(dim=-1)
    return soft_loss(student_logits, teacher_logits, settings.temperature_at(progress))


def hidden_loss(states: Tensor, teacher_states: Tensor) -> Tensor:
    """Mean over layers of the squared distance of both states at length 1, [rows] (patient distillation, Sun et al. 2019).

    Both are [rows, layers, width].
    """
    away = functional.normalize(states, dim=-1) - functional.normalize(teacher_states, dim=-1)
    return away.square().sum(dim=-1).mean(dim=-1)


def untouched_loss(
    logits: Tensor, teacher_logits: Tensor, labels: Tensor, settings: ObjectiveSettings, kind: Kind, progress: float | Tensor
) -> Tensor:
    """Hard · label loss + soft · imitation on untouched inputs, and on those that the student perturbs itself, [rows].

    Args:
        logits: the student's, [rows, outputs].
        teacher_logits: the teacher's, [rows, outputs].
        labels: [rows], NaN where there is none.
        settings: the weights and the form.
        kind: of the task.
        progress: share of the training that is done.
    """
    loss = settings.soft * imitation_loss(logits, teacher_logits, settings, kind, progress)
    return loss + settings.hard * label_loss(logits, labels, kind) if settings.hard else loss
