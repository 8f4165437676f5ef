"""Export a student to ONNX: data/scores, student → a folder that onnxruntime serves (no stage)."""

from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from pipeline.config.params import Settings, load
from pipeline.evaluation.export import FACTS_FILE, Facts, export
from pipeline.evaluation.quality import EvaluationSettings, Speed
from stages.command import folder_option, out_option, params_option, stage

WIDTH = 200
"""Columns of the printed table at most, on a terminal or not; a table is as wide as it needs to be."""


class Sections(Settings):
    """What this command reads of params.yaml."""

    evaluate: EvaluationSettings


@stage
@folder_option("--scores", "Shards with the untouched inputs; their test split is what the file is checked on.")
@folder_option("--student", "The student.")
@out_option("Folder to write the ONNX file and all that serving it takes to; an earlier export is replaced.", FACTS_FILE)
@click.option("--int8", is_flag=True, help="Write a second file with int8 weights: smaller, faster and a little off.")
@params_option
def main(scores: Path, student: Path, out: Path, int8: bool, params: Path) -> None:
    """Turn a student into an ONNX file, checked row by row against torch, and say how fast it is on one thread."""
    settings = load(params, Sections, evaluate="evaluate").evaluate
    facts, speeds = export(student, scores, out, settings, int8)
    Console(width=WIDTH, highlight=False, markup=False).print(printed_table(student.name, facts, speeds))
    click.echo(f"{facts.rows:,} test rows; {facts.files[0].file} may differ by {facts.allowed:.1e} in a logit")
    click.echo(f"export: {out}, how to serve it: {out / 'README.md'}")


def printed_table(student: str, facts: Facts, speeds: Sequence[Speed]) -> Table:
    """The student by torch and its files as a person reads them on a terminal."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("model", no_wrap=True)
    for name in (facts.task.metric, "agreement", "difference", "size", "latency", "speed-up", "rows/s", "speed-up"):
        table.add_column(name, justify="right", no_wrap=True)
    worth = [(f"{student}, by torch", facts.value, "–", "–", facts.bytes)]
    worth += [(one.file, one.value, f"{one.agreement:.3f}", f"{one.difference:.1e}", one.bytes) for one in facts.files]
    for (name, value, alike, difference, size), speed in zip(worth, speeds, strict=True):
        alone = (f"{speed.latency_ms:.2f} ms", f"{speeds[0].latency_ms / speed.latency_ms:.1f}×")
        together = (f"{speed.rows_per_s:.0f}", f"{speed.rows_per_s / speeds[0].rows_per_s:.1f}×")
        table.add_row(name, f"{value:.3f}", alike, difference, f"{size / 1e6:.1f} MB", *alone, *together)
    return table


if __name__ == "__main__":
    main()
