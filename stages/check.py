"""check: validates params.yaml, its entries against each other and against the models that they name (not a DVC stage)."""

from pathlib import Path

import click

from pipeline.augment.recipes import edit_errors, followed_by
from pipeline.config.corpus import MISSING_SHARE, SPLITS, TaskSettings
from pipeline.config.errors import PipelineError, PipelineErrors, errors_of
from pipeline.config.sections import Sections, read_sections
from pipeline.config.settings import AugmentSettings, Checkpoint, RuntimeSettings, StudentSettings
from pipeline.distill.dataset import check_policy
from pipeline.distill.student import check_size, check_start
from pipeline.models.folder import ModelFolder, on_hub
from pipeline.models.forward import pick_device
from pipeline.store.store import open_store
from pipeline.training.masked_lm import check_masked_lm
from pipeline.training.teacher import teacher_errors
from pipeline.training.trainer import check_reporting
from stages.command import RAW, params_option, stage
from stages.download import MODEL_FOLDER
from stages.precision import asking_for, note_slow_precision


@stage
@params_option
def main(params: Path) -> None:
    """Validate params.yaml and list every error at once.

    Each stage validates what it reads; this validates everything before the first stage starts: unknown, missing, renamed and
    mistyped settings, contradictions, whether the models on this machine (folders, hub cache) fit the settings, and whether a
    store in a bucket can be written to. Errors in tables, or in models that are not on this machine, are found by the stage
    that reads them.
    """
    sections, errors = read_sections(params)
    models = Models(sections)
    errors += models.contradictions()
    for model in models.absent:
        name, revision = on_hub(model)
        fetch = f"hf download {name}" + (f" --revision {revision}" if revision else "")
        click.echo(f"note: {model} is not on this machine yet, so it is not checked; download it with `{fetch}`")
    note_slow_precision(params)
    if pick_device().type == "cpu" and (asking := asking_for("float16", params)):
        click.echo(f"note: {', '.join(asking)}: float16 needs a GPU, and this machine has none; bfloat16 and float32 need none")
    if errors:
        raise PipelineErrors(str(params), list(dict.fromkeys(errors)))
    click.echo(f"{params}: tasks {', '.join(sections.tasks)}; students {', '.join(sections.students)}")


def check_bucket(runtime: RuntimeSettings) -> None:
    """Reject a store in a bucket that cannot be written to."""
    store = open_store(runtime)
    if store.remote:
        with store.probe():
            pass


class Models:
    """The models of the valid sections, each opened once, and whether they fit the settings."""

    def __init__(self, sections: Sections) -> None:
        self._sections, self._opened = sections, dict[str, ModelFolder | None]()

    def find(self, model: str) -> ModelFolder | None:
        """The model if it is on this machine; the one that the stage ``download`` provides may be missing.

        Raises:
            PipelineError: it is neither a folder nor a hub id.
        """
        if model not in self._opened:
            found = ModelFolder.at_hand(model)
            if found is None and Path(model) != RAW / MODEL_FOLDER:
                ModelFolder(model).check_exists()
            self._opened[model] = found
        return self._opened[model]

    @property
    def absent(self) -> list[str]:
        """The hub models that are not on this machine, among those that were needed for a check."""
        return [model for model, folder in self._opened.items() if folder is None and Path(model) != RAW / MODEL_FOLDER]

    def contradictions(self) -> list[str]:
        """Every error of the valid entries, as a sentence with its place."""
        sections, runtime = self._sections, self._sections.runtime
        errors = errors_of(lambda: check_reporting(runtime.report_to), lambda: check_bucket(runtime)) if runtime else []
        broken = set[str]()
        for name, task in sections.tasks.items():
            lacking = set(SPLITS) - {*(task.corpus.files or SPLITS), *task.corpus.shares()}
            errors += [f"tasks.{name}.corpus.{split}: {MISSING_SHARE.format(split)}" for split in sorted(lacking)]
            found = [f"tasks.{name}.teacher: {error}" for error in self._teacher_errors(name, task)]
            errors += found
            broken |= {task.teacher.model} if found else set()
            if (augment := sections.variants.get(name)) is not None:
                if not found:
                    errors += [f"masked_lm, task {name}: {error}" for error in self._masked_lm_errors(task, augment)]
                if augment.needs_surrogate() and sections.surrogate is not None:
                    for surrogate in sections.surrogate.each():
                        errors += self._size_errors("surrogate", surrogate, task, broken)
        for name, student in sections.students.items():
            place = f"students.{name}"
            unknown = [task for task in student.tasks or () if task not in sections.params.get("tasks", {})]
            errors += [f"{place}.tasks: there is no task {', '.join(unknown)}"] if unknown else []
            for task_name, task in sections.tasks.items():
                if student.wanted_for(task_name):
                    errors += self._size_errors(place, student, task, broken)
                    errors += [f"{place}, task {task_name}: {error}" for error in self._policy_errors(student, task_name)]
        return errors

    def _teacher_errors(self, name: str, task: TaskSettings) -> list[str]:
        """Why a model on this machine cannot be the teacher of a task."""
        teacher, labels = task.teacher, task.corpus.labels
        try:
            if (folder := self.find(teacher.model)) is None:
                return []
            folder.check_files()
        except PipelineError as error:
            return [str(error)]
        known = tuple(dict.fromkeys((labels or {}).values())) if labels or task.kind == "regression" else None
        pair = len(task.corpus.text) == 2
        errors = teacher_errors(folder, teacher, name, task.kind, known, pair)
        if not errors and (augment := self._sections.variants.get(name)):
            errors = edit_errors(augment, folder.tokenizer, pair)
        return errors

    def _masked_lm_errors(self, task: TaskSettings, augment: AugmentSettings) -> list[str]:
        """Why a masked language model cannot be used with the teacher, if a recipe needs one and both are on this machine."""
        settings, teacher = self._sections.masked_lm, task.teacher
        if settings is None or not augment.uses("masked_lm"):
            return []
        try:
            model, theirs = self.find(settings.model or teacher.model), self.find(teacher.model)
            if model and theirs:
                check_masked_lm(model, theirs, settings.fine_tune, teacher.max_length)
        except PipelineError as error:
            return [str(error)]
        return []

    def _size_errors(self, place: str, student: StudentSettings, task: TaskSettings, broken: set[str]) -> list[str]:
        """Why a student cannot be initialised from its model, if that is on this machine and has no error itself."""
        teacher, weights = task.teacher, student.initial_weights
        start = weights.checkpoint if isinstance(weights, Checkpoint) else teacher.model
        try:
            folder = self.find(start)
        except PipelineError as error:
            return [f"{place}: {error}"] if isinstance(weights, Checkpoint) else []
        if {start, teacher.model} & broken or folder is None:
            return []
        found = errors_of(lambda: check_size(folder, student))
        if isinstance(weights, Checkpoint) and (theirs := self.find(teacher.model)) is not None:
            found += errors_of(lambda: check_start(folder, theirs, teacher.max_length))
        return [f"{place}, cut from {start}: {error}" for error in found]

    def _policy_errors(self, student: StudentSettings, task: str) -> list[str]:
        """Why the stored variants of a task do not fit a student's policy."""
        augment, surrogate = self._sections.variants.get(task), self._sections.surrogate
        if augment is None or (augment.needs_surrogate() and surrogate is None):
            return []
        checkpoints = surrogate.checkpoints if surrogate and augment.needs_surrogate() else 0
        return errors_of(lambda: check_policy(student.variant_policy, followed_by(augment, checkpoints), checkpoints))


if __name__ == "__main__":
    main()
