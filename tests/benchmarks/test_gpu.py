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
