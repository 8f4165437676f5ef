import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline import runtime
from pipeline.config import lookup, read_params
from tests.parameters import ROOT, changed, check


@pytest.mark.parametrize("name", ["tickets", "movie_scores"])
def test_the_tasks_of_the_readme_are_sound_but_for_files_that_are_not_there(
    write: Callable[[str, str], Path], name: str
) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (block,) = (yaml.safe_load(block) for block in blocks if f"  {name}:\n    kind:" in block)
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["tasks"][name] = (block.get("tasks") or block)[name]
    status, text = check(write("params.yaml", yaml.safe_dump(content)))
    assert [line for line in text.splitlines() if line.startswith("  - ") and "there is no such folder" not in line] == []
    assert status == 0 or "there is no such folder" in text


def test_the_default_settings_are_sound() -> None:
    status, text = check(ROOT / "params.yaml")
    assert status == 0, text
    assert "tasks movies; students half, half_plain, narrow, tiny" in text


def test_every_fault_is_listed_at_once(write: Callable[[str, str], Path]) -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["teach"]["batch_size"] = "32"
    content["augment"]["perturbation"]["radius"] = {"flips": 0.1, "divergence": 0.2}
    content["students"]["half"]["layer"] = 3
    content["students"]["Big-One"] = {}
    content["tasks"]["movies"]["metric"] = "pearson"
    content["tasks"]["movies"]["teacher"].pop("model")
    content["runtimes"] = {}
    content["tickets"] = content["tasks"]["movies"]
    status, text = check(write("params.yaml", yaml.safe_dump(content)))
    assert status == 1
    for sentence in (
        "runtimes is not a section known here\n",
        "tickets is not a section known here; a task stands below tasks, indented",
        "teach.batch_size: input should be a valid integer, not '32' (write it without quotes)",
        "state one effect, flips or divergence",
        "students.half.layer is not a setting known here (value: 3)",
        "students.Big-One: a name has only a-z, 0-9 and _",
        "tasks.movies.metric: pearson does not fit classification; choose from accuracy, f1, macro_f1, mcc",
        "tasks.movies.teacher.model is missing",
    ):
        assert sentence in text, text


def test_a_fault_of_one_entry_hides_nothing_of_the_others(write: Callable[[str, str], Path]) -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    movies = content["tasks"]["movies"]
    content["teach"]["epochs"] = 0
    content["students"] |= {1: {"layers": 2}, "half": {"layer": 3}}
    content["tasks"]["other"] = movies | {"metric": "f1", "corpus": movies["corpus"] | {"labels": ["a", "b", "c"], "dev": None}}
    content["tasks"]["third"] = {}
    content["runtime"]["log_to"] = ["tensorbord"]
    status, text = check(write("params.yaml", yaml.safe_dump(content)))
    assert status == 1
    for sentence in (
        "teach.epochs: input should be greater than or equal to 1, not 0",
        "students.1: YAML reads this name as no text",
        "students.half.layer is not a setting known here",
        "tasks.third.kind is missing",
        "tasks.other.metric: f1: it is the F1 of the second of two labels, and there are 3",
        "tasks.other.corpus.dev: the corpus has no dev split",
        "runtime.log_to names tensorbord, which is not installed",
    ):
        assert sentence in text, text


def test_what_dvc_sets_for_an_experiment_is_read_by_the_stage_and_by_check(tmp_path: Path) -> None:
    """DVC writes 2e-05 for the number, and takes the quotes off yes and no."""
    params = tmp_path / "params.yaml"
    params.write_text((ROOT / "params.yaml").read_text().replace("[negative, positive]", '["no", "yes"]'))
    command = f"{sys.executable} -m stages.check --params params.yaml"
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"check": {"cmd": command, "params": ["teach"]}}}))
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = {"PYTHONPATH": paths, "DVC_NO_ANALYTICS": "1"} | dict.fromkeys(
        ("DVC_SYSTEM_CONFIG_DIR", "DVC_GLOBAL_CONFIG_DIR"), str(tmp_path / "none")
    )
    dvc = [sys.executable, "-m", "dvc"]
    for line in (
        ["git", "init", "-q"],
        ["git", "config", "user.email", "a@b"],
        ["git", "config", "user.name", "n"],
        [*dvc, "init", "-q"],
        ["git", "add", "-A"],
        ["git", "commit", "-q", "-m", "start"],
        [*dvc, "exp", "run", "-S", "teach.learning_rate=2e-5", "check"],
    ):
        done = subprocess.run(line, cwd=tmp_path, env=os.environ | settings, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "params.yaml: tasks movies" in done.stdout
    assert not {"learning_rate: 2e-05", "- no", "- yes"} - {line.split(" #")[0].strip() for line in params.open()}
    assert lookup(read_params(params), "teach.learning_rate") == 2e-5
    assert lookup(read_params(params), "tasks.movies.corpus.labels") == ["no", "yes"]
    status, text = check(params)
    assert status == 0, text


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that is 18 times slower in bfloat16, and no GPU."""
    monkeypatch.setattr(runtime, "bfloat16_slowdown", lambda: 18.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


BFLOAT16 = "bfloat16"
ADOPTED = {"tasks.movies.teacher.fine_tune": False}
WITH_WORDS = {"augment.recipes": [["masked_lm"]], "tasks.movies.words": {"model": "org/model", "fit": True}}


@pytest.mark.parametrize(
    ("changes", "asking"),
    [
        ({}, ""),
        (
            {f"{place}.precision": BFLOAT16 for place in ("teach", "score", "augment", "distill.optimiser")},
            "score.precision, teach.precision, augment.precision, distill.optimiser.precision",
        ),
        ({"words.precision": BFLOAT16}, ""),
        (WITH_WORDS | {"words.precision": BFLOAT16}, "words.precision"),
        ({"teach.precision": BFLOAT16} | ADOPTED, ""),
        ({"augment.precision": BFLOAT16, "tasks.movies.augment": {"precision": "float32"}}, ""),
        ({"tasks.movies.augment": {"precision": BFLOAT16}}, "tasks.movies.augment.precision"),
        ({"students.tiny.optimiser": {"precision": BFLOAT16}}, "students.tiny.optimiser.precision"),
    ],
)
@pytest.mark.usefixtures("slow")
def test_what_would_run_slowly_in_bfloat16_is_noted_and_no_fault(
    write: Callable[[str, str], Path], changes: dict[str, Any], asking: str
) -> None:
    status, text = check(write("params.yaml", changed(changes)))
    notes = [line for line in text.splitlines() if "precision" in line]
    wanted = f"note: {asking}: on this processor a product in bfloat16 takes 18.0 times as long as in float32"
    assert notes == ([wanted] if asking else [])
    assert status == 0, text


@pytest.mark.usefixtures("slow")
def test_what_only_a_gpu_can_is_noted_where_there_is_none(write: Callable[[str, str], Path]) -> None:
    status, text = check(write("params.yaml", changed({"teach.precision": "float16"})))
    assert "note: teach.precision: float16 needs a GPU, and this machine has none; bfloat16 and float32 need none\n" in text
    assert status == 0
