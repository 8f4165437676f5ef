"""Exports a student to ONNX: data/soft_labels, student → a folder for onnxruntime (a command, not a DVC stage)."""

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from pipeline.config.params import load_section
from pipeline.config.settings import EvaluationSettings
from pipeline.evaluation.export import FACTS_FILE, export
from stages.command import folder_option, out_option, params_option, stage


@stage
@folder_option("--soft-labels", "Shards with the clean inputs; the file is checked on their test split.")
@folder_option("--student", "The student to export.")
@out_option("Folder for the ONNX file, tokenizer and configuration; an earlier export is replaced.", FACTS_FILE)
@click.option("--int8", is_flag=True, help="Also write a file with int8 weights: smaller and faster, slightly less accurate.")
@params_option
def main(soft_labels: Path, student: Path, out: Path, int8: bool, params: Path) -> None:
    """Export a student to ONNX, check its logits against torch and measure its speed on one thread."""
    facts, speeds = export(student, soft_labels, out, load_section(params, EvaluationSettings, "evaluate"), int8)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("model", no_wrap=True)
    for name in (facts.task.metric, "agreement", "difference", "size", "latency", "speed-up", "rows/s", "speed-up"):
        table.add_column(name, justify="right", no_wrap=True)
    measured = [(f"{student.name} (torch)", facts.value, "–", "–", facts.bytes)]
    measured += [(one.file, one.value, f"{one.agreement:.3f}", f"{one.difference:.1e}", one.bytes) for one in facts.files]
    for (name, value, agreement, difference, size), speed in zip(measured, speeds, strict=True):
        alone = (f"{speed.latency_ms:.2f} ms", f"{speeds[0].latency_ms / speed.latency_ms:.1f}×")
        together = (f"{speed.rows_per_s:.0f}", f"{speed.rows_per_s / speeds[0].rows_per_s:.1f}×")
        table.add_row(name, f"{value:.3f}", agreement, difference, f"{size / 1e6:.1f} MB", *alone, *together)
    Console(width=200, highlight=False, markup=False).print(table)
    click.echo(f"{facts.rows:,} test rows; accepted logit difference of {facts.files[0].file}: {facts.allowed:.1e}")
    click.echo(f"export: {out}, usage: {out / 'README.md'}")


if __name__ == "__main__":
    main()
