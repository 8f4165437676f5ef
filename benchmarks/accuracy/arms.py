"""The arms of the suite, read from arms.yaml, and what the parameter file of a run says. Knows settings; runs nothing."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from benchmarks.accuracy.corpora import Case, corpus_settings
from benchmarks.accuracy.online import Aim
from pipeline import config
from pipeline.config import Settings, overlaid
from pipeline.errors import PipelineError

HERE = Path(__file__).parent
STUDENT = "student"
"""What the one student of a run's parameter file is called."""

SIZES: dict[str, dict[str, Any]] = {
    "half": {"layers": 3},
    "third": {"layers": 2},
    "narrow": {"layers": 3, "hidden": 192, "heads": 6, "intermediate": 768},
    "tiny": {"layers": 2, "hidden": 128, "heads": 4, "intermediate": 512},
}
"""The students; what is left out is as in the teacher."""

TEACHER_STEPS = 200
"""The fewest steps in which a teacher is fine-tuned, however few its rows are."""


class Arm(Settings):
    """One way to make a student."""

    means: str
    control: str = "kd"
    """The arm that it is compared with."""
    times: float = Field(default=1.0, gt=0)
    """Epochs of it for one of the others."""
    student: dict[str, Any] = Field(default_factory=dict)
    augment: dict[str, Any] | None = None
    """Over the section augment; None learns from scores alone."""
    scout: dict[str, Any] | None = None
    """Over the section scout; the variants are aimed at it."""
    score: dict[str, Any] = Field(default_factory=dict)
    online: Aim | None = None
    """Whose gradient is followed with the teacher in every step, outside the pipeline; None for all other arms."""


class Arms(Settings):
    """All of arms.yaml."""

    arms: dict[str, Arm]


@functools.cache
def all_arms() -> dict[str, Arm]:
    """Every arm by name.

    Raises:
        PipelineError: an arm is faulty, or its control is none.
    """
    arms = config.load(HERE / "arms.yaml", Arms, arms="arms").arms
    for name, arm in arms.items():
        if arm.control not in arms:
            raise PipelineError(f"arms.yaml: the control of {name} is {arm.control}, which is no arm")
    return arms


@functools.cache
def base() -> dict[str, Any]:
    """What every arm starts from."""
    return config.read_params(HERE / "base.yaml")


@dataclass(frozen=True)
class Models:
    """Pretrained models at hand, as folders or hub ids."""

    teacher: str
    masked_lm: str | None = None


@dataclass(frozen=True)
class Run:
    """One student of one arm."""

    case: Case
    arm: str
    student: str
    epochs: int
    """Of an arm whose ``times`` is 1."""

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.case.name}-{self.student}-{self.arm}-{self.epochs}"

    @property
    def all_epochs(self) -> int:
        """Epochs of this arm."""
        return round(self.epochs * all_arms()[self.arm].times)

    def settings(self) -> dict[str, Any]:
        """All that the run does otherwise than base.yaml."""
        arm = all_arms()[self.arm]
        stages = arm.model_dump(include={"augment", "scout", "score", "online"}, exclude_defaults=True)
        return stages | {"student": arm.student, "size": SIZES[self.student], "epochs": self.all_epochs}

    def params(self, models: Models, tables: Path, store: Path) -> dict[str, Any]:
        """The parameter file of the run; ``store`` is where its shards are kept.

        Raises:
            PipelineError: the arm edits texts with a masked language model, and there is none.
        """
        case, arm, start = self.case, all_arms()[self.arm], base()
        corpus = case.corpus
        seeded = {"optimiser": {"epochs": self.all_epochs, "seed": case.seed}}
        task = {
            "kind": corpus.kind,
            "metric": corpus.metric,
            "corpus": corpus_settings(case, tables),
            "teacher": {"model": models.teacher, "fine_tune": True, "max_length": corpus.max_length},
            "aim": "teacher" if arm.scout is None else "scout",
        }
        return {
            "tasks": {case.task: task},
            "teach": start["teach"] | {"seed": case.seed},
            "score": overlaid(start["score"], arm.score),
            "scouts": {case.task: overlaid(start["scout"], arm.scout or {})},
            "augment": overlaid(start["augment"], (arm.augment or {}) | {"seed": case.seed} | self._masked_lm(models)),
            "distill": overlaid(start["distill"], seeded),
            "students": {STUDENT: SIZES[self.student] | arm.student},
            "evaluate": start["evaluate"],
            "runtime": start["runtime"] | {"store": str(store)},
        }

    def _masked_lm(self, models: Models) -> dict[str, Any]:
        asked = (all_arms()[self.arm].augment or {}).get("masked_lm")
        if asked is None:
            return {}
        if models.masked_lm is None:
            raise PipelineError(
                f"the arm {self.arm} edits texts with a masked language model; name one with --masked-lm, "
                "or train one by the command masked-lm"
            )
        return {"masked_lm": asked | {"model": models.masked_lm}}
