"""check: the whole of params.yaml read before any stage runs."""

from pathlib import Path
from typing import Any

import click

from pipeline import config
from pipeline.augment.cluster import RuntimeSettings
from pipeline.augment.passes import AugmentSettings, ScoreSettings
from pipeline.config import Settings
from pipeline.corpus.preparation import TASK_NAME, CorpusSettings
from pipeline.distill.training import StudentSettings
from pipeline.errors import Faults
from pipeline.evaluation import EvaluationSettings
from pipeline.finetuning import OptimiserSettings
from pipeline.perturbation import Effect
from pipeline.tasks import Kind, Metric, fitting_metrics
from pipeline.teaching import TeacherSettings
from stages.command import params_option, stage


class TaskSettings(Settings):
    kind: Kind
    metric: Metric
    corpus: CorpusSettings
    teacher: TeacherSettings
    augment: dict[str, Any] | None = None


class Sections(Settings):
    """The sections that are the same for every task and student."""

    teach: OptimiserSettings
    score: ScoreSettings
    augment: AugmentSettings
    evaluate: EvaluationSettings
    runtime: RuntimeSettings


class OneTask(Settings):
    task: TaskSettings


class OneAugment(Settings):
    augment: AugmentSettings


class OneStudent(Settings):
    student: StudentSettings


MAPPINGS = ("tasks", "students")
"""Sections that map names to settings."""


@stage
@params_option
def main(params: Path) -> None:
    """Read all of params.yaml and list every unknown, missing or mistyped setting at once.

    Each stage checks what it reads; this checks everything before the first stage starts.
    """
    faults = faults_of(params)
    if faults:
        raise Faults(str(params), faults)
    content = config.read_params(params)
    click.echo(f"{params}: tasks {', '.join(content['tasks'])}; students {', '.join(content['students'])}")


def faults_of(path: Path) -> list[str]:
    """Everything that is wrong with a parameter file."""
    content = config.read_params(path)
    known = {*MAPPINGS, "distill", *Sections.model_fields}
    faults = [f"{name} is not a section known here" for name in content if name not in known]
    faults += _found(path, Sections, **{name: name for name in Sections.model_fields})
    for section in MAPPINGS:
        if not isinstance(content.get(section), dict) or not content[section]:
            faults.append(f"{section} must map at least one name to its settings")
            continue
        for name in content[section]:
            faults += _entry_faults(path, section, str(name))
    return list(dict.fromkeys(faults))


def _entry_faults(path: Path, section: str, name: str) -> list[str]:
    place = f"{section}.{name}"
    faults = [] if TASK_NAME.fullmatch(name) else [f"{place}: a name has only a-z, 0-9 and _"]
    if section == "students":
        faults += [f"{place}: the teacher is called so in every table; choose another name"] if name == "teacher" else []
        return faults + _found(path, OneStudent, student=("distill", place))
    entry = config.lookup(config.read_params(path), place) or {}
    kind, metric = entry.get("kind"), entry.get("metric")
    if kind in ("classification", "regression") and metric not in fitting_metrics(kind):
        faults.append(f"{place}.metric: {metric} does not fit {kind}; choose from {', '.join(fitting_metrics(kind))}")
    found = _found(path, OneTask, task=place)
    places = config.existing(path, "augment", f"{place}.augment")
    return faults + found + _found(path, OneAugment, augment=places) + _flips_faults(path, place, places)


def _flips_faults(path: Path, place: str, places: tuple[str, ...]) -> list[str]:
    """A regression has no answers that flip, so no radius can be found from them."""
    try:
        radius = config.load(path, OneAugment, augment=places).augment.perturbation.radius
    except Faults:
        return []
    regression = config.lookup(config.read_params(path), f"{place}.kind") == "regression"
    if regression and isinstance(radius, Effect) and radius.flips is not None:
        way_out = "augment: {perturbation: {radius: {flips: null, divergence: …}}}"
        return [f"{place}: the answers of a regression do not flip; give this task {way_out}"]
    return []


def _found(path: Path, model: type[Settings], **places: str | tuple[str, ...]) -> list[str]:
    try:
        config.load(path, model, **places)
    except Faults as found:
        return list(found.faults)
    return []


if __name__ == "__main__":
    main()
