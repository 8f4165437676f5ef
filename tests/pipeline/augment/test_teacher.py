import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.augment.batches import Batches
from pipeline.augment.teacher import FrozenTeacher, ModelFolders, ModelSet, Surrogate
from pipeline.augment.variants import Label, LabelledRows, VariantSpec, make_variant
from pipeline.config.errors import PipelineError
from pipeline.config.settings import Precision
from pipeline.models.folder import ModelFolder
from pipeline.perturbation.surrogate import hashes_in
from tests.world import (
    AUGMENT_SETTINGS,
    MAX_LENGTH,
    WIDTH,
    Plain,
    augment_settings,
    decoded,
    make_inputs,
    make_task,
    save_masked_lm,
    save_surrogate,
    save_teacher,
)


@pytest.fixture(scope="module")
def frozen(teacher: Path) -> FrozenTeacher:
    return FrozenTeacher(ModelFolder(teacher))


@pytest.fixture(scope="module")
def plain(teacher: Path) -> Plain:
    return Plain(teacher)


@pytest.mark.parametrize("batch_rows", [1, 3, 64])
def test_logits_are_those_of_transformers_on_each_row_alone(frozen: FrozenTeacher, plain: Plain, batch_rows: int) -> None:
    inputs = make_inputs()
    expected = plain.logits(inputs)
    assert expected.std(axis=0).min() > 0.01
    np.testing.assert_allclose(frozen.logits(inputs, Batches(), batch_rows), expected, atol=1e-5)


def test_gradients_through_bfloat16_are_float32_and_close_to_those_of_float32(teacher: Path, frozen: FrozenTeacher) -> None:
    def slope(model: FrozenTeacher) -> Tensor:
        batch = model.padded(make_inputs(), MAX_LENGTH)
        words = model.words(batch["input_ids"])
        delta = torch.zeros_like(words).requires_grad_(True)
        (gradient,) = torch.autograd.grad(model.logits_at(batch, words + delta)[:, 0].sum(), delta)
        return gradient

    halved = FrozenTeacher(ModelFolder(teacher), "bfloat16")
    full, half = slope(frozen), slope(halved)
    assert half.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(full.flatten(), half.flatten(), dim=0) > 0.98
    logits = torch.tensor(halved.logits(make_inputs(), Batches(), 64))
    assert not torch.equal(logits, logits.bfloat16().float()), "a head in bfloat16 would give no finer logits"


@pytest.mark.parametrize("mapped", [False, True])
def test_a_surrogate_adds_the_mapped_delta_to_its_own_words(
    frozen: FrozenTeacher, teacher: Path, tmp_path: Path, mapped: bool
) -> None:
    folder, inputs = save_surrogate(tmp_path, [5, 6], teacher if mapped else None), make_inputs()
    batch = frozen.padded(inputs, MAX_LENGTH)
    delta = torch.randn(len(inputs), MAX_LENGTH, WIDTH, generator=torch.Generator().manual_seed(0))
    for checkpoint in (1, 2):
        found = Surrogate(folder, checkpoint, "float32").logits_at_delta(batch, delta)
        plain, linear = Plain(folder.checkpoint(checkpoint)), folder.map()
        for row, length in enumerate(inputs.lengths()):
            moved = delta[row, :length] if linear is None else delta[row, :length] @ linear
            np.testing.assert_allclose(found[row], plain.logits_on(inputs, row, moved.numpy()), atol=1e-5)


@pytest.mark.parametrize(("mapped", "precision"), [(False, "float32"), (True, "bfloat16")])
def test_delta_follows_a_checkpoints_gradient_and_is_labelled_by_the_teacher(
    teacher: Path, tmp_path: Path, mapped: bool, precision: Precision
) -> None:
    folder, inputs = save_surrogate(tmp_path, [5, 6], teacher if mapped else None), make_inputs()
    models = ModelSet(ModelFolders(teacher, tmp_path), precision)
    clean = models.teacher.logits(inputs, Batches(), 8)
    settings = augment_settings(perturbation={"num_steps": 3, "step_size": 0.5}, codec="float16", precision=precision)

    def following(checkpoint: int | None) -> list[Label]:
        return make_variant(models, LabelledRows(inputs, clean), None, VariantSpec(1, settings, 0.2, checkpoint)).labels

    def gap(labels: list[Label], checkpoint: int) -> float:
        """KL(teacher on the clean row ‖ checkpoint on the perturbed row), mean."""
        surrogate, linear = Plain(folder.checkpoint(checkpoint)), folder.map()
        moved = [
            decoded(label, "float16") if linear is None else decoded(label, "float16") @ linear.numpy() for label in labels
        ]
        after = np.stack([surrogate.logits_on(inputs, row, delta) for row, delta in enumerate(moved)])
        here, before = (torch.tensor(logits).log_softmax(-1) for logits in (after, clean))
        return float(torch.nn.functional.kl_div(here, before, log_target=True, reduction="batchmean"))

    labels = {checkpoint: following(checkpoint) for checkpoint in (None, 1, 2)}
    assert gap(labels[1], 1) > 1.1 * max(gap(labels[None], 1), gap(labels[2], 1))
    assert gap(labels[2], 2) > 1.1 * max(gap(labels[None], 2), gap(labels[1], 2))
    own = Plain(teacher)
    for row, label in enumerate(labels[1]):
        expected = own.logits_on(inputs, row, decoded(label, "float16"))
        np.testing.assert_allclose(label.logits, expected, atol=1e-5 if precision == "float32" else 0.2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> ModelFolders:
    """Teacher and masked language model with checkpoints of their trainings, and a surrogate with a map."""
    place = tmp_path_factory.mktemp("models")
    for left in (save_teacher(place / "teacher", make_task()), save_masked_lm(place / "masked_lm")):
        save_teacher(left / "checkpoint-10", make_task())
    save_surrogate(place / "surrogate", [1, 2], teacher)
    return ModelFolders(place / "teacher", place / "surrogate", place / "masked_lm", AUGMENT_SETTINGS)


def test_models_are_loaded_lazily_and_once(folders: ModelFolders) -> None:
    nowhere = Path("there/is/nowhere")
    models = ModelSet(ModelFolders(folders.teacher, nowhere, nowhere, AUGMENT_SETTINGS), "float32")
    assert models.teacher is models.teacher
    with pytest.raises(PipelineError, match="nowhere"):
        models.surrogates(1)
    with pytest.raises(PipelineError, match="nowhere"):
        _ = models.masked_lm
    ready = ModelSet(folders, "float32")
    assert ready.masked_lm is ready.masked_lm
    assert ready.surrogates(1) is ready.surrogates(1) is not ready.surrogates(2)
    batch = ready.teacher.padded(make_inputs(), MAX_LENGTH)
    nothing = ready.teacher.words(batch["input_ids"]) * 0
    (one,), (two,) = ready.surrogates(1), ready.surrogates(2)
    assert not one.logits_at_delta(batch, nothing).equal(two.logits_at_delta(batch, nothing))


def test_a_model_that_changed_since_its_hash_was_taken_is_rejected(folders: ModelFolders) -> None:
    assert folders.surrogate is not None
    assert folders.masked_lm is not None
    surrogate = hashes_in(folders.surrogate)
    teacher, masked_lm = (ModelFolder(folder).hash for folder in (folders.teacher, folders.masked_lm))
    hashes: dict[str, Any] = {"teacher_hash": teacher, "surrogate_hashes": surrogate, "masked_lm_hash": masked_lm}
    load: dict[str, Callable[[ModelSet], object]] = {
        "teacher_hash": lambda models: models.teacher,
        "surrogate_hashes": lambda models: models.surrogates(2),
        "masked_lm_hash": lambda models: models.masked_lm,
    }
    for name, loaded in load.items():
        assert loaded(ModelSet(dataclasses.replace(folders, **hashes), "float32"))
        changed = hashes | {name: (surrogate[0], "another") if name == "surrogate_hashes" else "another"}
        with pytest.raises(PipelineError, match=r"^the .* in .* was changed during this run; start it again$"):
            loaded(ModelSet(dataclasses.replace(folders, **changed), "float32"))
