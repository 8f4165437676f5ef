"""report: the results of all tasks and students as tables, plots and an HTML page."""

from pathlib import Path
from typing import Any

import click
from pydantic import Field

from pipeline.config.params import Settings, load
from pipeline.config.settings import EvaluationSettings
from pipeline.evaluation.facts import gather
from pipeline.evaluation.page import PAGE_FILE, TABLE_FILE, write_report
from pipeline.store.files import SKIPPED_FILE
from stages.command import folder_option, params_option, stage


class Sections(Settings):
    """The sections of params.yaml that the report reads; of tasks and students only the names and their order."""

    tasks: dict[str, Any] = Field(min_length=1)
    students: dict[str, Any] = Field(min_length=1)
    evaluate: EvaluationSettings


@stage
@click.option("--data", default="data", show_default=True, type=click.Path(path_type=Path, file_okay=False),
              help="Folder with the products of all stages.")  # fmt: skip
@folder_option("--out", "Folder for the report.")
@params_option
def main(data: Path, out: Path, params: Path) -> None:
    """Write the results of all tasks and students as tables, plots and an HTML page."""
    settings = load(params, Sections, tasks="tasks", students="students", evaluate="evaluate")
    folders = {task: data / "student" / task for task in settings.tasks}
    trained = {t: [n for n in settings.students if not (f / n / SKIPPED_FILE).exists()] for t, f in folders.items()}
    reports = [gather(data, task, names, settings.evaluate.bootstrap_resamples) for task, names in trained.items()]
    write_report(out, reports, settings.evaluate)
    click.echo((out / TABLE_FILE).read_text(encoding="utf-8") + f"report: {out / PAGE_FILE}")


if __name__ == "__main__":
    main()
