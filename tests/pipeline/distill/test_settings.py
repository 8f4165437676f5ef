from typing import Any

import pytest
from pydantic import ValidationError

from tests.world import student_settings


@pytest.mark.parametrize(
    ("said", "shares"),
    [("shards", (1.0, 0.0)), ("student", (0.0, 1.0)), ("none", (0.0, 0.0)), ({"shards": 0.25, "student": 0.5}, (0.25, 0.5))],
)
def test_an_adversary_is_named_or_a_mapping_of_shares(said: Any, shares: tuple[float, float]) -> None:
    found = student_settings(adversary=said).adversary
    assert (found.shards, found.student) == shares
    assert student_settings(adversary=found.model_dump()).adversary == found


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"adversary": "teacher"}, r"one of shards, student, none, or a mapping of shares"),
        ({"adversary": {"shards": -1.0, "student": 1.0}}, "greater than or equal to 0"),
        ({"start": "scratch"}, "no map carries stored perturbations to a student from scratch"),
        ({"residual": True, "adversary": "none"}, "of which this student sees none"),
        ({"optimiser": {"precision": "float16"}, "adversary": "student"}, "too small for float16; use bfloat16 or float32"),
        ({"objective": {"soft": 0.0}, "adversary": "student"}, "learnt as untouched inputs are, so objective.hard or soft"),
        (
            {"objective": {"soft": 0.0}, "adversary": "none"},
            "nobody perturbs, so objective.hard, soft or hidden",
        ),
        ({"perturbation": {"objective": "divergence"}}, r"no gradient at start: 0; set it above 0"),
        ({"start": {"checkpoint": 3}}, "checkpoint"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    usual = student_settings().model_dump()
    changes = {name: usual[name] | value if isinstance(value, dict) and name != "adversary" and isinstance(usual[name], dict)
               else value for name, value in changes.items()}  # fmt: skip
    optimiser = changes.pop("optimiser", {})
    with pytest.raises(ValidationError, match=sentence):
        student_settings(optimiser, **changes)
