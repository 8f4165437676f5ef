"""The arms of the suite, read from arms.yaml, and what the parameter file of a run says. Knows settings; runs nothing."""

import functools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from benchmarks.accuracy.corpora import DEV_ROWS, TEST_ROWS, Case, Corpus
from benchmarks.accuracy.online import GradientOwner
from pipeline.config import params as config
from pipeline.config.errors import PipelineError
from pipeline.config.params import Settings, overlaid
from pipeline.store.keys import canonical_json, hash_of
from stages.precision import bfloat16_slowdown

HERE = Path(__file__).parent
STUDENT = "student"
"""What the one student of a run's parameter file is called."""

TEACHER, STORE = "teacher", "store"
"""Of a case's folder: its teacher, and the store of its shards."""

LAYERS = "layers"
"""Of a run's folder: the student that has learnt its teacher's layers. Of its parameter file: how it learns them."""

PRETRAINED = "pretrained"
"""What arms.yaml calls the model that the teacher was fine-tuned from."""

Precision = Literal["bfloat16", "float32"]
PRECISION: Precision = "bfloat16"
"""Of the trainings, in base.yaml and in arms.yaml."""

SIZES: dict[str, dict[str, Any]] = {
    "half": {"num_hidden_layers": 3},
    "third": {"num_hidden_layers": 2},
    "narrow": {"num_hidden_layers": 3, "hidden_size": 192, "num_attention_heads": 6, "intermediate_size": 768},
    "tiny": {"num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512},
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
    """Over the section augment; None learns from soft labels alone."""
    perturbation: dict[str, Any] = Field(default_factory=dict)
    """Over the section perturbation."""
    surrogate: dict[str, Any] = Field(default_factory=dict)
    """Over the section surrogate, which is trained where the gradient is followed from one."""
    masked_lm: dict[str, Any] | None = None
    """Over the section masked_lm: a model that is fine-tuned on the run's own train rows, from the encoder that the teacher was
    fine-tuned from or, with ``model: teacher``, from the teacher's own. None takes the one that is given."""
    unlabelled: int = Field(default=0, ge=0)
    """Further train texts, at most, whose labels nobody sees; the teacher is that of the case."""
    online: GradientOwner | None = None
    """Whose gradient is followed with the teacher in every step, outside the pipeline; None for all other arms."""
    layers_first: dict[str, Any] | None = None
    """Over the section training: a phase before, outside the pipeline, in which the student learns its teacher's layers."""


class Arms(Settings):
    """All of arms.yaml."""

    arms: dict[str, Arm]


@functools.cache
def all_arms() -> dict[str, Arm]:
    """Every arm by name.

    Raises:
        PipelineError: an arm has an error, or its control is none.
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


def usual_precision() -> Precision:
    """That of trainings on this machine: float32 in place of bfloat16 where the processor is slow at it."""
    return "float32" if bfloat16_slowdown() else PRECISION


def in_precision(settings: dict[str, Any], precision: Precision) -> dict[str, Any]:
    """Settings as they stand in base.yaml or arms.yaml, but in another precision wherever one has ``PRECISION``."""
    found = {name: in_precision(value, precision) if isinstance(value, dict) else value for name, value in settings.items()}
    return found | ({"precision": precision} if found.get("precision") == PRECISION else {})


RUNTIME: dict[str, Any] = {
    "store": "store",
    "ray_address": None,
    "workers": 0,
    "max_bytes": None,
    "world_size": 1,
    "dataloader_num_workers": 0,
    "save_steps": 0,
    "report_to": [],
}
"""The section runtime, which decides no result, as the names of recorded runs have it."""


def common_to_all(corpus: Corpus, precision: Precision) -> str:
    """A hash of what all runs on a set share: base.yaml, and how rows are cut and teachers trained."""
    shared = in_precision(base() | {"runtime": RUNTIME}, precision)
    return hash_of([shared, asdict(corpus), DEV_ROWS, TEST_ROWS, TEACHER_STEPS])[:8]


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
    precision: Precision = PRECISION
    """Of its trainings and its teacher's. Runs in another one than that of base.yaml are other runs, and kept apart."""

    @property
    def name(self) -> str:
        """Of its folder: another one when the arm has changed."""
        return f"{self.case.name}-{self.student}-{self.arm}-{self.epochs}-{hash_of(self.settings())[:8]}"

    @property
    def all_epochs(self) -> int:
        """Epochs of this arm."""
        return round(self.epochs * all_arms()[self.arm].times)

    def settings(self) -> dict[str, Any]:
        """What decides the run, but for data, models and code: all it does otherwise than base.yaml, and a hash of that."""
        arm = all_arms()[self.arm]
        stages = arm.model_dump(exclude={"means", "control", "times", "student"}, exclude_defaults=True)
        own = {"student": arm.student, "size": SIZES[self.student], "epochs": self.all_epochs}
        other = {} if self.precision == PRECISION else {"precision": self.precision}
        shared = {"base": common_to_all(self.case.corpus, self.precision)}
        return in_precision(stages | own, self.precision) | other | shared

    @property
    def identity(self) -> tuple[Any, ...]:
        """What of a run is in the table's columns IDENTITY, in their order."""
        settings = canonical_json(self.settings()).decode()
        return (self.case.task, self.case.rows, self.case.seed, self.student, self.arm, self.epochs, settings)

    def params(self, corpus: dict[str, Any], models: Models, folder: Path) -> dict[str, Any]:
        """The parameter file of the run; ``corpus`` is how its tables are read, ``folder`` where its case lies.

        Raises:
            PipelineError: the arm needs a model that is not there, or other layers than a student of this size has.
        """
        return in_precision(self._params(corpus, models, folder), self.precision)

    def _params(self, corpus: dict[str, Any], models: Models, folder: Path) -> dict[str, Any]:
        """The same in the precision of base.yaml."""
        case, arm, start = self.case, all_arms()[self.arm], base()
        seed = {"seed": case.seed}
        task = {
            "kind": case.corpus.kind,
            "metric": case.corpus.metric,
            "corpus": corpus,
            "teacher": {"model": models.teacher, "fine_tune": True, "max_length": case.corpus.max_length},
        }
        first = {} if arm.layers_first is None else {LAYERS: arm.layers_first}
        return first | {
            "tasks": {case.task: task},
            "training": start["training"] | seed,
            "teach": start["teach"],
            "masked_lm": start["masked_lm"] | self._masked_lm(models, folder / TEACHER),
            "inference": start["inference"],
            "surrogate": overlaid(start["surrogate"], arm.surrogate),
            "augment": overlaid(start["augment"], (arm.augment or {}) | seed),
            "perturbation": overlaid(start["perturbation"], arm.perturbation),
            "distill": overlaid(start["distill"], {"training": {"num_train_epochs": self.all_epochs}}),
            "students": {STUDENT: self._size() | arm.student | self._initial_weights(models, folder)},
            "evaluate": start["evaluate"],
            "runtime": start["runtime"] | {"store": str(folder / STORE)},
        }

    def _size(self) -> dict[str, Any]:
        """That of the student, without the number of layers where the arm names which."""
        size = SIZES[self.student]
        if "teacher_layers" not in all_arms()[self.arm].student:
            return size
        if self.student != "half":
            raise PipelineError(f"the arm {self.arm} names the layers of the student half; {self.student} has others")
        return {name: value for name, value in size.items() if name != "num_hidden_layers"}

    def _initial_weights(self, models: Models, folder: Path) -> dict[str, Any]:
        """Who learns from labels alone starts from the pretrained model: the teacher's layers are taught already."""
        arm = all_arms()[self.arm]
        if arm.layers_first is not None:
            return {"initial_weights": {"checkpoint": str(folder / self.name / LAYERS)}}
        if arm.student.get("initial_weights") == PRETRAINED:
            return {"initial_weights": {"checkpoint": models.teacher}}
        return {}

    def _masked_lm(self, models: Models, teacher: Path) -> dict[str, Any]:
        """What an arm that replaces words has otherwise: its own model, fine-tuned on its train rows, or the one given."""
        arm = all_arms()[self.arm]
        if arm.masked_lm is not None:
            return arm.masked_lm | {"model": str(teacher) if arm.masked_lm.get("model") == TEACHER else models.teacher}
        if not any("masked_lm" in recipe for recipe in (arm.augment or {}).get("recipes", [])):
            return {}
        if models.masked_lm is None:
            raise PipelineError(
                f"the arm {self.arm} edits texts with a masked language model; name one with --masked-lm, "
                "or train one by the command masked-lm"
            )
        return {"model": models.masked_lm, "fine_tune": False}
