"""The settings of one student and of the scout."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from pipeline.distill.dataset import Use
from pipeline.distill.losses import ObjectiveSettings
from pipeline.distill.student import SizeSettings
from pipeline.training.trainer import OptimiserSettings


class StudentSettings(SizeSettings):
    """One student: its size, and how it learns."""

    variants: Use
    """Which of the stored variants a step shows."""
    objective: ObjectiveSettings
    optimiser: OptimiserSettings

    @model_validator(mode="after")
    def _possible(self) -> "StudentSettings":
        if self.variants != "none" and self.start == "scratch":
            raise ValueError(
                "no map carries stored perturbations to a student from scratch; use start: teacher or variants: none"
            )
        if self.variants == "none" and not self.objective.hard + self.objective.soft:
            raise ValueError("variants: none leaves nothing to learn from; set objective.hard or objective.soft above 0")
        return self


class ScoutSettings(StudentSettings):
    """A scout is a student that learns from the scores alone, whatever ``variants`` says."""

    snapshots: Annotated[int, Field(ge=1)]
    """Number of checkpoints kept, evenly along the training; variants are searched on them in turn."""

    @model_validator(mode="after")
    def _can_learn_and_aim(self) -> "ScoutSettings":
        if self.start == "scratch":
            raise ValueError("no map carries the teacher's perturbations to a scout from scratch; set start: teacher")
        if not self.objective.hard + self.objective.soft:
            raise ValueError("a scout learns from clean inputs, so objective.hard or objective.soft must be above 0")
        return self


def effective(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A student's settings without ``objective.perturbed`` where it sees no variants; equal ones train equal students."""
    if settings["variants"] != "none" or "objective" not in settings:
        return dict(settings)
    objective = {name: value for name, value in settings["objective"].items() if name != "perturbed"}
    return {**settings, "objective": objective}
