import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.augment.calibration import LARGEST, SMALLEST, CalibrationJob, find_radius
from pipeline.augment.teacher import FrozenTeacher, Inputs
from pipeline.errors import PipelineError
from pipeline.perturbation import PerturbationSettings
from tests.world import SPECIAL, WORDS

ROWS = 128


@given(st.floats(math.log(SMALLEST), math.log(LARGEST)), st.sampled_from([0.5, 1.0, 2.0]))
@settings(deadline=None, max_examples=200)
def test_the_radius_of_a_known_effect_is_found_anywhere_in_the_range(place: float, power: float) -> None:
    radius = math.exp(place)
    found = find_radius(lambda tried: 3 * tried**power, 3 * radius**power)
    assert abs(math.log(found / radius)) < 0.033
    assert found == float(f"{found:.3g}")


@pytest.mark.parametrize(("effect", "edge", "there"), [(0.01, 2.0, "0.01"), (0.9, 0.002, "0.9")])
def test_an_effect_that_no_radius_has_is_refused_with_what_the_edge_has(effect: float, edge: float, there: str) -> None:
    with pytest.raises(PipelineError) as refusal:
        find_radius(lambda tried: effect, 0.25)
    assert str(refusal.value) == (
        f"no radius between 0.002 and 2.0 has the effect 0.25 on the teacher: at {edge:g} it is {there}; "
        "ask for another effect, or give the radius as a number"
    )


def test_the_teacher_is_asked_about_a_dozen_times_at_most() -> None:
    asked: list[float] = []
    find_radius(lambda tried: asked.append(tried) or tried, 0.1)  # type: ignore[func-returns-value]
    assert len(asked) <= 12


@pytest.fixture(scope="module")
def frozen(teacher: Path) -> FrozenTeacher:
    return FrozenTeacher(teacher)


@pytest.fixture(scope="module")
def sample() -> Inputs:
    generator = np.random.default_rng(3)
    words = [generator.integers(len(SPECIAL), len(SPECIAL + WORDS), generator.integers(4, 12)) for _ in range(ROWS)]
    ids = [np.array([2, *row, 3], dtype=np.int32) for row in words]
    return Inputs([f"example {i}" for i in range(ROWS)], ids, [np.zeros(len(row), dtype=np.int8) for row in ids])


def job_of(frozen: FrozenTeacher, sample: Inputs, **changed: Any) -> CalibrationJob:
    usual = {
        "objective": "divergence",
        "norm": "l2",
        "radius": 0.1,
        "steps": 1,
        "step_size": 1.0,
        "start": 0.5,
        "special_tokens": False,
    }
    return CalibrationJob(
        inputs=sample,
        clean_logits=frozen.logits(sample, 64),
        seed=1,
        settings=PerturbationSettings.model_validate(usual | changed),
        codec="int8",
        batch_rows=64,
    )


@pytest.mark.parametrize(
    ("effect", "tolerance"), [({"flips": 0.1}, 0.04), ({"flips": 0.05}, 0.03), ({"divergence": 0.05}, 0.01)]
)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_sample_shows_the_effect_that_was_asked_for(
    frozen: FrozenTeacher, sample: Inputs, norm: str, effect: dict[str, float], tolerance: float
) -> None:
    found = job_of(frozen, sample, radius=effect, norm=norm).run(frozen)
    ((name, wanted),) = effect.items()
    assert getattr(found, name) == pytest.approx(wanted, abs=tolerance)
    measured = job_of(frozen, sample, radius=found.radius, norm=norm).run(frozen)
    assert measured == found


def test_what_is_measured_is_what_the_rows_say(frozen: FrozenTeacher, sample: Inputs) -> None:
    job = job_of(frozen, sample, radius=0.2)
    rows = frozen.perturb(sample, job.clean_logits, 1, 1, 0.2, job.settings, "int8", 64)
    found = job.run(frozen)
    assert found.plain() == {
        "radius": 0.2,
        "flips": sum(row.flipped for row in rows) / ROWS,
        "divergence": pytest.approx(sum(row.divergence for row in rows) / ROWS),
        "rows": ROWS,
    }
    assert 0 < found.flips < 1


def test_a_control_that_moves_nothing_needs_no_radius(frozen: FrozenTeacher, sample: Inputs) -> None:
    found = job_of(frozen, sample, objective="none", radius={"flips": 0.1}).run(frozen)
    assert (found.radius, found.flips) == (0.0, 0.0)
    assert found.divergence == pytest.approx(0.0, abs=1e-6)
