"""distill: one student from the shards."""

from pathlib import Path

import click

from pipeline import config
from pipeline.config import Settings
from pipeline.distill.training import StudentSettings, distill
from stages.command import folder_option, params_option, stage


class Needs(Settings):
    student: StudentSettings


@stage
@click.option("--student", required=True, help="Name of the student in params.yaml.")
@folder_option("--scores", "Folder that `score` wrote.")
@folder_option("--shards", "Folder that `augment` wrote.")
@folder_option("--teacher", "Folder that `teach` wrote: tokenizer, configuration and first weights; the teacher never runs.")
@params_option
@folder_option("--out", "Where to write the student, a Hugging Face folder.")
def main(student: str, scores: Path, shards: Path, teacher: Path, params: Path, out: Path) -> None:
    """Train one student from the shards alone.

    The settings of students.<student> stand over those of the section distill. Shards that are incomplete, damaged or made with
    another teacher, tokenizer, label order or format are refused before work starts.
    """
    needs = config.load(params, Needs, student=("distill", f"students.{student}"))
    facts = distill(student, scores, shards, teacher, needs.student, out)
    click.echo(f"{out}: dev {facts['dev']:.4f}, teacher {facts['teacher_dev']:.4f}")


if __name__ == "__main__":
    main()
