"""Whether the entries of params.yaml agree with each other and with the models that they name; reads no table."""

from pathlib import Path

from pipeline.augment.recipes import edit_errors, followed_by, kind_errors
from pipeline.config.corpus import MISSING_SHARE, SPLITS
from pipeline.config.errors import PipelineError, errors_of
from pipeline.config.sections import Sections
from pipeline.config.settings import Checkpoint, StudentSettings, TaskSettings
from pipeline.corpus.rows import NOT_OF_TWO
from pipeline.distill.dataset import check_policy
from pipeline.distill.student import check_size, check_start
from pipeline.models.folder import ModelFolder
from pipeline.training.masked_lm import check_masked_lm
from pipeline.training.teacher import teacher_errors
from pipeline.training.trainer import check_reporting


class Models:
    """The models on this machine, each opened once."""

    def __init__(self, to_come: Path) -> None:
        """``to_come`` is a model folder that may be missing, since the stage ``download`` makes it."""
        self._to_come, self._opened = to_come, dict[str, ModelFolder | None]()

    def find(self, model: str) -> ModelFolder | None:
        """The model if it is on this machine.

        Raises:
            PipelineError: it is neither a folder nor a hub id.
        """
        if model not in self._opened:
            found = ModelFolder.at_hand(model)
            if found is None and Path(model) != self._to_come:
                ModelFolder(model).check_exists()
            self._opened[model] = found
        return self._opened[model]

    def missing(self, sections: Sections) -> list[str]:
        """The hub models that are not on this machine yet, so that nothing is known of them."""
        starts = [student.initial_weights for student in (*sections.students.values(), *filter(None, [sections.surrogate]))]
        models = [task.teacher.model for task in sections.tasks.values()]
        models += [sections.masked_lm.model] if sections.masked_lm and sections.masked_lm.model else []
        models += [start.checkpoint for start in starts if isinstance(start, Checkpoint)]
        hub = [model for model in dict.fromkeys(models) if not errors_of(lambda: self.find(model))]  # noqa: B023
        return [model for model in hub if Path(model) != self._to_come and self.find(model) is None]


def contradictions(sections: Sections, models: Models) -> list[str]:
    """Every error of the valid entries, as a sentence with its place."""
    runtime = sections.runtime
    errors = errors_of(lambda: check_reporting(runtime.report_to)) if runtime else []
    broken = set[str]()
    for name, task in sections.tasks.items():
        found = _teacher_errors(name, task, sections, models)
        broken |= {task.teacher.model} if found else set()
        errors += _corpus_errors(name, task) + found + _variant_errors(name, task, sections)
        errors += [] if found else _masked_lm_errors(name, task, sections, models)
        augment = sections.variants.get(name)
        if augment is not None and augment.needs_surrogate() and sections.surrogate is not None:
            errors += _size_errors("surrogate", sections.surrogate, task, broken, models)
    for name, student in sections.students.items():
        place = f"students.{name}"
        unknown = [task for task in student.tasks or () if task not in sections.params.get("tasks", {})]
        errors += [f"{place}.tasks: there is no task {', '.join(unknown)}"] if unknown else []
        for task_name, task in sections.tasks.items():
            if student.wanted_for(task_name):
                errors += _size_errors(place, student, task, broken, models)
                errors += _policy_errors(name, student, task_name, sections)
    return errors


def _corpus_errors(name: str, task: TaskSettings) -> list[str]:
    corpus, errors = task.corpus, []
    if corpus.files is not None:
        lacking = [split for split in SPLITS if split not in corpus.files and split not in corpus.shares()]
        errors += [f"tasks.{name}.corpus.{split}: {MISSING_SHARE.format(split)}" for split in lacking]
    if task.metric == "f1" and len(names := set((corpus.labels or {}).values())) > 2:
        errors.append(f"tasks.{name}.metric: f1: {NOT_OF_TWO.format(len(names))}")
    return errors


def _teacher_errors(name: str, task: TaskSettings, sections: Sections, models: Models) -> list[str]:
    """Why a model on this machine cannot be the teacher of a task."""
    teacher, labels = task.teacher, task.corpus.labels
    try:
        if (folder := models.find(teacher.model)) is None:
            return []
        folder.check_files()
    except PipelineError as error:
        return [f"tasks.{name}.teacher: {error}"]
    known = tuple(dict.fromkeys((labels or {}).values())) if labels or task.kind == "regression" else None
    pair = len(task.corpus.text) == 2
    errors = teacher_errors(folder, teacher, name, task.kind, known, pair)
    if not errors and (augment := sections.variants.get(name)):
        errors += edit_errors(augment, folder.tokenizer, pair)
    return [f"tasks.{name}.teacher: {error}" for error in errors]


def _variant_errors(name: str, task: TaskSettings, sections: Sections) -> list[str]:
    augment = sections.variants.get(name)
    return [] if augment is None else [f"tasks.{name}: {error}" for error in kind_errors(augment, task.kind)]


def _masked_lm_errors(name: str, task: TaskSettings, sections: Sections, models: Models) -> list[str]:
    """Why a masked language model cannot serve the teacher, if a recipe needs one and both are on this machine."""
    settings, augment, teacher = sections.masked_lm, sections.variants.get(name), task.teacher
    if settings is None or augment is None or not augment.uses("masked_lm"):
        return []
    try:
        model, theirs = models.find(settings.model or teacher.model), models.find(teacher.model)
        if model and theirs:
            check_masked_lm(model, theirs, settings.fine_tune, teacher.max_length)
    except PipelineError as error:
        return [f"masked_lm, task {name}: {error}"]
    return []


def _size_errors(place: str, student: StudentSettings, task: TaskSettings, broken: set[str], models: Models) -> list[str]:
    """Why a student cannot be cut from its model, if that is on this machine and has no error itself."""
    teacher, weights = task.teacher, student.initial_weights
    start = weights.checkpoint if isinstance(weights, Checkpoint) else teacher.model
    try:
        folder = models.find(start)
    except PipelineError as error:
        return [f"{place}: {error}"] if isinstance(weights, Checkpoint) else []
    if {start, teacher.model} & broken or folder is None:
        return []
    theirs = models.find(teacher.model)
    found = errors_of(lambda: check_size(folder, student))
    if isinstance(weights, Checkpoint) and theirs is not None:
        found += errors_of(lambda: check_start(folder, theirs, teacher.max_length))
    return [f"{place}, cut from {start}: {error}" for error in found]


def _policy_errors(name: str, student: StudentSettings, task: str, sections: Sections) -> list[str]:
    """Why the stored variants of a task cannot be shown as a student's policy asks."""
    augment, surrogate = sections.variants.get(task), sections.surrogate
    if augment is None or (augment.needs_surrogate() and surrogate is None):
        return []
    checkpoints = surrogate.checkpoints if surrogate and augment.needs_surrogate() else 0
    found = errors_of(lambda: check_policy(student.variant_policy, followed_by(augment, checkpoints), checkpoints))
    return [f"students.{name}, task {task}: {error}" for error in found]
