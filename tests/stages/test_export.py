import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.corpus.task import Task
from tests.fake_run import params
from tests.world import save_student


@pytest.fixture
def arguments(tmp_path: Path, soft_labels: Path, task: Task) -> list[str]:
    half = save_student(tmp_path / "half", task, soft_labels)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params("tiny")))
    out, settings = tmp_path / "out" / "half", tmp_path / "params.yaml"
    places = {"soft-labels": soft_labels, "student": half, "out": out, "params": settings}
    return [text for flag, place in places.items() for text in (f"--{flag}", str(place))]


def test_the_command_prints_a_line_a_file_with_how_fast_it_is_and_nothing_else(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stages.export", *arguments, "--int8"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    head, *files, rows, last = done.stdout.splitlines()
    assert head.split() == ["file", "value", "bytes", "agreement", "difference", "latency_ms", "rows_per_s", "speed_up"]
    assert [line.split()[0] for line in files] == ["half", "model.onnx", "model.int8.onnx"]
    assert re.search(r" – +– .* 1$", files[0].rstrip()), "torch agrees with itself and has speed-up 1"
    assert rows.startswith("20 test rows; accepted logit difference of model.onnx: ")
    out = tmp_path / "out" / "half"
    assert last == f"export: {out}, usage: {out / 'README.md'}"
    assert (out / "README.md").exists()
    assert "\x1b" not in done.stdout
