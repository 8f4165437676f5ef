from typing import Any

import pytest
from pydantic import ValidationError

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
