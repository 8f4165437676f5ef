"""Which places of params.yaml make up which settings, and the whole file as settings. Knows no model and no table."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from pipeline.config import params as config
from pipeline.config.corpus import Kind, Metric, fitting_metrics
from pipeline.config.errors import PipelineErrors
from pipeline.config.params import Places, Settings, Within
from pipeline.config.renamed import renamed_settings
from pipeline.config.settings import (
    AugmentSettings,
    ControlSettings,
    EvaluationSettings,
    InferenceSettings,
    MaskedLMSettings,
    RuntimeSettings,
    StudentSettings,
    SurrogateSettings,
    TaskSettings,
    TrainingSettings,
)

NAME = re.compile(r"[a-z0-9_]+")
"""Of a task or a student: part of folders and of DVC's stage names."""

TRAINING = Within("training", "training")

TEACH: Places = ("training", "teach")
MASKED_LM: Places = ("training", "masked_lm")
SURROGATE: Places = (TRAINING, "distill", "surrogate")

SECTIONS = {
    *("tasks", "training", "teach", "masked_lm", "inference", "surrogate", "augment", "perturbation", "distill", "students"),
    *("evaluate", "runtime"),
}

AnySettings = TypeVar("AnySettings", bound=Settings)


def augment_places(params: Mapping[str, Any], task: str) -> Places:
    """Where the settings of a task's variants stand: three sections, and the task's overrides where it has any."""
    overrides: Places = (Within(f"tasks.{task}.perturbation", "perturbation"), f"tasks.{task}.augment")
    places: Places = (Within("perturbation", "perturbation"), Within("inference", "inference"), "augment")
    return places + tuple(place for place in overrides if config.section_at(params, place) is not None)


def student_places(params: Mapping[str, Any], name: str) -> Places:
    """Where the settings of a student stand; those of a control are its student's, but for the variants."""
    base = config.lookup(params, f"students.{name}.control_of")
    if isinstance(base, str):
        return (TRAINING, "distill", f"students.{base}", {"variant_policy": "none"})
    return (TRAINING, "distill", f"students.{name}")


def needs_masked_lm(params: Mapping[str, Any], task: str) -> bool:
    """Whether a recipe of a task's variants contains masked_lm, read from values that may have errors."""
    recipes = config.merged(params, augment_places(params, task)).get("recipes")
    return isinstance(recipes, list) and any(isinstance(recipe, list) and "masked_lm" in recipe for recipe in recipes)


@dataclass(frozen=True)
class Sections:
    """What is valid of a parameter file; an entry with an error is absent."""

    params: Mapping[str, Any]
    """The whole file as plain mappings."""
    tasks: Mapping[str, TaskSettings]
    variants: Mapping[str, AugmentSettings]
    """By task."""
    students: Mapping[str, StudentSettings]
    masked_lm: MaskedLMSettings | None
    surrogate: SurrogateSettings | None
    runtime: RuntimeSettings | None


def read_sections(path: Path) -> tuple[Sections, list[str]]:
    """Read a whole parameter file.

    Returns:
        What is valid, and one sentence for each error: renamed, unknown, missing and mistyped settings.

    Raises:
        PipelineError: the file does not exist or is not YAML.
        PipelineErrors: it has settings of the first edition.
    """
    params = config.read_params(path)
    if renamed := renamed_settings(params):
        raise PipelineErrors(str(path), renamed)
    errors = [f"{name} is not a known section{_misplaced(params[name])}" for name in params if name not in SECTIONS]
    errors += config.naming_errors(params, "tasks") + config.naming_errors(params, "students")
    _read(path, TrainingSettings, errors, *TEACH)
    _read(path, InferenceSettings, errors, "inference")
    _read(path, EvaluationSettings, errors, "evaluate")
    tasks, variants, students = {}, {}, {}
    for name in _names(params, "tasks"):
        errors += _misnamed(f"tasks.{name}", name) + _kind_errors(params, f"tasks.{name}")
        if task := _read(path, TaskSettings, errors, f"tasks.{name}"):
            tasks[name] = task
        if augment := _read(path, AugmentSettings, errors, *augment_places(params, name)):
            variants[name] = augment
    for name in _names(params, "students"):
        errors += _misnamed(f"students.{name}", name) + _control_errors(path, params, name)
        if student := _read(path, StudentSettings, errors, *student_places(params, name)):
            students[name] = student
    masked_lm = _read(path, MaskedLMSettings, errors, *MASKED_LM)
    surrogate = _read(path, SurrogateSettings, errors, *SURROGATE)
    runtime = _read(path, RuntimeSettings, errors, "runtime")
    return Sections(params, tasks, variants, students, masked_lm, surrogate, runtime), list(dict.fromkeys(errors))


def _read(path: Path, model: type[AnySettings], errors: list[str], *places: Any) -> AnySettings | None:
    """Some sections as one, or None with their errors noted."""
    try:
        return config.load_section(path, model, *places)
    except PipelineErrors as found:
        errors += found.errors
        return None


def _misplaced(section: Any) -> str:
    return "; a task belongs below tasks, indented" if isinstance(section, dict) and "corpus" in section else ""


def _names(params: Mapping[str, Any], section: str) -> list[str]:
    """The entries of a section whose names are strings."""
    entries = params.get(section)
    return [name for name in entries if isinstance(name, str)] if isinstance(entries, dict) else []


def _misnamed(place: str, name: str) -> list[str]:
    errors = [] if NAME.fullmatch(name) else [f"{place}: a name consists of a-z, 0-9 and _"]
    return errors + ([f"{place}: every table calls the teacher so; choose another name"] if place == "students.teacher" else [])


def _kind_errors(params: Mapping[str, Any], place: str) -> list[str]:
    """What in a task contradicts its kind."""
    kind, metric = config.lookup(params, f"{place}.kind"), config.lookup(params, f"{place}.metric")
    errors = []
    if kind in get_args(Kind) and metric in get_args(Metric) and metric not in fitting_metrics(kind):
        errors.append(f"{place}.metric: {metric} does not fit {kind}; choose from {', '.join(fitting_metrics(kind))}")
    if kind == "regression" and config.lookup(params, f"{place}.corpus.labels"):
        errors.append(f"{place}.corpus.labels: label names belong to classification; leave them out")
    return errors


def _control_errors(path: Path, params: Mapping[str, Any], name: str) -> list[str]:
    """What is wrong with a student that is declared as the control of another."""
    if config.lookup(params, f"students.{name}.control_of") is None:
        return []
    errors: list[str] = []
    control = _read(path, ControlSettings, errors, f"students.{name}")
    if control is None:
        return errors
    others = [other for other in _names(params, "students") if config.lookup(params, f"students.{other}.control_of") is None]
    if control.control_of not in others:
        errors.append(f"students.{name}.control_of: {control.control_of} is not one of {', '.join(others)}")
    return errors
