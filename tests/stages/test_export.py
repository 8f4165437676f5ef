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
def arguments(tmp_path: Path, scores: Path, task: Task) -> list[str]:
    half = save_student(tmp_path / "half", task, scores)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params("tiny")))
    out, settings = tmp_path / "out" / "half", tmp_path / "params.yaml"
    places = {"scores": scores, "student": half, "out": out, "params": settings}
    return [text for flag, place in places.items() for text in (f"--{flag}", str(place))]


def test_the_command_prints_a_line_a_file_with_how_fast_it_is_and_nothing_else(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stages.export", *arguments, "--int8"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    head, torch_line, *files, rows, last = done.stdout.splitlines()
    names = "model accuracy agreement difference size latency speed-up rows/s speed-up"
    assert head.split() == names.split()
    assert re.fullmatch(r"half \(torch\) +0\.\d{3} +– +– +0\.\d MB +\d+\.\d\d ms +1\.0× +\d+ +1\.0×", torch_line.strip())
    assert [line.split()[0] for line in files] == ["model.onnx", "model.int8.onnx"]
    pattern = r"\S+ +0\.\d{3} +[01]\.\d{3} +\d\.\de[+-]\d\d +0\.\d MB +\d+\.\d\d ms +\d+\.\d× +\d+ +\d+\.\d×"
    assert all(re.fullmatch(pattern, line.strip()) for line in files)
    assert rows.startswith("20 test rows; accepted logit difference of model.onnx: ")
    out = tmp_path / "out" / "half"
    assert last == f"export: {out}, usage: {out / 'README.md'}"
    assert (out / "README.md").exists()
    assert "\x1b" not in done.stdout
