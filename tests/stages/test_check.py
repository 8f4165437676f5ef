from collections.abc import Callable
from pathlib import Path

import yaml
from click.testing import CliRunner

from stages.check import main

ROOT = Path(__file__).parents[2]


def check(path: Path) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["--params", str(path)])
    return result.exit_code, result.output


def test_the_default_settings_are_sound() -> None:
    status, text = check(ROOT / "params.yaml")
    assert status == 0, text
    assert "tasks movies; students half, half_plain, narrow, tiny" in text


def test_every_fault_is_listed_at_once(write: Callable[[str, str], Path]) -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["teach"]["learning_rate"] = "2e-5"
    content["augment"]["perturbation"]["radius"] = {"flips": 0.1, "divergence": 0.2}
    content["students"]["half"]["layer"] = 3
    content["students"]["Big-One"] = {}
    content["tasks"]["movies"]["metric"] = "pearson"
    content["tasks"]["movies"]["teacher"].pop("model")
    content["runtimes"] = {}
    status, text = check(write("params.yaml", yaml.safe_dump(content)))
    assert status == 1
    for sentence in (
        "runtimes is not a section known here",
        "teach.learning_rate: input should be a valid number, not '2e-5' (text to YAML; write 2.0e-05)",
        "state one effect, flips or divergence",
        "students.half.layer is not a setting known here (value: 3)",
        "students.Big-One: a name has only a-z, 0-9 and _",
        "tasks.movies.metric: pearson does not fit classification; choose from accuracy, f1, macro_f1, mcc",
        "tasks.movies.teacher.model is missing",
    ):
        assert sentence in text, text


def test_a_students_settings_stand_over_those_of_distill(write: Callable[[str, str], Path]) -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["students"]["half"]["optimiser"] = {"epochs": 0}
    status, text = check(write("params.yaml", yaml.safe_dump(content)))
    assert status == 1
    assert "students.half.optimiser.epochs: input should be greater than or equal to 1, not 0" in text
    assert "1 fault," in text


def test_a_tasks_augment_stands_over_the_section_and_a_regression_cannot_ask_for_flips(
    write: Callable[[str, str], Path],
) -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    scores = content["tasks"]["movies"] | {"kind": "regression", "metric": "pearson"}
    scores["corpus"] = {name: value for name, value in scores["corpus"].items() if name != "labels"}
    content["tasks"]["movie_scores"] = scores
    status, text = check(write("params.yaml", yaml.safe_dump(content)))
    assert status == 1
    assert "tasks.movie_scores: the answers of a regression do not flip; give this task augment:" in text
    scores["augment"] = {"perturbation": {"radius": {"flips": None, "divergence": 0.01}}}
    status, text = check(write("params.yaml", yaml.safe_dump(content)))
    assert status == 0, text
    scores["augment"] = {"variant": 3}
    status, text = check(write("params.yaml", yaml.safe_dump(content)))
    assert "tasks.movie_scores.augment.variant is not a setting known here (value: 3)" in text
