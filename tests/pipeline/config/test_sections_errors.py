from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.parameters import MOVIES, WITH_SURROGATE, changed, check


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"students": {"half": {"training": {"num_train_epochs": 0}}}}, "students.half"),
        (WITH_SURROGATE | {"surrogate.training": {"num_train_epochs": 0}}, "surrogate"),
    ],
)
def test_the_settings_of_a_student_and_the_surrogate_override_those_of_distill_and_one_error_is_listed_once(
    write: Callable[[str, str], Path], changes: dict[str, Any], place: str
) -> None:
    status, text = check(write("params.yaml", changed(changes)))
    assert status == 1
    assert f"{place}.training.num_train_epochs: input should be greater than or equal to 1, not 0" in text
    assert "1 error," in text


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({f"{MOVIES}.kind": None}, f"{MOVIES}.kind is missing"),
        (WITH_SURROGATE | {"surrogate": None}, "surrogate is missing"),
        (WITH_SURROGATE | {"surrogate": {}}, "distill.checkpoints is missing (or surrogate.checkpoints)"),
        ({"surrogate": ["movies"]}, "surrogate: must be a mapping of names to settings, not ['movies']"),
        ({"augment.recipes": [["mask"], ["maks"]]}, "augment.recipes.1.0: input should be 'mask', 'delete', 'swap', 'span'"),
        (
            {"augment.recipes": [["perturb", "mask"]]},
            "augment: the recipe [perturb, mask] edits the text after the perturbation",
        ),
        ({"augment.recipes": [["masked_lm"]], "augment.masked_lm": {}}, "augment.masked_lm.replace is missing"),
        ({"masked_lm.fine_tune": None}, "training.fine_tune is missing (or masked_lm.fine_tune)"),
        ({"augment.recipes": ["mask", "swap"]}, "augment.recipes.0: input should be a valid list, not 'mask'"),
        ({"students": {1: {"num_hidden_layers": 2}}}, "students.1: YAML reads this name as no text; quote it"),
        (
            {f"{MOVIES}.kind": "regression", f"{MOVIES}.metric": "pearson", f"{MOVIES}.corpus.labels": ["a", "b"]},
            "tasks.movies: corpus.labels: label names belong to classification",
        ),
    ],
)
def test_what_cannot_be_read_is_a_sentence_that_names_the_place(
    write: Callable[[str, str], Path], changes: dict[str, Any], sentence: str
) -> None:
    status, text = check(write("params.yaml", changed(changes)))
    assert status == 1
    assert f"  - {sentence}" in text, text
