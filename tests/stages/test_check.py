import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from stages import precision
from tests.parameters import ROOT, changed, check
from tests.world import make_task, make_tokenizer, rewrite, save_teacher


def test_the_tasks_of_the_readme_are_sound_but_for_files_that_are_not_there(write: Callable[[str, str], Path]) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    read = [yaml.safe_load(block) for block in blocks if "kind:" in block]
    assert read
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    for block in read:
        content["tasks"] |= block.get("tasks") or block
    status, text = check(write("params.yaml", yaml.safe_dump(content)))
    assert [line for line in text.splitlines() if line.startswith("  - ") and "there is no such folder" not in line] == []
    assert status == 0 or "there is no such folder" in text


def test_every_error_is_listed_at_once(write: Callable[[str, str], Path]) -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["teach"]["batch_size"] = "32"
    content["perturbation"]["epsilon"] = {"flips": 0.1, "divergence": 0.2}
    content["students"]["half"]["layer"] = 3
    content["students"]["Big-One"] = {}
    content["tasks"]["other"] = content["tasks"]["movies"] | {"metric": "pearson"}
    content["tasks"]["movies"] = copy.deepcopy(content["tasks"]["movies"])
    content["tasks"]["movies"]["teacher"].pop("model")
    content["runtimes"] = {}
    content["students"][1] = {"num_hidden_layers": 2}
    content["tasks"]["third"] = {}
    content["runtime"]["report_to"] = ["tensorbord"]
    content["tickets"] = content["tasks"]["movies"]
    status, text = check(write("params.yaml", yaml.safe_dump(content)))
    assert status == 1
    for sentence in (
        "runtimes is not a known section\n",
        "tickets is not a known section; a task belongs below tasks, indented",
        "teach.batch_size: input should be a valid integer, not '32' (write it without quotes)",
        "perturbation.epsilon: input should be a valid number; or flips is not a setting known here, not {",
        "students.half.layer is not a setting known here (value: 3)",
        "students.Big-One: a name consists of a-z, 0-9 and _",
        "tasks.movies.teacher.model is missing",
        "tasks.other: metric: classification has the metrics accuracy, f1, macro_f1, mcc",
        "students.1: YAML reads this name as no text; quote it",
        "tasks.third.kind is missing",
        "runtime.report_to names tensorbord, which is not installed",
    ):
        assert sentence in text, text


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that is 18 times slower in bfloat16, and no GPU."""
    monkeypatch.setattr(precision, "bfloat16_slowdown", lambda: 18.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


BFLOAT16 = "bfloat16"


@pytest.mark.parametrize(
    ("changes", "asking"),
    [
        ({}, ""),
        (
            {f"{place}.precision": BFLOAT16 for place in ("training", "teach", "inference", "distill.training")},
            "distill.training.precision, inference.precision, teach.precision, training.precision",
        ),
        ({"teach.precision": "float16"}, ""),
        ({"masked_lm.precision": BFLOAT16}, "masked_lm.precision"),
        ({"students.half": {"training": {"precision": BFLOAT16}}}, "students.half.training.precision"),
    ],
)
@pytest.mark.usefixtures("slow")
def test_what_would_run_slowly_in_bfloat16_is_noted_and_no_error(
    write: Callable[[str, str], Path],
    changes: dict[str, Any],
    asking: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # where the default model is still to come, so that nothing is asked of it
    status, text = check(write("params.yaml", changed(changes)))
    notes = [line for line in text.splitlines() if "precision" in line and "float16 needs a GPU" not in line]
    wanted = f"note: {asking}: on this processor a product in bfloat16 takes 18.0 times as long as in float32"
    assert notes == ([wanted] if asking else [])
    assert status == 0, text


def test_errors_of_many_models_are_listed_at_once(write: Callable[[str, str], Path], tmp_path: Path) -> None:
    """Foreign and damaged files, odd labels and odd configurations: none hides another, and none ends in a traceback."""
    content = yaml.safe_load(changed({"students": {"half": {"num_hidden_layers": 2}}, "augment.recipes": [["mask"]]}))
    task = content["tasks"].pop("movies")
    for number, (name, (harm, _)) in enumerate(ERRORS.items()):
        folder = save_teacher(tmp_path / name, make_task(), seed=number)
        harm(folder)
        teacher = {"model": str(folder), "max_length": 16, "fine_tune": False}
        corpus = task["corpus"] | {"text": ["one", "other"], "labels": ["bad", "good"]}
        content["tasks"][name] = task | {"teacher": teacher, "corpus": corpus}
    status, text = check(write("params.yaml", yaml.safe_dump(content, sort_keys=False)))
    assert status == 1
    lines = [line for line in text.splitlines() if line.startswith("  - ")]
    assert len(lines) == len(ERRORS), text
    for line, (name, (_, sentence)) in zip(lines, ERRORS.items(), strict=True):
        assert line.startswith(f"  - tasks.{name}.teacher: "), line
        assert sentence in line, line


def with_added_tokens(folder: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<url>"])
    tokenizer.save_pretrained(folder)


ERRORS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "layers": (lambda folder: rewrite(folder / "config.json", num_hidden_layers=3), "does not load (bert.encoder.layer.3."),
    "tokens": (with_added_tokens, "that have none (<url>)"),
    "contradicting": (
        lambda folder: rewrite(folder / "config.json", label2id={"bad": 1, "good": 0}),
        "contradicts itself in its config.json",
    ),
    "pointer": (
        lambda folder: (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "tokenizer.json is a Git LFS pointer",
    ),
}
"""By task, what is done to its model and what is said of it."""
