"""What one entry of params.yaml asks of another, or of a model's folder, and does not find. Knows no table and no YAML."""

from collections.abc import Collection
from pathlib import Path

from transformers.utils import CONFIG_NAME

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
from pipeline.models.folder import folder_at_hand, load_tokenizer
from pipeline.models.pretrained import check_folder, check_place
from pipeline.training.masked_lm import check_words
from pipeline.training.teacher import teacher_faults
from pipeline.training.trainer import check_reporting


def use_faults(sections: Sections, to_come: Path) -> list[str]:
    """Every such fault of the entries that could be read, as a sentence with its place.

    Args:
        sections: the parameter file.
        to_come: a model's folder that may be absent, since a stage is still to bring it.
    """
    runtime = sections.runtime
    faults = refusals(lambda: check_reporting(runtime.report_to)) if runtime else []
    for name in sections.variants:
        faults += _aim_faults(name, sections)
    faulty = set[str]()
    for name, task in sections.tasks.items():
        faults += _corpus_faults(name, task)
        found = _teacher_faults(name, task, sections, to_come)
        faulty |= {task.teacher.model} if found else set()
        faults += found or _words_faults(name, task, to_come)
        if task.aim == "scout" and sections.scout is not None:
            faults += _size_faults("scout", sections.scout, task, faulty, to_come)
    for name, student in sections.students.items():
        for task_name, task in sections.tasks.items():
            faults += _size_faults(f"students.{name}", student, task, faulty, to_come)
            faults += _learning_faults(name, student, task_name, sections)
    return faults


def unasked(sections: Sections, to_come: Path) -> list[str]:
    """The models of the hub that lie not on this machine yet, of which therefore nothing is known here."""
    starts = [student.start for student in (*sections.students.values(), *filter(None, [sections.scout]))]
    models = [task.teacher.model for task in sections.tasks.values()]
    models += [task.words.model for task in sections.tasks.values() if task.words is not None]
    models += [start.checkpoint for start in starts if isinstance(start, Checkpoint)]
    hubs = [model for model in dict.fromkeys(models) if not refusals(lambda: check_place(model, "model"))]  # noqa: B023
    return [model for model in hubs if Path(model) != to_come and folder_at_hand(model) is None]


def _check_there(model: str, what: str, to_come: Path) -> None:
    if Path(model) != to_come:
        check_place(model, what)


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


def _by_name(fault: PipelineError | str, *models: str) -> str:
    """A fault that calls models of the hub by their ids, not by their folders in the cache."""
    told = str(fault)
    for model in models:
        if not Path(model).is_dir() and (folder := folder_at_hand(model)) is not None:
            told = told.replace(str(folder), model)
    return told


def _corpus_faults(name: str, task: TaskSettings) -> list[str]:
    """What of a corpus its settings alone show to be wrong."""
    corpus, faults = task.corpus, []
    if corpus.files is not None:
        lacking = [split for split in SPLITS if split not in corpus.files and split not in corpus.shares()]
        faults += [f"tasks.{name}.corpus.{split}: {MISSING_SHARE.format(split)}" for split in lacking]
    if task.metric == "f1" and len(names := set((corpus.labels or {}).values())) > 2:
        faults.append(f"tasks.{name}.metric: f1: {NOT_OF_TWO.format(len(names))}")
    return faults


def _teacher_faults(name: str, task: TaskSettings, sections: Sections, to_come: Path) -> list[str]:
    """What is asked of a teacher that its model cannot do, where that is there to ask."""
    teacher, model, labels = task.teacher, task.teacher.model, task.corpus.labels
    try:
        _check_there(model, "model", to_come)
        if (folder := folder_at_hand(model)) is None:
            return []
        check_folder(folder, "model" if teacher.fine_tune else "classifier")
    except PipelineError as fault:
        return [f"tasks.{name}.teacher: {_by_name(fault, model)}"]
    known = tuple(dict.fromkeys((labels or {}).values())) if labels or task.kind == "regression" else None
    pair, source = len(task.corpus.text) == 2, str(folder)
    faults = teacher_faults(source, teacher, name, task.kind, known, pair)
    if not faults:
        faults += _edit_faults(name, folder, pair, sections)
    return [f"tasks.{name}.teacher: {_by_name(fault, model)}" for fault in faults]


def _edit_faults(name: str, folder: Path, pair: bool, sections: Sections) -> list[str]:
    """Edits that a task's variants need and its tokenizer has no token for."""
    augment = sections.variants.get(name)
    return [] if augment is None else edit_faults(augment, load_tokenizer(folder), pair)


def _words_faults(name: str, task: TaskSettings, to_come: Path) -> list[str]:
    """Why a masked language model cannot serve the teacher, where both are there to ask."""
    words, teacher = task.words, task.teacher
    if words is None:
        return []
    try:
        _check_there(words.model, "masked language model", to_come)
        own, theirs = folder_at_hand(words.model), folder_at_hand(teacher.model)
        if own and theirs and all((folder / CONFIG_NAME).is_file() for folder in (own, theirs)):
            check_words(words.model_copy(update={"model": str(own)}), str(theirs), teacher.max_length)
    except PipelineError as fault:
        return [f"tasks.{name}.words: {_by_name(fault, words.model, teacher.model)}"]
    return []


def _size_faults(place: str, student: StudentSettings, task: TaskSettings, faulty: Collection[str], to_come: Path) -> list[str]:
    """Why a student cannot be cut from its model, where that is there to ask and no faulty one."""
    teacher, start = task.teacher, student.start.checkpoint if isinstance(student.start, Checkpoint) else task.teacher.model
    try:
        if isinstance(student.start, Checkpoint):
            _check_there(start, "checkpoint", to_come)
    except PipelineError as fault:
        return [f"{place}: {fault}"]
    folder, theirs = folder_at_hand(start), folder_at_hand(teacher.model)
    if {start, teacher.model} & {*faulty} or folder is None or not (folder / CONFIG_NAME).is_file():
        return []
    found = refusals(lambda: check_size(folder, student))
    if isinstance(student.start, Checkpoint) and theirs is not None:
        found += refusals(lambda: check_start(str(folder), load_tokenizer(theirs), teacher.max_length))
    return [f"{place}, cut from {start}: {fault.replace(str(folder), start)}" for fault in found]


def _learning_faults(name: str, student: StudentSettings, task: str, sections: Sections) -> list[str]:
    """What a student wants to learn from that is not made for a task; nothing where its variants or its scout have a fault."""
    augment, scout = sections.variants.get(task), sections.scout if sections.tasks[task].aim == "scout" else None
    if augment is None or (augment.aims() and sections.tasks[task].aim == "scout" and scout is None):
        return []
    try:
        snapshots = scout.snapshots if scout and augment.aims() else 0
        check_use(student.variants, augment.aimed_at(snapshots), snapshots)
    except PipelineError as fault:
        return [f"students.{name}, task {task}: {fault}"]
    return []
