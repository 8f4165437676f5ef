import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.parameters import ROOT, check


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
