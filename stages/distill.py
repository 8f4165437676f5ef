"""distill: one student from the shards, or all students at once."""

from pathlib import Path

import click

from pipeline.config import params as config
from pipeline.config.errors import PipelineErrors
from pipeline.config.params import Settings
from pipeline.config.sections import student_places
from pipeline.config.settings import Checkpoint, RuntimeSettings, StudentSettings
from pipeline.distill.jobs import StudentJob
from pipeline.distill.launch import obtain, train_all
from pipeline.models.precision import note_slow_precision
from pipeline.shards.manifest import LINEAGE_FILE, SKIPPED_FILE, Manifest
from pipeline.store.files import folder_written_whole, write_json
from stages.command import check_apart, folder_option, note_unseen, out_option, params_option, stage


class Needs(Settings):
    student: StudentSettings
    runtime: RuntimeSettings


@stage
@click.option("--student", help="Name of the student in params.yaml.")
@folder_option("--soft-labels", "Folder that `soft_label` wrote.", required=False)
@folder_option("--shards", "Folder that `augment` wrote.", required=False)
@folder_option("--teacher", "Folder that `teach` wrote: tokenizer and first weights; it never runs.", required=False)
@params_option
@out_option("Where to write the student, a Hugging Face folder; replaced as a whole.", LINEAGE_FILE, required=False)
@click.option("--cost", type=click.Path(path_type=Path), help="File to write what the training took to.")
@click.option("--all", "data", type=click.Path(path_type=Path), help="Train every student of every task of this data folder, "
              "several at once, into the store alone; `dvc repro` then only fetches them.")  # fmt: skip
def main(
    student: str | None,
    soft_labels: Path | None,
    shards: Path | None,
    teacher: Path | None,
    params: Path,
    out: Path | None,
    cost: Path | None,
    data: Path | None,
) -> None:
    """Train one student from the shards alone.

    The settings of students.<student> stand over those of the section distill. Shards that are incomplete, damaged or made with
    another teacher, tokenizer, label order or format are rejected before work starts. A student that was finished before is
    taken from the store; one whose training was killed goes on where it was.
    """
    one = {"student": student, "soft_labels": soft_labels, "shards": shards, "teacher": teacher, "out": out, "cost": cost}
    if data is not None:
        if given := [f"--{name}" for name, value in one.items() if value is not None]:
            raise click.UsageError(f"--all trains every student into the store; leave out {', '.join(given)}")
        _train_all(data, params)
        return
    if student is None or soft_labels is None or shards is None or teacher is None or out is None or cost is None:
        missing = [f"--{name}" for name, value in one.items() if value is None]
        raise click.UsageError(f"give {', '.join(missing)} too, or --all with the data folder and nothing else")
    task, needs = Manifest.read(soft_labels).task.name, _needs(params, student)
    if not needs.student.wanted_for(task):
        _skip(out, cost)
        click.echo(f"{out}: not trained, since students.{student}.tasks does not list {task}")
        return
    if isinstance(start := needs.student.initial_weights, Checkpoint):
        check_apart(out, "the model that it starts from", start.checkpoint)
        note_unseen(start.checkpoint)
    note_slow_precision(params)
    facts = obtain(StudentJob(student, soft_labels, shards, teacher, needs.student), needs.runtime, out, cost)
    click.echo(f"{out}: dev {facts['dev']:.4f}, teacher {facts['teacher_dev']:.4f}")


def _skip(out: Path, cost: Path) -> None:
    """Leave the note that a student is not wanted for a task, where DVC expects its outputs."""
    with folder_written_whole(out) as folder:
        write_json(folder / SKIPPED_FILE, {})
    write_json(cost, {})


def _train_all(data: Path, params: Path) -> None:
    content = config.read_params(params)
    if errors := [error for section in ("tasks", "students") for error in config.naming_errors(content, section)]:
        raise PipelineErrors(str(params), errors)
    needs = {student: _needs(params, student) for student in content["students"]}
    note_slow_precision(params)
    place = data.resolve()
    jobs = [
        StudentJob(name, place / "soft_labels" / task, place / "shards" / task, place / "teacher" / task, needs[name].student)
        for task in content["tasks"]
        for name in needs
        if needs[name].student.wanted_for(task)
    ]
    train_all(jobs, next(iter(needs.values())).runtime)


def _needs(params: Path, student: str) -> Needs:
    return config.load(params, Needs, student=student_places(config.read_params(params), student), runtime="runtime")


if __name__ == "__main__":
    main()
