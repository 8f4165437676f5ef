"""All of params.yaml as settings, each entry by its own model. Knows no model's folder, nor what entries ask of each other."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pipeline.augment.recipes import AugmentSettings, ScoreSettings
from pipeline.config import params as config
from pipeline.config.errors import Faults
from pipeline.config.params import Settings
from pipeline.config.runtime import RuntimeSettings
from pipeline.corpus.preparation import TASK_NAME
from pipeline.corpus.settings import CorpusSettings
from pipeline.corpus.task import Kind, Metric, fitting_metrics
from pipeline.distill.settings import ScoutSettings, StudentSettings
from pipeline.evaluation.quality import EvaluationSettings
from pipeline.training.masked_lm import FitSettings, WordsSettings
from pipeline.training.teacher import TeacherSettings
from pipeline.training.trainer import OptimiserSettings


class TaskSettings(Settings):
    """An entry of ``tasks``."""

    kind: Kind
    metric: Metric
    corpus: CorpusSettings
    teacher: TeacherSettings
    words: WordsSettings | None
    """The masked language model of recipes with masked_lm; null where there are none."""
    aim: Literal["teacher", "scout"]
    """Whose gradient aims the perturbations; the name of the folder below ``data``."""
    augment: dict[str, Any] | None = None


CHECKED_ALONE: Mapping[str, type[Settings]] = {
    "teach": OptimiserSettings,
    "words": FitSettings,
    "augment": AugmentSettings,
    "evaluate": EvaluationSettings,
}
"""Sections of which nothing else in the file, and no model, asks anything as they stand."""

KNOWN = {*CHECKED_ALONE, "score", "runtime", "distill", "tasks", "students", "scout"}

AnySettings = TypeVar("AnySettings", bound=Settings)


@dataclass(frozen=True)
class Sections:
    """What can be read of a parameter file; an entry with a fault is absent."""

    content: Mapping[str, Any]
    """All of it as plain mappings."""
    score: ScoreSettings | None
    runtime: RuntimeSettings | None
    tasks: Mapping[str, TaskSettings]
    variants: Mapping[str, AugmentSettings]
    """By task: the section augment and what the task has over it."""
    students: Mapping[str, StudentSettings]
    scout: ScoutSettings | None
    """Of every task with aim: scout."""


def read_sections(path: Path) -> tuple[Sections, list[str]]:
    """Read a whole parameter file.

    Returns:
        What can be read, and one sentence for everything that cannot: unknown, missing, mistyped and misnamed settings.

    Raises:
        PipelineError: the file is not there or is no YAML.
    """
    content = config.read_params(path)
    faults = [
        f"{name} is not a section known here{_misplaced(section)}" for name, section in content.items() if name not in KNOWN
    ]
    for name, model in CHECKED_ALONE.items():
        _read(path, model, faults, name)
    score, runtime = _read(path, ScoreSettings, faults, "score"), _read(path, RuntimeSettings, faults, "runtime")
    faults += config.naming_faults(content, "tasks") + config.naming_faults(content, "students")
    tasks, variants = _tasks(path, content, faults)
    students = _students(path, content, faults)
    scout = _scout(path, content, faults)
    return Sections(content, score, runtime, tasks, variants, students, scout), faults


def _read(path: Path, model: type[AnySettings], faults: list[str], *places: str) -> AnySettings | None:
    """One section, or None and its faults noted."""
    try:
        return config.load_section(path, model, *places)
    except Faults as found:
        faults += found.faults
        return None


def _misplaced(section: Any) -> str:
    """Where an unknown section belongs that looks like a task."""
    return "; a task stands below tasks, indented" if isinstance(section, dict) and "corpus" in section else ""


def _names(content: Mapping[str, Any], section: str) -> list[str]:
    """The entries of a section that can be read by their names."""
    entries = content.get(section)
    return [name for name in entries if isinstance(name, str)] if isinstance(entries, dict) else []


def _misnamed(place: str, name: str) -> list[str]:
    return [] if TASK_NAME.fullmatch(name) else [f"{place}: a name has only a-z, 0-9 and _"]


def _tasks(
    path: Path, content: Mapping[str, Any], faults: list[str]
) -> tuple[dict[str, TaskSettings], dict[str, AugmentSettings]]:
    tasks, variants = {}, {}
    for name in _names(content, "tasks"):
        place = f"tasks.{name}"
        faults += _misnamed(place, name) + _kind_faults(content, place)
        if task := _read(path, TaskSettings, faults, place):
            tasks[name] = task
        if augment := _read(path, AugmentSettings, faults, *config.existing(path, "augment", f"{place}.augment")):
            variants[name] = augment
    return tasks, variants


def _kind_faults(content: Mapping[str, Any], place: str) -> list[str]:
    """What of a task does not belong to its kind."""
    kind, metric = config.lookup(content, f"{place}.kind"), config.lookup(content, f"{place}.metric")
    faults = []
    if kind in get_args(Kind) and metric in get_args(Metric) and metric not in fitting_metrics(kind):
        faults.append(f"{place}.metric: {metric} does not fit {kind}; choose from {', '.join(fitting_metrics(kind))}")
    if kind == "regression" and config.lookup(content, f"{place}.corpus.labels"):
        faults.append(f"{place}.corpus.labels: label names belong to classification; leave them out")
    return faults


def _students(path: Path, content: Mapping[str, Any], faults: list[str]) -> dict[str, StudentSettings]:
    students = {}
    for name in _names(content, "students"):
        place = f"students.{name}"
        faults += _misnamed(place, name)
        faults += [f"{place}: the teacher is called so in every table; choose another name"] if name == "teacher" else []
        if student := _read(path, StudentSettings, faults, "distill", place):
            students[name] = student
    return students


def _scout(path: Path, content: Mapping[str, Any], faults: list[str]) -> ScoutSettings | None:
    """The section scout, which may be absent as long as no task asks for one."""
    asked = any(config.lookup(content, f"tasks.{name}.aim") == "scout" for name in _names(content, "tasks"))
    return _read(path, ScoutSettings, faults, "distill", "scout") if asked or "scout" in content else None
