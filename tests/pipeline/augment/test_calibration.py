import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.augment.batches import Batches, Inputs
from pipeline.augment.calibration import LARGEST, SMALLEST, Calibration, CalibrationJob, Found, find_epsilon
from pipeline.augment.plans import Augmentation
from pipeline.augment.teacher import ModelFolders, ModelSet
from pipeline.augment.variants import LabelledRows, make_variant
from pipeline.config.errors import PipelineError
from pipeline.shards.codec import CODECS, dequantise
from pipeline.store.store import Store
from tests.world import SPECIAL, WORDS, augment_settings, save_surrogate

ROWS = 96


@given(st.floats(math.log(SMALLEST), math.log(LARGEST)), st.sampled_from([0.5, 1.0, 2.0]))
@settings(max_examples=200)
def test_the_epsilon_of_a_known_effect_is_found_anywhere_in_the_range(place: float, power: float) -> None:
    epsilon = math.exp(place)
    found = find_epsilon(lambda tried: 3 * tried**power, 3 * epsilon**power)
    assert abs(math.log(found / epsilon)) < 0.12
    assert found == float(f"{found:.3g}")


@pytest.mark.parametrize(("effect", "edge"), [(0.01, 2.0), (0.9, 0.002)])
def test_an_effect_that_no_epsilon_has_is_rejected_with_the_effect_at_the_edge(effect: float, edge: float) -> None:
    with pytest.raises(PipelineError, match=rf"^no epsilon .* raises the divergence by 0\.25 \(at {edge:g}: {effect}\);"):
        find_epsilon(lambda tried: effect, 0.25)


@pytest.fixture(scope="module")
def models(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelSet:
    """The tiny teacher, and a surrogate with three checkpoints, each another model."""
    return ModelSet(
        ModelFolders(teacher, save_surrogate(tmp_path_factory.mktemp("surrogate"), [5, 6, 7]).folder.parent), "float32"
    )


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


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("checkpoints", [0, 3])
def test_the_epsilon_found_has_the_wanted_effect_on_the_sample(
    models: ModelSet, sample: LabelledRows, norm: str, checkpoints: int
) -> None:
    found = found_by(job_of(sample, checkpoints, epsilon={"divergence": 0.05}, norm=norm), models)
    assert found.divergence == pytest.approx(0.05, abs=0.012)
    assert found_by(job_of(sample, checkpoints, epsilon=found.epsilon, norm=norm), models) == found


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
    found = found_by(job, models)
    assert (found.epsilon, found.rows) == (0.2, rows)
    assert found.divergence == pytest.approx(np.mean([growth for part in trial for growth in growths(models, part)]), abs=1e-5)
    assert (found == found_by(job_of(job.labelled, epsilon=0.2), models)) == (not checkpoints)


def growths(models: ModelSet, part: CalibrationJob) -> list[float]:
    """KL(teacher's clean output ‖ followed model's output at the stored δ) less that at δ = 0, row by row in float64."""
    made = make_variant(models, part.labelled, None, part.spec)
    (followed,) = [models.teacher] if part.spec.checkpoint is None else models.surrogates(part.spec.checkpoint)
    found = []
    for row, label in enumerate(made.labels):
        alone = part.labelled.take(np.array([row]))
        batch = models.teacher.padded(alone.inputs, len(alone.inputs.input_ids[0]))
        words = followed.words(batch["input_ids"])
        assert label.delta is not None
        assert label.delta_scale is not None
        codes = CODECS[part.spec.settings.codec].unpack(label.delta, models.teacher.width)
        delta = dequantise(torch.from_numpy(codes.copy()), torch.tensor(label.delta_scale))[None]
        teacher = torch.from_numpy(alone.logits).double().softmax(-1)
        after, before = (
            (teacher * (teacher.log() - followed.logits_at(batch, words + at).double().log_softmax(-1))).sum()
            for at in (delta, torch.zeros_like(delta))
        )
        found.append(float(after - before))
    return found


def test_the_teachers_gradient_raises_the_teachers_divergence_from_its_clean_output(
    models: ModelSet, sample: LabelledRows
) -> None:
    job = job_of(sample, epsilon=0.2)
    stored = [
        label.divergence for part in job.trial(0.2) for label in make_variant(models, part.labelled, None, part.spec).labels
    ]
    assert found_by(job, models).divergence == pytest.approx(np.mean(stored), rel=1e-3)


def test_the_calibration_does_not_depend_on_the_other_recipes(soft_labels: Path, teacher: Path) -> None:
    recipes = ([["perturb"]], [["mask"], ["mask", "perturb"]])
    plans = [Augmentation.of(soft_labels, teacher, augment_settings(recipes=some)) for some in recipes]
    (key, alone), (other_key, among) = (plan.calibration for plan in plans)
    assert (key, alone.settings) == (other_key, among.settings)
