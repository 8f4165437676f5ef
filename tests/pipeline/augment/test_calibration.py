import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.augment.batches import Batches, Inputs
from pipeline.augment.calibration import LARGEST, SMALLEST, Calibration, Found, find_epsilon
from pipeline.augment.plans import Augmentation
from pipeline.augment.teacher import ModelFolders, ModelSet
from pipeline.augment.variants import LabelledRows, make_variant
from pipeline.config.errors import PipelineError
from pipeline.store.store import Store
from tests.world import SPECIAL, WORDS, augment_settings, save_surrogate

ROWS = 96


@given(st.floats(math.log(SMALLEST), math.log(LARGEST)), st.sampled_from([0.5, 1.0, 2.0]))
@settings(max_examples=200)
def test_the_epsilon_of_a_known_effect_is_found_anywhere_in_the_range(place: float, power: float) -> None:
    epsilon = math.exp(place)
    found = find_epsilon(lambda tried: 3 * tried**power, 3 * epsilon**power)
    assert abs(math.log(found / epsilon)) < 0.033
    assert found == float(f"{found:.3g}")


@pytest.mark.parametrize(("effect", "edge"), [(0.01, 2.0), (0.9, 0.002)])
def test_an_effect_that_no_epsilon_has_is_rejected_with_the_effect_at_the_edge(effect: float, edge: float) -> None:
    with pytest.raises(PipelineError, match=rf"^no epsilon .* has the effect 0\.25 on the teacher \(at {edge:g}: {effect}\);"):
        find_epsilon(lambda tried: effect, 0.25)


@pytest.fixture(scope="module")
def models(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelSet:
    """The tiny teacher, and a surrogate with three checkpoints, each another model."""
    return ModelSet(ModelFolders(teacher, save_surrogate(tmp_path_factory.mktemp("surrogate"), [5, 6, 7]).folder), "float32")


@pytest.fixture(scope="module")
def sample(models: ModelSet) -> LabelledRows:
    generator = np.random.default_rng(3)
    words = [generator.integers(len(SPECIAL), len(SPECIAL + WORDS), generator.integers(4, 12)) for _ in range(ROWS)]
    ids = [np.array([2, *row, 3], dtype=np.int32) for row in words]
    inputs = Inputs([f"example {i}" for i in range(ROWS)], ids, [np.zeros(len(row), dtype=np.int8) for row in ids])
    return LabelledRows(inputs, models.teacher.logits(inputs, Batches(), 64))


def job_of(sample: LabelledRows, checkpoints: int = 0, **search: Any) -> Calibration:
    return Calibration(sample, augment_settings(perturbation=search, batch_size=64), checkpoints)


def found_by(calibration: Calibration, models: ModelSet) -> Found:
    return calibration.find(lambda trial: [job.work(models, Store(Path("nowhere"))).result for job in trial])


@pytest.mark.parametrize(("norm", "effect", "tolerance"), [("l2", {"flips": 0.05}, 0.03), ("linf", {"divergence": 0.05}, 0.01)])
def test_the_epsilon_found_has_the_wanted_effect_on_the_sample(
    models: ModelSet, sample: LabelledRows, norm: str, effect: dict[str, float], tolerance: float
) -> None:
    found = found_by(job_of(sample, epsilon=effect, norm=norm), models)
    ((name, wanted),) = effect.items()
    assert getattr(found, name) == pytest.approx(wanted, abs=tolerance)
    assert found_by(job_of(sample, epsilon=found.epsilon, norm=norm), models) == found


@pytest.mark.parametrize(("checkpoints", "rows"), [(0, ROWS), (3, ROWS - 1), (3, 2)])
def test_checkpoints_share_the_sample_and_the_effect_is_the_mean_of_its_rows(
    models: ModelSet, sample: LabelledRows, checkpoints: int, rows: int
) -> None:
    job = job_of(sample.take(np.arange(rows)), checkpoints, epsilon=0.2)
    trial = job.trial(0.2)
    assert {part.spec.checkpoint for part in trial} == {*range(1, min(checkpoints, rows) + 1)} or not checkpoints
    shares = [len(part.labelled.inputs) for part in trial]
    assert max(shares) - min(shares) <= 1
    names = [name for part in trial for name in part.labelled.inputs.example_ids]
    assert sorted(names) == sorted(job.labelled.inputs.example_ids)
    labels = [label for part in trial for label in make_variant(models, part.labelled, None, part.spec).labels]
    found = found_by(job, models)
    assert (found.epsilon, found.rows) == (0.2, rows)
    assert found.flips == pytest.approx(np.mean([label.flipped for label in labels]))
    assert found.divergence == pytest.approx(np.mean([label.divergence for label in labels]))
    assert (found == found_by(job_of(job.labelled, epsilon=0.2), models)) == (not checkpoints)


def test_a_divergence_is_reached_with_the_gradients_of_a_surrogates_checkpoints(models: ModelSet, sample: LabelledRows) -> None:
    found, own = (found_by(job_of(sample, checkpoints, epsilon={"divergence": 0.05}), models) for checkpoints in (3, 0))
    assert found.divergence == pytest.approx(0.05, abs=0.01)
    assert found.epsilon > 1.1 * own.epsilon, "the teacher's own gradient has more effect at the same epsilon"


def test_the_calibration_does_not_depend_on_the_other_recipes(soft_labels: Path, teacher: Path) -> None:
    recipes = ([["perturb"]], [["mask"], ["mask", "perturb"]])
    plans = [Augmentation.of(soft_labels, teacher, augment_settings(recipes=some)) for some in recipes]
    (key, alone), (other_key, among) = (plan.calibration for plan in plans)
    assert (key, alone.settings) == (other_key, among.settings)
