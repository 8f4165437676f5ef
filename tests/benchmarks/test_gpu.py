import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import gpu


def test_a_trial_on_the_processor_prints_and_writes_every_figure(tmp_path: Path) -> None:
    target = tmp_path / "gpu.json"
    arguments = ["--size", "tiny", "--precision", "float32", "--rows", "32", "--tokens", "16", "--batch-rows", "8", "--json"]
    result = CliRunner().invoke(gpu.main, [*arguments, str(target)])
    assert result.exit_code == 0, result.output
    figures = json.loads(target.read_text())
    assert all(key in result.output for key in figures)
    assert figures["stage_rows_per_second"] == pytest.approx(
        figures["loop_rows_per_second"] * figures["stage_over_loop"], rel=1e-3
    )
    assert 0 < figures["loop_utilisation"] < 2


def test_the_products_of_a_row_are_those_of_a_forward_a_backward_and_a_forward() -> None:
    hidden, layers, _, inner, _ = gpu.SIZES["base"]
    weights = layers * (4 * hidden * hidden + 2 * hidden * inner)
    assert weights == pytest.approx(85e6, rel=0.01), "BERT-base without its embeddings"
    attention = layers * 2 * (2 * 128 * 128 * hidden)
    assert gpu.flops_a_row("base", 128) == pytest.approx(3 * (2 * weights * 128 + attention))
