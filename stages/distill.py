"""distill: one student from the shards, or all students at once."""

from pathlib import Path

import click

from pipeline.config import params as config
from pipeline.config.errors import Faults
from pipeline.config.params import Settings
from pipeline.config.runtime import RuntimeSettings
from pipeline.distill.jobs import StudentJob
from pipeline.distill.launch import obtain, train_all
from pipeline.distill.settings import StudentSettings
from pipeline.distill.student import Checkpoint
from pipeline.models.precision import note_slow_precision
from pipeline.shards.manifest import LINEAGE_FILE
from stages.command import check_apart, folder_option, note_unseen, out_option, params_option, stage


class Needs(Settings):
    student: StudentSettings
    runtime: RuntimeSettings


@stage
@click.option("--student", help="Name of the student in params.yaml.")
@folder_option("--scores", "Folder that `score` wrote.", required=False)
@folder_option("--shards", "Folder that `augment` wrote.", required=False)
@folder_option("--teacher", "Folder that `teach` wrote: tokenizer and first weights; it never runs.", required=False)
@params_option
@out_option("Where to write the student, a Hugging Face folder; replaced as a whole.", LINEAGE_FILE, required=False)
@click.option("--cost", type=click.Path(path_type=Path), help="File to write what the training took to.")
@click.option("--all", "data", type=click.Path(path_type=Path), help="Train every student of every task of this data folder, "
              "several at once, into the store alone; `dvc repro` then only fetches them.")  # fmt: skip
def main(
    student: str | None,
    scores: Path | None,
    shards: Path | None,
    teacher: Path | None,
    params: Path,
    out: Path | None,
    cost: Path | None,
    data: Path | None,
) -> None:
    """Train one student from the shards alone.

    The settings of students.<student> stand over those of the section distill. Shards that are incomplete, damaged or made with
    another teacher, tokenizer, label order or format are refused before work starts. A student that was finished before is
    taken from the store; one whose training was killed goes on where it was.
    """
    one = {"student": student, "scores": scores, "shards": shards, "teacher": teacher, "out": out, "cost": cost}
    if data is not None:
        if given := [f"--{name}" for name, value in one.items() if value is not None]:
            raise click.UsageError(f"--all trains every student into the store; leave out {', '.join(given)}")
        _train_all(data, params)
        return
    if student is None or scores is None or shards is None or teacher is None or out is None or cost is None:
        missing = [f"--{name}" for name, value in one.items() if value is None]
        raise click.UsageError(f"give {', '.join(missing)} too, or --all with the data folder and nothing else")
    needs = _needs(params, student)
    if isinstance(needs.student.start, Checkpoint):
        check_apart(out, "the model that it begins with", needs.student.start.checkpoint)
        note_unseen(needs.student.start.checkpoint)
    note_slow_precision(params, _places(student))
    facts = obtain(StudentJob(student, scores, shards, teacher, needs.student), needs.runtime, out, cost)
    click.echo(f"{out}: dev {facts['dev']:.4f}, teacher {facts['teacher_dev']:.4f}")


def _train_all(data: Path, params: Path) -> None:
    content = config.read_params(params)
    if faults := [fault for section in ("tasks", "students") for fault in config.naming_faults(content, section)]:
        raise Faults(str(params), faults)
    needs = {student: _needs(params, student) for student in content["students"]}
    note_slow_precision(params, *map(_places, needs))
    place = data.resolve()
    jobs = [
        StudentJob(student, place / "scores" / task, place / "shards" / task, place / "teacher" / task, needs[student].student)
        for task in content["tasks"]
        for student in needs
    ]
    train_all(jobs, next(iter(needs.values())).runtime)


def _needs(params: Path, student: str) -> Needs:
    return config.load(params, Needs, student=_places(student), runtime="runtime")


def _places(student: str) -> config.Places:
    return ("distill", f"students.{student}")


if __name__ == "__main__":
    main()
