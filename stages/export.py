"""export: a student as a folder for onnxruntime (not a DVC stage)."""

from pathlib import Path

import click
import pandas as pd

from pipeline.config.params import Settings, load
from pipeline.config.settings import EvaluationSettings, RuntimeSettings
from pipeline.evaluation.export import FACTS_FILE, FLOAT_FILE, export
from pipeline.evaluation.page import scaled
from pipeline.store.store import open_store
from stages.command import folder_option, out_option, params_option, stage


class Needs(Settings):
    evaluate: EvaluationSettings
    runtime: RuntimeSettings


@stage
@folder_option("--soft-labels", "Output of `soft_label`; the file is checked on its test split.")
@folder_option("--student", "Output of `distill`.")
@out_option("Folder for the ONNX file, tokenizer and configuration; an earlier export is replaced.", FACTS_FILE)
@click.option("--int8", is_flag=True, help="Also write a file with int8 weights: smaller and faster, slightly less accurate.")
@params_option
def main(soft_labels: Path, student: Path, out: Path, int8: bool, params: Path) -> None:
    """Export a student to ONNX, check its logits against torch and measure its speed on one thread."""
    needs = load(params, Needs, evaluate="evaluate", runtime="runtime")
    facts, speeds = export(student, soft_labels, out, needs.evaluate, int8, open_store(needs.runtime))
    torch = {"file": f"{student.name} (torch)", "value": facts["value"], "bytes": facts["bytes"]}
    table = pd.DataFrame([torch, *facts["files"]]).join(pd.DataFrame([speed.model_dump() for speed in speeds]))
    table["bytes"] = table["bytes"].map(scaled)
    table["speed_up"] = table["latency_ms"].iloc[0] / table["latency_ms"]
    click.echo(table.to_string(index=False, na_rep="–", float_format="{:.3g}".format))
    click.echo(f"{facts['rows']:,} test rows; accepted logit difference of {FLOAT_FILE}: {facts['allowed']:.1e}")
    click.echo(f"export: {out}, usage: {out / 'README.md'}")


if __name__ == "__main__":
    main()
