import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.augment.batches import Batches, Inputs
from pipeline.augment.calibration import LARGEST, SMALLEST, Calibration, CalibrationJob, Found, find_radius
from pipeline.augment.jobs import Done
from pipeline.augment.teacher import ModelFolders, ModelSet
from pipeline.augment.variants import Making, Scored, make_variant
from pipeline.config.errors import PipelineError
from pipeline.store.store import Store
from tests.world import SPECIAL, WORDS, augment_settings, save_scout

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
    return calibration.find(lambda trial: [done_by(job, models).result for job in trial])


def done_by(job: CalibrationJob, models: ModelSet) -> Done:
    done = job.work().run(models, Store(Path("nowhere")))
    assert isinstance(done.result, Found)
    return done


def making_of(job: CalibrationJob) -> Making:
    return Making(1, job.settings, job.radius, job.snapshot)


EFFECTS: list[tuple[dict[str, float], float]] = [({"flips": 0.1}, 0.04), ({"flips": 0.05}, 0.03), ({"divergence": 0.05}, 0.01)]


@pytest.mark.parametrize(("effect", "tolerance"), EFFECTS)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_sample_shows_the_effect_that_was_asked_for(
    models: ModelSet, sample: Scored, norm: str, effect: dict[str, float], tolerance: float
) -> None:
    found = found_by(job_of(sample, radius=effect, norm=norm), models)
    ((name, wanted),) = effect.items()
    assert getattr(found, name) == pytest.approx(wanted, abs=tolerance)
    assert found_by(job_of(sample, radius=found.radius, norm=norm), models) == found


def test_no_radius_is_tried_twice_and_that_which_is_found_was_tried(sample: Scored) -> None:
    tried: list[float] = []

    def measure(trial: Sequence[CalibrationJob]) -> list[Found]:
        tried.append(trial[0].radius)
        return [Found(job.radius, 0.0, 3 * job.radius, len(job.scored.inputs)) for job in trial]

    found = job_of(sample, radius={"divergence": 0.25}).find(measure)
    assert found.radius in tried
    assert len(tried) == len(set(tried))


def test_what_is_measured_is_what_the_rows_say(models: ModelSet, sample: Scored) -> None:
    job = job_of(sample, radius=0.2)
    halves = [sample.take(np.arange(part, ROWS, 2)) for part in (0, 1)]
    labels = [label for half in halves for label in make_variant(models, half, None, Making(1, job.settings, 0.2, None)).labels]
    found = found_by(job, models)
    assert found.plain() == {
        "radius": 0.2,
        "flips": sum(label.flipped for label in labels) / ROWS,
        "divergence": pytest.approx(sum(label.divergence for label in labels) / ROWS),
        "rows": ROWS,
    }
    assert 0 < found.flips < 1


@pytest.mark.parametrize(("snapshots", "rows"), [(1, ROWS), (3, ROWS), (3, 2)])
def test_each_snapshot_is_tried_on_its_own_share_of_the_sample(
    models: ModelSet, sample: Scored, snapshots: int, rows: int
) -> None:
    job = job_of(sample.take(np.arange(rows)), snapshots, radius=0.2)
    trial = job.trial(0.2)
    labels = [label for part in trial for label in make_variant(models, part.scored, None, making_of(part)).labels]
    found = found_by(job, models)
    assert len(labels) == rows == found.rows
    shares = [(part.snapshot, len(part.scored.inputs)) for part in trial]
    assert {snapshot for snapshot, _ in shares} == set(range(1, min(snapshots, rows) + 1))
    assert max(count for _, count in shares) - min(count for _, count in shares) <= 1
    assert sorted(name for part in trial for name in part.scored.inputs.example_ids) == sorted(job.scored.inputs.example_ids)
    assert found.flips == pytest.approx(sum(label.flipped for label in labels) / rows)
    assert found.divergence == pytest.approx(sum(label.divergence for label in labels) / rows)
    assert found != found_by(job_of(job.scored, None, radius=0.2), models), "aimed at the teacher itself"


@pytest.mark.parametrize("snapshots", [1, 3])
def test_a_divergence_is_reached_where_perturbations_are_aimed_at_a_scouts_snapshots(
    models: ModelSet, sample: Scored, snapshots: int
) -> None:
    found = found_by(job_of(sample, snapshots, radius={"divergence": 0.05}), models)
    assert found.divergence == pytest.approx(0.05, abs=0.01)
    own = found_by(job_of(sample, radius={"divergence": 0.05}), models)
    assert found.radius > 1.1 * own.radius, "the teacher's own gradient moves it further at the same radius"


@pytest.mark.parametrize("recipes", [[["mask"], ["perturb"]], [["mask", "perturb"]]])
def test_the_radius_is_that_of_a_perturbation_alone_whatever_else_the_recipes_do(
    models: ModelSet, sample: Scored, recipes: list[list[str]]
) -> None:
    plain = found_by(job_of(sample, radius=0.2), models)
    assert found_by(job_of(sample, radius=0.2, changed={"recipes": recipes}), models) == plain
    assert plain.flips > 0


def test_memory_that_ran_out_on_the_way_is_told(models: ModelSet, sample: Scored, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "batches", Batches())
    whole = models.teacher.logits_at

    def limited(batch: Any, embeddings: Any) -> Any:
        if len(embeddings) > 32:
            raise MemoryError
        return whole(batch, embeddings)

    job, _ = job_of(sample).trial(0.2)
    expected = done_by(job, models).result
    monkeypatch.setattr(models.teacher, "logits_at", limited)
    done = done_by(job, models)
    (note,) = done.notes
    assert note.startswith("memory ran out at ")
    assert "; continuing with " in note
    assert done.result == expected
