import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.augment.batches import Batches, Inputs
from pipeline.augment.calibration import LARGEST, SMALLEST, Calibration, Found, find_radius
from pipeline.augment.teacher import ModelFolders, ModelSet
from pipeline.augment.variants import Making, Scored, make_variant
from pipeline.config.errors import PipelineError
from pipeline.store.store import Store
from tests.world import SPECIAL, WORDS, augment_settings, save_scout

ROWS = 96


@given(st.floats(math.log(SMALLEST), math.log(LARGEST)), st.sampled_from([0.5, 1.0, 2.0]))
@settings(max_examples=200)
def test_the_radius_of_a_known_effect_is_found_anywhere_in_the_range(place: float, power: float) -> None:
    radius = math.exp(place)
    found = find_radius(lambda tried: 3 * tried**power, 3 * radius**power)
    assert abs(math.log(found / radius)) < 0.033
    assert found == float(f"{found:.3g}")


@pytest.mark.parametrize(("effect", "edge"), [(0.01, 2.0), (0.9, 0.002)])
def test_an_effect_that_no_radius_has_is_refused_with_what_the_edge_has(effect: float, edge: float) -> None:
    with pytest.raises(PipelineError, match=rf"^no radius .* has the effect 0\.25 on the teacher: at {edge:g} it is {effect};"):
        find_radius(lambda tried: effect, 0.25)


@pytest.fixture(scope="module")
def models(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelSet:
    """The tiny teacher, and a scout of three snapshots that are other models."""
    return ModelSet(ModelFolders(teacher, save_scout(tmp_path_factory.mktemp("scout"), [5, 6, 7]).folder), "float32")


@pytest.fixture(scope="module")
def sample(models: ModelSet) -> Scored:
    generator = np.random.default_rng(3)
    words = [generator.integers(len(SPECIAL), len(SPECIAL + WORDS), generator.integers(4, 12)) for _ in range(ROWS)]
    ids = [np.array([2, *row, 3], dtype=np.int32) for row in words]
    inputs = Inputs([f"example {i}" for i in range(ROWS)], ids, [np.zeros(len(row), dtype=np.int8) for row in ids])
    return Scored(inputs, models.teacher.logits(inputs, Batches(), 64))


def job_of(sample: Scored, snapshots: int | None = None, changed: dict[str, Any] | None = None, **search: Any) -> Calibration:
    return Calibration(sample, augment_settings(perturbation=search, batch_rows=64, **(changed or {})), snapshots)


def found_by(calibration: Calibration, models: ModelSet) -> Found:
    return calibration.find(lambda trial: [job.work().run(models, Store(Path("nowhere"))).result for job in trial])


@pytest.mark.parametrize(("norm", "effect", "tolerance"), [("l2", {"flips": 0.05}, 0.03), ("linf", {"divergence": 0.05}, 0.01)])
def test_the_sample_shows_the_effect(
    models: ModelSet, sample: Scored, norm: str, effect: dict[str, float], tolerance: float
) -> None:
    found = found_by(job_of(sample, radius=effect, norm=norm), models)
    ((name, wanted),) = effect.items()
    assert getattr(found, name) == pytest.approx(wanted, abs=tolerance)
    assert found_by(job_of(sample, radius=found.radius, norm=norm), models) == found


@pytest.mark.parametrize(("snapshots", "rows"), [(None, ROWS), (3, ROWS), (3, 2)])
def test_the_rows_say_what_is_measured_and_snapshots_share(
    models: ModelSet, sample: Scored, snapshots: int | None, rows: int
) -> None:
    job = job_of(sample.take(np.arange(rows)), snapshots, radius=0.2)
    trial = job.trial(0.2)
    labels = [
        label
        for part in trial
        for label in make_variant(models, part.scored, None, Making(1, part.settings, 0.2, part.snapshot)).labels
    ]
    found = found_by(job, models)
    shares = [(part.snapshot, len(part.scored.inputs)) for part in trial]
    assert {snapshot for snapshot, _ in shares} == ({None} if snapshots is None else set(range(1, min(snapshots, rows) + 1)))
    assert max(count for _, count in shares) - min(count for _, count in shares) <= 1
    assert sorted(name for part in trial for name in part.scored.inputs.example_ids) == sorted(job.scored.inputs.example_ids)
    assert (found.radius, found.rows, found.flips) == (0.2, rows, pytest.approx(np.mean([label.flipped for label in labels])))
    assert found.divergence == pytest.approx(np.mean([label.divergence for label in labels]))
    assert (found == found_by(job_of(job.scored, radius=0.2), models)) == (snapshots is None), "aimed at the teacher itself"


def test_a_divergence_is_reached_where_perturbations_are_aimed_at_a_scouts_snapshots(models: ModelSet, sample: Scored) -> None:
    found, own = (found_by(job_of(sample, snapshots, radius={"divergence": 0.05}), models) for snapshots in (3, None))
    assert found.divergence == pytest.approx(0.05, abs=0.01)
    assert found.radius > 1.1 * own.radius, "the teacher's own gradient moves it further at the same radius"


def test_the_radius_is_that_of_a_perturbation_alone_whatever_else_the_recipes_do(models: ModelSet, sample: Scored) -> None:
    plain = found_by(job_of(sample, radius=0.2), models)
    assert found_by(job_of(sample, radius=0.2, changed={"recipes": [["mask"], ["mask", "perturb"]]}), models) == plain
    assert plain.flips > 0
