from typing import Any

import pytest

from pipeline.distill.shares import NAMED, effective

WEIGHTS = {"soft": 1.0, "perturbed": 1.0}
STUDENT: dict[str, Any] = {"layers": 3, "variants": "all", "residual": True, "perturbation": {"steps": 3}, "objective": WEIGHTS}


@pytest.mark.parametrize(
    ("shares", "idle"),
    [
        (NAMED["shards"], {"perturbation"}),
        (NAMED["student"], {"variants", "residual"}),
        ({"shards": 0.5, "student": 0.5}, set[str]()),
        (NAMED["none"], {"perturbation", "variants", "residual"}),
    ],
)
def test_settings_of_who_does_not_perturb_have_no_effect(shares: dict[str, float], idle: set[str]) -> None:
    assert STUDENT.keys() - effective(STUDENT | {"adversary": shares}).keys() == idle


def test_what_perturbed_inputs_weigh_has_no_effect_where_there_are_none() -> None:
    assert effective(STUDENT | {"adversary": NAMED["none"]})["objective"] == {"soft": 1.0}
    assert effective(STUDENT | {"adversary": NAMED["student"]})["objective"] == WEIGHTS
