"""Writes the report: products of all stages for the tasks and students of params.yaml → data/reports."""

from pathlib import Path
from typing import Any

import click
from pydantic import Field
from rich.console import Console
from rich.table import Table

from pipeline.config.params import Settings, load
from pipeline.config.settings import EvaluationSettings
from pipeline.evaluation.facts import PARETO_LINE, Result, gather
from pipeline.evaluation.page import PAGE_FILE, duration, read_results, write_report
from pipeline.shards.manifest import SKIPPED_FILE
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
@click.option("--print-only", is_flag=True, help="Print the table of the last report and write nothing.")
def main(data: Path, out: Path, params: Path, print_only: bool) -> None:
    """Write the results of all tasks and students as tables, plots and an HTML page."""
    if not print_only:
        settings = load(params, Sections, tasks="tasks", students="students", evaluate="evaluate")
        folders = {task: data / "student" / task for task in settings.tasks}
        trained = {t: [n for n in settings.students if not (f / n / SKIPPED_FILE).exists()] for t, f in folders.items()}
        reports = [gather(data, task, names, settings.evaluate.bootstrap_resamples) for task, names in trained.items()]
        write_report(out, reports, settings.evaluate)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in ("task", "model", "metric"):
        table.add_column(name, no_wrap=True)
    for name in ("value", "retained", "agreement", "against control", "parameters", "size", "latency", "rows/s", "training"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in read_results(out):
        table.add_row(*cells(result))
    Console(width=200, highlight=False, markup=False).print(table)
    click.echo(f"* on the Pareto line: {PARETO_LINE}")
    click.echo(f"report: {out / PAGE_FILE}")


def cells(row: Result) -> list[str]:
    """One line of the printed table; the column against control shows the interval of the difference."""
    return [
        *(row.task, row.model + " *" * row.pareto, row.metric, f"{row.value:.3f}"),
        "–" if row.retained is None else f"{row.retained:.1%}",
        f"{row.agreement:.3f}",
        "–" if row.interval_low is None else f"{row.interval_low:+.3f} … {row.interval_high:+.3f}",
        *(f"{row.parameters / 1e6:.2f} M", f"{row.bytes / 1e6:.1f} MB"),
        *(f"{row.latency_ms:.2f} ms", f"{row.rows_per_s:.0f}", duration(row.training_s)),
    ]


if __name__ == "__main__":
    main()
