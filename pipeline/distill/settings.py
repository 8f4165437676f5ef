"""Everything that decides how one student comes about. Knows settings; computes nothing."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from pipeline.config.params import Settings
from pipeline.distill.objective import ObjectiveSettings, Weight
from pipeline.distill.shares import NAMED
from pipeline.distill.student import SizeSettings
from pipeline.distill.uses import Use
from pipeline.perturbation.search import PerturbationSettings
from pipeline.training.trainer import OptimiserSettings


class Shares(Settings):
    """Who perturbs, each with its share in what ``objective.perturbed`` weighs."""

    shards: Weight
    """The variants that the augment stage stored, labelled by the teacher."""
    student: Weight
    """The student itself, by its own gradient in each step; it learns there what it learns of the untouched input."""


def _unnamed(value: Any) -> Any:
    if isinstance(value, str) and value not in NAMED:
        raise ValueError(f"it is one of {', '.join(NAMED)}, or a mapping of shares: {{shards: 0.5, student: 0.5}}")
    return NAMED.get(value, value) if isinstance(value, str) else value


class StudentSettings(SizeSettings):
    """One student: its size, and how it learns."""

    adversary: Annotated[Shares, BeforeValidator(_unnamed)]
    variants: Use
    """Which of the stored variants a step shows."""
    perturbation: PerturbationSettings
    """How the student perturbs its own inputs; a stated effect is one on the student."""
    residual: bool
    """Whether the map that carries stored perturbations over is trained along."""
    objective: ObjectiveSettings
    optimiser: OptimiserSettings

    @model_validator(mode="after")
    def _possible(self) -> "StudentSettings":
        if self.adversary.shards and self.start == "scratch":
            raise ValueError(
                "no map carries stored perturbations to a student from scratch; use start: teacher, adversary: student or none"
            )
        if self.adversary.student and self.optimiser.precision == "float16":
            raise ValueError("a student's own gradients are too small for float16; use bfloat16 or float32")
        if self.adversary.student and not self.objective.hard + self.objective.soft:
            raise ValueError("own perturbations are learnt as untouched inputs are, so objective.hard or soft must be above 0")
        objective = self.objective
        if not self.adversary.shards + self.adversary.student and not objective.hard + objective.soft + objective.hidden:
            raise ValueError("nothing would be learnt: nobody perturbs, so objective.hard, soft or hidden must be above 0")
        if self.residual and not self.adversary.shards:
            raise ValueError("residual: true trains the map of stored perturbations, of which this student sees none")
        return self


class ScoutSettings(StudentSettings):
    """A scout is a student that learns from scores, whatever share of stored variants ``adversary`` has."""

    snapshots: Annotated[int, Field(ge=1)]
    """How many of its states are kept, evenly along its training; variants are aimed at them in turn."""

    @model_validator(mode="after")
    def _can_learn_and_aim(self) -> "ScoutSettings":
        if self.start == "scratch":
            raise ValueError("no map carries the teacher's perturbations to a scout from scratch; set start: teacher")
        if not self.objective.hard + self.objective.soft:
            raise ValueError("a scout learns from untouched inputs, so objective.hard or objective.soft must be above 0")
        return self
