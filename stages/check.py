"""check: the whole of params.yaml read before any stage runs."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal, get_args

import click
from transformers.utils import CONFIG_NAME

from pipeline import config
from pipeline.augment.faults import aim_faults, kind_faults, words_faults
from pipeline.augment.recipes import AugmentSettings, ScoreSettings
from pipeline.config import Settings
from pipeline.corpus.labels import NOT_OF_TWO
from pipeline.corpus.preparation import TASK_NAME
from pipeline.corpus.settings import MISSING_SHARE, CorpusSettings
from pipeline.distill.adversary import check_search
from pipeline.distill.settings import ScoutSettings, StudentSettings
from pipeline.distill.student import Checkpoint, check_size
from pipeline.distill.uses import check_use
from pipeline.errors import Faults, PipelineError
from pipeline.evaluation import EvaluationSettings
from pipeline.finetuning import OptimiserSettings, check_services
from pipeline.masking import FitSettings
from pipeline.models.pretrained import check_folder, check_place, check_vocabulary, depth_of, load_tokenizer, longest_input
from pipeline.runtime import RuntimeSettings
from pipeline.tasks import SPLITS, Kind, Metric, fitting_metrics
from pipeline.teaching import TeacherSettings, check_answers
from pipeline.wording import WordsSettings, check_words
from stages.command import params_option, stage
from stages.download import MODEL_FOLDER
from stages.prepare import RAW


class TaskSettings(Settings):
    kind: Kind
    metric: Metric
    corpus: CorpusSettings
    teacher: TeacherSettings
    words: WordsSettings | None
    """The masked language model of recipes with masked_lm; null where there are none."""
    aim: Literal["teacher", "scout"]
    """Whose gradient aims the perturbations; the name of the folder below ``data``."""
    augment: dict[str, Any] | None = None


class Sections(Settings):
    """The sections that are the same for every task and student."""

    teach: OptimiserSettings
    words: FitSettings
    score: ScoreSettings
    augment: AugmentSettings
    evaluate: EvaluationSettings
    runtime: RuntimeSettings


class OneTask(Settings):
    task: TaskSettings


class OneAugment(Settings):
    augment: AugmentSettings


class OneScout(Settings):
    scout: ScoutSettings


class OneStudent(Settings):
    student: StudentSettings


MAPPINGS = ("tasks", "students")
"""Sections that map names to settings."""


@stage
@params_option
def main(params: Path) -> None:
    """Read all of params.yaml and list every unknown, missing or mistyped setting at once.

    Each stage checks what it reads; this checks everything before the first stage starts. What depends on a table, or on a
    model that is not there yet, is found by the stage that reads it.
    """
    faults = faults_of(params)
    if faults:
        raise Faults(str(params), faults)
    content = config.read_params(params)
    click.echo(f"{params}: tasks {', '.join(content['tasks'])}; students {', '.join(content['students'])}")


def faults_of(path: Path) -> list[str]:
    """Everything that is wrong with a parameter file."""
    content = config.read_params(path)
    known = {*MAPPINGS, "distill", "scouts", *Sections.model_fields}
    faults = [
        f"{name} is not a section known here{_misplaced(section)}" for name, section in content.items() if name not in known
    ]
    faults += _found(path, Sections, **{name: name for name in Sections.model_fields})
    for section in MAPPINGS:
        unusable = config.naming_faults(content, section)
        faults += unusable or [fault for name in content[section] for fault in _entry_faults(path, section, name)]
    faults += _scouts_faults(path)
    faults += [] if faults else _use_faults(path)
    return list(dict.fromkeys(faults))


def _misplaced(section: Any) -> str:
    """Where an unknown section belongs that looks like a task."""
    return "; a task stands below tasks, indented" if isinstance(section, dict) and "corpus" in section else ""


def _entry_faults(path: Path, section: str, name: str) -> list[str]:
    place = f"{section}.{name}"
    faults = [] if TASK_NAME.fullmatch(name) else [f"{place}: a name has only a-z, 0-9 and _"]
    if section == "students":
        faults += [f"{place}: the teacher is called so in every table; choose another name"] if name == "teacher" else []
        return faults + _found(path, OneStudent, student=("distill", place))
    content = config.read_params(path)
    kind, metric = config.lookup(content, f"{place}.kind"), config.lookup(content, f"{place}.metric")
    if kind in get_args(Kind) and metric in get_args(Metric) and metric not in fitting_metrics(kind):
        faults.append(f"{place}.metric: {metric} does not fit {kind}; choose from {', '.join(fitting_metrics(kind))}")
    if kind == "regression" and config.lookup(content, f"{place}.corpus.labels"):
        faults.append(f"{place}.corpus.labels: label names belong to classification; leave them out")
    found = _found(path, OneTask, task=place)
    places = config.existing(path, "augment", f"{place}.augment")
    return faults + found + _found(path, OneAugment, augment=places) + _aim_faults(path, place, places)


def _aim_faults(path: Path, place: str, places: tuple[str, ...]) -> list[str]:
    """What in the settings of a task's perturbations contradicts its kind or its aim."""
    try:
        settings = config.load(path, OneAugment, augment=places).augment
    except Faults:
        return []
    content = config.read_params(path)
    kind, aim = config.lookup(content, f"{place}.kind"), config.lookup(content, f"{place}.aim")
    faults = kind_faults(settings, kind) + aim_faults(settings, aim == "scout")
    entry = config.lookup(content, place)
    if isinstance(entry, dict) and "words" in entry:
        faults += words_faults(settings, entry["words"] is not None)
    return [f"{place}: {fault}" for fault in faults]


def _scouts_faults(path: Path) -> list[str]:
    """A scout for every task that is aimed at one, and for no other, since each costs a training."""
    content = config.read_params(path)
    scouts, tasks = content.get("scouts"), content.get("tasks")
    if not isinstance(scouts, dict):
        return ["scouts must map names of tasks to their scouts' settings; {} for none"]
    aims = {name: task.get("aim") for name, task in tasks.items() if isinstance(task, dict)} if isinstance(tasks, dict) else {}
    faults = [f"scouts.{name}: there is no such task" for name in scouts if name not in aims]
    faults += [f"scouts.{name}: its task has aim: {aims[name]}" for name in scouts if aims.get(name, "scout") != "scout"]
    wanting = [name for name, aim in aims.items() if aim == "scout" and name not in scouts]
    faults += [f"tasks.{name} has aim: scout, but scouts has no entry {name}" for name in wanting]
    return faults + [fault for name in scouts for fault in _found(path, OneScout, scout=("distill", f"scouts.{name}"))]


def _use_faults(path: Path) -> list[str]:
    """What students want of scores and variants that the other sections do not have made; all sections are well by now."""
    content = config.read_params(path)
    sections = config.load(path, Sections, **{name: name for name in Sections.model_fields})
    faults, faulty = _refusals(lambda: check_services(sections.runtime.log_to)), set[str]()
    for name in content["tasks"]:
        task = config.load(path, OneTask, task=f"tasks.{name}").task
        faults += _corpus_faults(name, task)
        found = _teacher_faults(name, task, sections.score)
        faulty |= {task.teacher.model} if found else set()
        faults += found or _words_faults(name, task.words, task.teacher)
    for name in content["students"]:
        student = config.load(path, OneStudent, student=("distill", f"students.{name}")).student
        if student.objective.hidden and not sections.score.hidden:
            faults.append(f"students.{name}: objective.hidden is above 0, but score.hidden keeps no states")
        for task in content["tasks"]:
            faults += _size_faults(name, content["tasks"][task]["teacher"]["model"], student, faulty)
            made = config.load(path, OneAugment, augment=config.existing(path, "augment", f"tasks.{task}.augment")).augment
            snapshots = config.lookup(content, f"scouts.{task}.snapshots") if made.aims() else 0
            try:
                if student.adversary.shards:
                    check_use(student.variants, made.aimed_at(snapshots or 0))
                if student.adversary.student:
                    check_search(student.perturbation, content["tasks"][task]["kind"])
            except PipelineError as fault:
                faults.append(f"students.{name}, task {task}: {fault}")
    return faults


def _corpus_faults(name: str, task: TaskSettings) -> list[str]:
    """What of a corpus its settings alone show to be wrong."""
    corpus, faults = task.corpus, []
    if corpus.files is not None:
        lacking = [split for split in SPLITS if split not in corpus.files and split not in corpus.shares()]
        faults += [f"tasks.{name}.corpus.{split}: {MISSING_SHARE.format(split)}" for split in lacking]
    if task.metric == "f1" and len(names := set((corpus.labels or {}).values())) > 2:
        faults.append(f"tasks.{name}.metric: f1: {NOT_OF_TWO.format(len(names))}")
    return faults


def _teacher_faults(name: str, task: TaskSettings, score: ScoreSettings) -> list[str]:
    """What is asked of a teacher that its model cannot do, where that is there to ask."""
    teacher, model, labels = task.teacher, Path(task.teacher.model), task.corpus.labels
    try:
        _check_there(teacher.model, "model")
        if not model.is_dir():
            return []
        check_folder(model, "model" if teacher.fine_tune else "classifier")
        depth, tokenizer = depth_of(model), load_tokenizer(model)
        longest = longest_input(model, tokenizer)
        check_vocabulary(model, tokenizer)
        if not teacher.fine_tune and (labels or task.kind == "regression"):
            check_answers(teacher.model, name, task.kind, tuple(dict.fromkeys((labels or {}).values())))
    except PipelineError as fault:
        return [f"tasks.{name}.teacher: {fault}"]
    faults = []
    if teacher.max_length > longest:
        faults.append(f"tasks.{name}.teacher.max_length is {teacher.max_length}, but {model} takes at most {longest} tokens")
    if max(score.hidden, default=0) > depth:
        faults.append(f"score.hidden: {model}, the teacher of {name}, has {depth} layers, not {max(score.hidden)}")
    return faults


def _words_faults(name: str, words: WordsSettings | None, teacher: TeacherSettings) -> list[str]:
    """Why a masked language model cannot serve the teacher, where both are there to ask."""
    if words is None:
        return []
    try:
        _check_there(words.model, "masked language model")
        if all((Path(model) / CONFIG_NAME).is_file() for model in (words.model, teacher.model)):
            check_words(words, teacher.model, teacher.max_length)
    except PipelineError as fault:
        return [f"tasks.{name}.words: {fault}"]
    return []


def _refusals(check: Callable[[], None]) -> list[str]:
    try:
        check()
    except PipelineError as fault:
        return [str(fault)]
    return []


def _check_there(model: str, what: str) -> None:
    """Refuse a folder that is not there, unless it is that which `download` is still to bring."""
    if Path(model) != RAW / MODEL_FOLDER:
        check_place(model, what)


def _size_faults(name: str, teacher: str, student: StudentSettings, faulty: Collection[str]) -> list[str]:
    """What of a student's size the model that it is cut from does not have, where that is there to ask and no faulty one."""
    start = student.start.checkpoint if isinstance(student.start, Checkpoint) else teacher
    try:
        if isinstance(student.start, Checkpoint):
            _check_there(start, "checkpoint")
    except PipelineError as fault:
        return [f"students.{name}: {fault}"]
    if start in faulty or not (Path(start) / CONFIG_NAME).is_file():
        return []
    return [f"students.{name}, cut from {start}: {fault}" for fault in _refusals(lambda: check_size(Path(start), student))]


def _found(path: Path, model: type[Settings], **places: str | tuple[str, ...]) -> list[str]:
    try:
        config.load(path, model, **places)
    except Faults as found:
        return list(found.faults)
    return []


if __name__ == "__main__":
    main()
