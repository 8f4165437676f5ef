from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.distill.settings import effective
from tests.world import STUDENT, student_settings

UNSEEN = STUDENT["objective"] | {"soft": 0.0}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"start": "scratch"}, "no map carries stored perturbations to a student from scratch"),
        ({"variants": "none", "objective": UNSEEN}, "variants: none leaves nothing to learn from; set objective.hard or"),
        ({"start": {"checkpoint": 3}}, "checkpoint"),
    ],
)
def test_what_cannot_be_trained_is_rejected_with_the_reason(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        student_settings(**changes)


@pytest.mark.parametrize("changes", [{"start": "scratch", "variants": "none"}, {"variants": "all", "objective": UNSEEN}])
def test_a_student_needs_either_variants_or_clean_inputs(changes: dict[str, Any]) -> None:
    student_settings(**changes)


def test_the_weight_of_variants_has_an_effect_only_where_there_are_some() -> None:
    other = STUDENT["objective"] | {"perturbed": 0.5}
    for variants, same in (("none", True), ("all", False)):
        settings = STUDENT | {"variants": variants}
        assert (effective(settings | {"objective": other}) == effective(settings)) == same
    assert effective(STUDENT | {"variants": "none", "layers": 1}) != effective(STUDENT | {"variants": "none"})
