"""The sections of params.yaml: which ones make up which settings, and the whole file as settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import create_model

from pipeline.config import params as config
from pipeline.config.corpus import NAME, TaskSettings
from pipeline.config.errors import PipelineErrors
from pipeline.config.params import AnySettings, Places, Settings, Within
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
    TrainingSettings,
)

TRAINING = Within("training", "training")

TEACH: Places = ("training", "teach")
MASKED_LM: Places = ("training", "masked_lm")
SURROGATE: Places = (TRAINING, "distill", "surrogate")

SECTIONS = {
    *("tasks", "training", "teach", "masked_lm", "inference", "surrogate", "augment", "perturbation", "distill", "students"),
    *("evaluate", "runtime"),
}


def augment_places(params: Mapping[str, Any], task: str) -> Places:
    """The places of the settings of a task's variants: three sections, and the task's overrides if it has any."""
    overrides: Places = (Within(f"tasks.{task}.perturbation", "perturbation"), f"tasks.{task}.augment")
    places: Places = (Within("perturbation", "perturbation"), Within("inference", "inference"), "augment")
    return places + tuple(place for place in overrides if config.section_at(params, place) is not None)


def student_places(params: Mapping[str, Any], name: str) -> Places:
    """The places of a student's settings; a control has those of its student, without variants."""
    base = config.lookup(params, f"students.{name}.control_of")
    if isinstance(base, str):
        return (TRAINING, "distill", f"students.{base}", {"variant_policy": "none"})
    return (TRAINING, "distill", f"students.{name}")


@dataclass(frozen=True)
class Sections:
    """The valid entries of a parameter file; an entry with an error is absent."""

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
        The valid entries, and one sentence for each unknown, missing or mistyped setting.

    Raises:
        PipelineError: the file does not exist, is not YAML, or has settings of the first edition.
    """
    params = config.read_params(path)
    if renamed := renamed_settings(params):
        raise PipelineErrors(str(path), renamed)
    errors = []
    for name in [name for name in params if name not in SECTIONS]:
        is_task = isinstance(params[name], dict) and "corpus" in params[name]
        errors.append(f"{name} is not a known section" + ("; a task belongs below tasks, indented" if is_task else ""))
    names = {}
    for section in ("tasks", "students"):
        errors += config.naming_errors(params, section)
        entries = params.get(section)
        names[section] = [name for name in entries if isinstance(name, str)] if isinstance(entries, dict) else []
        errors += [
            f"{section}.{name}: a name consists of a-z, 0-9 and _" for name in names[section] if not NAME.fullmatch(name)
        ]
    if "teacher" in names["students"]:
        errors.append("students.teacher: every table has a row of this name for the teacher; choose another name")
    _read(path, TrainingSettings, errors, *TEACH)
    _read(path, InferenceSettings, errors, "inference")
    _read(path, EvaluationSettings, errors, "evaluate")
    tasks, variants, students = {}, {}, {}
    for name in names["tasks"]:
        if task := _read(path, TaskSettings, errors, f"tasks.{name}"):
            tasks[name] = task
        if augment := _read(path, AugmentSettings, errors, *augment_places(params, name)):
            variants[name] = augment
    controls = [name for name in names["students"] if config.lookup(params, f"students.{name}.control_of") is not None]
    for name in names["students"]:
        control = _read(path, ControlSettings, errors, f"students.{name}") if name in controls else None
        if control and control.control_of not in (others := [other for other in names["students"] if other not in controls]):
            errors.append(f"students.{name}.control_of: {control.control_of} is not one of {', '.join(others)}")
        elif student := _read(path, StudentSettings, errors, *student_places(params, name)):
            students[name] = student
    masked_lm = _read(path, MaskedLMSettings, errors, *MASKED_LM)
    surrogate = _read(path, SurrogateSettings, errors, *SURROGATE)
    runtime = _read(path, RuntimeSettings, errors, "runtime")
    return Sections(params, tasks, variants, students, masked_lm, surrogate, runtime), list(dict.fromkeys(errors))


def _read(path: Path, model: type[AnySettings], errors: list[str], *places: Any) -> AnySettings | None:
    """The settings at some places, or None, with the errors added to the list."""
    form = create_model(model.__name__, __base__=Settings, section=(model, ...))
    try:
        section: AnySettings = dict(config.load(path, form, section=places))["section"]
    except PipelineErrors as found:
        errors += found.errors
        return None
    return section
