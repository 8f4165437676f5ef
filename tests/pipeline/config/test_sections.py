from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config.sections import read_sections
from pipeline.config.settings import StudentSettings
from tests.parameters import changed


def file_with(folder: Path, changes: dict[str, Any]) -> Path:
    path = folder / "params.yaml"
    path.write_text(changed(changes))
    return path


def student(path: Path, name: str) -> StudentSettings:
    return read_sections(path)[0].students[name]


def test_a_control_is_its_student_without_variants_whatever_that_is(tmp_path: Path) -> None:
    path = file_with(tmp_path, {"students.half": {"num_hidden_layers": 2, "training": {"num_train_epochs": 7}}})
    half, control = student(path, "half"), student(path, "half_plain")
    assert half.num_hidden_layers == 2
    assert half.training.num_train_epochs == 7
    assert control == half.model_copy(update={"variant_policy": "none"})


def test_a_task_overrides_augment_and_perturbation_for_itself_alone(tmp_path: Path) -> None:
    changes = {"tasks.movies.perturbation": {"epsilon": 0.5}, "tasks.movies.augment": {"variants": 5}}
    another = yaml.safe_load(changed({}))["tasks"]["movies"]
    variants = read_sections(file_with(tmp_path, changes | {"tasks.another": another}))[0].variants
    own, others = variants["movies"], variants["another"]
    assert (own.variants, own.perturbation.epsilon, own.perturbation.norm) == (5, 0.5, "l2")
    assert (others.variants, others.perturbation.epsilon) == (3, 0.1)


@pytest.mark.parametrize(
    ("changes", "errors"),
    [
        ({"students.half_plain": {"control_of": "third"}}, ["students.half_plain.control_of: third is not one of half"]),
        ({"students.half_plain": {"control_of": "half", "depth": 0.5}}, ["students.half_plain.depth is not a setting"]),
        ({"training.learning_rate": "fast"}, ["training.learning_rate: "]),
        ({"students.half": {"training": {"seed": "a"}}}, ["students.half.training.seed: "]),
        ({"perturbation.epsilon": 0.0, "inference.batch_size": 0}, ["perturbation.epsilon: ", "inference.batch_size: "]),
        ({"students.half": {"depth": 0.5, "num_hidden_layers": 3}}, ["students.half: set only one of depth"]),
        ({"augment.recipes": [["perturb", "mask"]]}, ["augment: the recipe [perturb, mask] "]),
        ({"notes": {}}, ["notes is not a known section"]),
    ],
)
def test_every_error_is_found_at_its_place(changes: dict[str, Any], errors: list[str], tmp_path: Path) -> None:
    found = read_sections(file_with(tmp_path, changes))[1]
    assert all(any(line.startswith(error) for line in found) for error in errors), found
