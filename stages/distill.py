"""distill: one student trained from the shards, or all students at once."""

from pathlib import Path
from typing import Any

import click

from pipeline.config.errors import PipelineErrors
from pipeline.config.params import Settings, load, naming_errors, read_params
from pipeline.config.sections import student_places
from pipeline.config.settings import Checkpoint, RuntimeSettings, StudentSettings
from pipeline.distill.jobs import StudentJob
from pipeline.distill.launch import obtain, train_all
from pipeline.shards.manifest import LINEAGE_FILE, Manifest
from pipeline.store.files import SKIPPED_FILE, folder_written_whole, write_json
from stages.command import check_apart, folder_option, note_unseen, out_option, params_option, stage
from stages.precision import note_slow_precision


class Sections(Settings):
    """The sections of params.yaml that this stage reads; ``student`` is students.<name> over distill."""

    student: StudentSettings
    runtime: RuntimeSettings


@stage
@click.option("--student", help="Name of the student in params.yaml.")
@folder_option("--soft-labels", "Output of `soft_label`.", required=False)
@folder_option("--shards", "Output of `augment`.", required=False)
@folder_option("--teacher", "Output of `teach`: tokenizer and initial weights; the teacher never runs.", required=False)
@params_option
@out_option("Folder for the student in Hugging Face's format; replaced as a whole.", LINEAGE_FILE, required=False)
@click.option("--cost", type=click.Path(path_type=Path), help="File for the time and steps of the training.")
@click.option("--all", "data", type=click.Path(path_type=Path), help="Train every student of every task of this data folder, "
              "several at once, into the store only; `dvc repro` then only fetches them.")  # fmt: skip
def main(params: Path, data: Path | None, **one: Any) -> None:
    """Train one student from the shards.

    The settings in students.<student> override those in distill. Shards that are incomplete or made with another teacher,
    tokenizer, label order or format are rejected before training, a damaged one when it is first read. A finished student
    is taken from the store; an interrupted training resumes from its last checkpoint.
    """
    flags = {f"--{name.replace('_', '-')}": value for name, value in one.items()}
    if data is None:
        if missing := [flag for flag, value in flags.items() if value is None]:
            raise click.UsageError(f"also give {', '.join(missing)}, or only --all with the data folder")
        _train_one(params, **one)
    elif given := [flag for flag, value in flags.items() if value is not None]:
        raise click.UsageError(f"--all trains every student into the store; leave out {', '.join(given)}")
    else:
        _train_all(data.resolve(), params)


def _train_one(params: Path, student: str, soft_labels: Path, shards: Path, teacher: Path, out: Path, cost: Path) -> None:
    task, settings = Manifest.read(soft_labels).task.name, _settings(params, student)
    if not settings.student.wanted_for(task):
        with folder_written_whole(out) as folder:
            write_json(folder / SKIPPED_FILE, {})
        write_json(cost, {})  # DVC expects both outputs
        click.echo(f"{out}: not trained, since students.{student}.tasks does not list {task}")
        return
    if isinstance(start := settings.student.initial_weights, Checkpoint):
        check_apart(out, "the model that training starts from", start.checkpoint)
        note_unseen(start.checkpoint)
    note_slow_precision(params)
    facts = obtain(StudentJob(student, soft_labels, shards, teacher, settings.student), settings.runtime, out, cost)
    click.echo(f"{out}: dev {facts['dev']:.4f}, teacher {facts['teacher_dev']:.4f}")


def _train_all(data: Path, params: Path) -> None:
    content = read_params(params)
    if errors := [error for section in ("tasks", "students") for error in naming_errors(content, section)]:
        raise PipelineErrors(str(params), errors)
    every = {student: _settings(params, student) for student in content["students"]}
    note_slow_precision(params)
    jobs = [
        StudentJob(name, data / "soft_labels" / task, data / "shards" / task, data / "teacher" / task, settings.student)
        for task in content["tasks"]
        for name, settings in every.items()
        if settings.student.wanted_for(task)
    ]
    train_all(jobs, next(iter(every.values())).runtime)


def _settings(params: Path, student: str) -> Sections:
    return load(params, Sections, student=student_places(read_params(params), student), runtime="runtime")


if __name__ == "__main__":
    main()
