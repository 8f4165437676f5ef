"""Writes the report: products of all stages for the tasks and students of params.yaml → data/reports."""

from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from pipeline.config.params import load
from pipeline.evaluation.facts import PARETO_LINE, Result, gather, skipped
from pipeline.evaluation.page import PAGE_FILE, ReportSettings, duration, read_results, write_report
from stages.command import folder_option, params_option, stage

WIDTH = 200
"""Largest width of the printed table in characters."""


@stage
@click.option(
    "--data",
    default="data",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder with the products of all stages.",
)
@folder_option("--out", "Folder for the report.")
@params_option
@click.option("--print-only", is_flag=True, help="Print the table of the last report and write nothing.")
def main(data: Path, out: Path, params: Path, print_only: bool) -> None:
    """Write the results of all tasks and students as tables, plots and an HTML page."""
    if not print_only:
        places = {"tasks": "tasks", "students": "students", "evaluate": "evaluate"}
        settings = load(params, ReportSettings, **places)
        students, resamples = list(settings.students), settings.evaluate.bootstrap_resamples
        trained = {task: [name for name in students if not skipped(data, task, name)] for task in settings.tasks}
        reports = [gather(data, task, trained[task], resamples) for task in settings.tasks]
        write_report(out, reports, settings.evaluate)
    Console(width=WIDTH, highlight=False, markup=False).print(printed_table(read_results(out)))
    click.echo(f"* on the Pareto line: {PARETO_LINE}")
    click.echo(f"report: {out / PAGE_FILE}")


def printed_table(results: Sequence[Result]) -> Table:
    """The results for the terminal; the column against control shows the interval of the difference."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in ("task", "model", "metric"):
        table.add_column(name, no_wrap=True)
    for name in ("value", "retained", "agreement", "against control", "parameters", "size", "latency", "rows/s", "training"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in results:
        retained = "–" if row.retained is None else f"{row.retained:.1%}"
        interval = "–" if row.interval_low is None else f"{row.interval_low:+.3f} … {row.interval_high:+.3f}"
        quality = (f"{row.value:.3f}", retained, f"{row.agreement:.3f}", interval)
        size = (f"{row.parameters / 1e6:.2f} M", f"{row.bytes / 1e6:.1f} MB")
        time = (f"{row.latency_ms:.2f} ms", f"{row.rows_per_s:.0f}", duration(row.training_s))
        table.add_row(row.task, row.model + " *" * row.pareto, row.metric, *quality, *size, *time)
    return table


if __name__ == "__main__":
    main()
