"""Whether the entries of params.yaml agree with each other and with the models that they name; reads no table."""

from collections.abc import Collection
from pathlib import Path

from pipeline.augment.recipes import aim_faults, edit_faults, kind_faults, words_faults
from pipeline.checking.sections import Sections, TaskSettings
from pipeline.config import params as config
from pipeline.config.errors import PipelineError, refusals
from pipeline.corpus.rows import NOT_OF_TWO
from pipeline.corpus.settings import MISSING_SHARE
from pipeline.corpus.task import SPLITS
from pipeline.distill.dataset import check_use
from pipeline.distill.settings import StudentSettings
from pipeline.distill.student import Checkpoint, check_size, check_start
from pipeline.models.folder import ModelFolder
from pipeline.training.masked_lm import check_words
from pipeline.training.teacher import teacher_errors
from pipeline.training.trainer import check_reporting


class Models:
    """The models on this machine, each opened once.

    Args:
        to_come: a model folder that may be missing, since the stage ``download`` makes it.
    """

    def __init__(self, to_come: Path) -> None:
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
        starts = [student.start for student in (*sections.students.values(), *filter(None, [sections.scout]))]
        models = [task.teacher.model for task in sections.tasks.values()]
        models += [task.words.model for task in sections.tasks.values() if task.words is not None]
        models += [start.checkpoint for start in starts if isinstance(start, Checkpoint)]
        hub = [model for model in dict.fromkeys(models) if not refusals(lambda: self.find(model))]  # noqa: B023
        return [model for model in hub if Path(model) != self._to_come and self.find(model) is None]


def use_errors(sections: Sections, models: Models) -> list[str]:
    """Every such error of the entries that could be read, as a sentence with its place."""
    runtime = sections.runtime
    faults = refusals(lambda: check_reporting(runtime.report_to)) if runtime else []
    for name in sections.variants:
        faults += _aim_faults(name, sections)
    faulty = set[str]()
    for name, task in sections.tasks.items():
        faults += _corpus_faults(name, task)
        found = _teacher_faults(name, task, sections, models)
        faulty |= {task.teacher.model} if found else set()
        faults += found or _words_faults(name, task, models)
        if task.aim == "scout" and sections.scout is not None:
            faults += _size_faults("scout", sections.scout, task, faulty, models)
    for name, student in sections.students.items():
        for task_name, task in sections.tasks.items():
            faults += _size_faults(f"students.{name}", student, task, faulty, models)
            faults += _learning_faults(name, student, task_name, sections)
    return faults


def _aim_faults(name: str, sections: Sections) -> list[str]:
    """What in the settings of a task's variants contradicts its kind, its aim or its words, whatever else it has wrong."""
    augment, place = sections.variants[name], f"tasks.{name}"
    kind, aim, entry = (config.lookup(sections.content, at) for at in (f"{place}.kind", f"{place}.aim", place))
    if not isinstance(entry, dict):
        return []
    faults = kind_faults(augment, kind) + aim_faults(augment, aim == "scout")
    if "words" in entry:
        faults += words_faults(augment, entry["words"] is not None)
    return [f"{place}: {fault}" for fault in faults]


def _corpus_faults(name: str, task: TaskSettings) -> list[str]:
    """What of a corpus its settings alone show to be wrong."""
    corpus, faults = task.corpus, []
    if corpus.files is not None:
        lacking = [split for split in SPLITS if split not in corpus.files and split not in corpus.shares()]
        faults += [f"tasks.{name}.corpus.{split}: {MISSING_SHARE.format(split)}" for split in lacking]
    if task.metric == "f1" and len(names := set((corpus.labels or {}).values())) > 2:
        faults.append(f"tasks.{name}.metric: f1: {NOT_OF_TWO.format(len(names))}")
    return faults


def _teacher_faults(name: str, task: TaskSettings, sections: Sections, models: Models) -> list[str]:
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
    if not errors:
        augment = sections.variants.get(name)
        errors += edit_faults(augment, folder.tokenizer, pair) if augment else []
    return [f"tasks.{name}.teacher: {error}" for error in errors]


def _words_faults(name: str, task: TaskSettings, models: Models) -> list[str]:
    """Why a masked language model cannot serve the teacher, if both are on this machine."""
    words, teacher = task.words, task.teacher
    if words is None:
        return []
    try:
        own, theirs = models.find(words.model), models.find(teacher.model)
        if own and theirs:
            check_words(own, theirs, words.fit, teacher.max_length)
    except PipelineError as error:
        return [f"tasks.{name}.words: {error}"]
    return []


def _size_faults(
    place: str, student: StudentSettings, task: TaskSettings, faulty: Collection[str], models: Models
) -> list[str]:
    """Why a student cannot be cut from its model, if that is on this machine and has no error itself."""
    teacher, other = task.teacher, isinstance(student.start, Checkpoint)
    start = student.start.checkpoint if isinstance(student.start, Checkpoint) else teacher.model
    try:
        folder = models.find(start)
    except PipelineError as error:
        return [f"{place}: {error}"] if other else []
    if {start, teacher.model} & {*faulty} or folder is None:
        return []
    theirs = models.find(teacher.model)
    found = refusals(lambda: check_size(folder, student))
    if other and theirs is not None:
        found += refusals(lambda: check_start(folder, theirs.tokenizer, teacher.max_length))
    return [f"{place}, cut from {start}: {error}" for error in found]


def _learning_faults(name: str, student: StudentSettings, task: str, sections: Sections) -> list[str]:
    """What a student wants to learn from that is not made for a task; nothing where its variants or its scout have a fault."""
    augment, scout = sections.variants.get(task), sections.scout if sections.tasks[task].aim == "scout" else None
    if augment is None or (augment.aims() and sections.tasks[task].aim == "scout" and scout is None):
        return []
    try:
        if student.variants != "none":
            snapshots = scout.snapshots if scout and augment.aims() else 0
            check_use(student.variants, augment.aimed_at(snapshots), snapshots)
    except PipelineError as fault:
        return [f"students.{name}, task {task}: {fault}"]
    return []
