from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.parameters import MOVIES, SCOUTED, changed, check


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"students": {"half": {"optimiser": {"num_train_epochs": 0}}}}, "students.half"),
        (SCOUTED | {"scout.optimiser": {"num_train_epochs": 0}}, "scout"),
    ],
)
def test_the_settings_of_a_student_and_the_scout_override_those_of_distill_and_one_fault_is_told_once(
    write: Callable[[str, str], Path], changes: dict[str, Any], place: str
) -> None:
    status, text = check(write("params.yaml", changed(changes)))
    assert status == 1
    assert f"{place}.optimiser.num_train_epochs: input should be greater than or equal to 1, not 0" in text
    assert "1 fault," in text


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({f"{MOVIES}.aim": None}, f"{MOVIES}.aim is missing"),
        (SCOUTED | {"scout": None}, "scout is missing"),
        (SCOUTED | {"scout": {}}, "distill.snapshots is missing (or scout.snapshots)"),
        ({"scout": ["movies"]}, "scout: must be a mapping of names to settings, not ['movies']"),
        ({"augment.recipes": [["mask"], ["maks"]]}, "augment.recipes.1.0: input should be 'mask', 'delete', 'swap', 'span'"),
        ({"augment.recipes": [["perturb", "mask"]]}, "augment: the recipe [perturb, mask] edits the text after it was"),
        ({"augment.recipes": [["masked_lm"]], "augment.masked_lm": {}}, "augment.masked_lm.replace is missing"),
        ({f"{MOVIES}.words": {"model": "data/raw/words"}}, "tasks.movies.words.fit is missing"),
        ({"augment.recipes": ["mask", "swap"]}, "augment.recipes: a recipe is a list of steps, and there may be several"),
        ({"students": {1: {"layers": 2}}}, "students.1: YAML reads this name as no text; write it in quotes"),
        (
            {f"{MOVIES}.kind": "regression", f"{MOVIES}.metric": "pearson", f"{MOVIES}.corpus.labels": ["a", "b"]},
            "tasks.movies.corpus.labels: label names belong to classification",
        ),
    ],
)
def test_what_cannot_be_read_is_a_sentence_that_names_the_place(
    write: Callable[[str, str], Path], changes: dict[str, Any], sentence: str
) -> None:
    status, text = check(write("params.yaml", changed(changes)))
    assert status == 1
    assert f"  - {sentence}" in text, text
