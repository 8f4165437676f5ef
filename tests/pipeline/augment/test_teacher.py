import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.augment.batches import Batches
from pipeline.augment.candidates import MaskedLMSettings
from pipeline.augment.teacher import FrozenTeacher, ModelFolders, ModelSet, Precision, Scout
from pipeline.augment.variants import Label, Making, Scored, make_variant
from pipeline.config.errors import PipelineError
from pipeline.models.folder import model_hash
from pipeline.perturbation.surrogate import MAP_FILE, SCOUT_FILE, ScoutFolder
from tests.world import (
    MAX_LENGTH,
    WIDTH,
    Plain,
    augment_settings,
    decoded,
    make_inputs,
    make_task,
    save_masked_lm,
    save_scout,
    save_teacher,
)


@pytest.fixture(scope="module")
def frozen(teacher: Path) -> FrozenTeacher:
    return FrozenTeacher(teacher)


@pytest.fixture(scope="module")
def plain(teacher: Path) -> Plain:
    return Plain(teacher)


@pytest.mark.parametrize("batch_rows", [1, 3, 64])
def test_logits_are_those_of_transformers_on_each_row_alone(frozen: FrozenTeacher, plain: Plain, batch_rows: int) -> None:
    inputs = make_inputs()
    expected = plain.logits(inputs)
    assert expected.std(axis=0).min() > 0.01
    np.testing.assert_allclose(frozen.logits(inputs, Batches(), batch_rows), expected, atol=1e-5)


def test_gradients_through_bfloat16_are_float32_and_point_as_those_of_float32(teacher: Path, frozen: FrozenTeacher) -> None:
    def slope(model: FrozenTeacher) -> Tensor:
        batch = model.padded(make_inputs(), MAX_LENGTH)
        words = model.words(batch["input_ids"])
        delta = torch.zeros_like(words).requires_grad_(True)
        (gradient,) = torch.autograd.grad(model.logits_at(batch, words + delta)[:, 0].sum(), delta)
        return gradient

    halved = FrozenTeacher(teacher, "bfloat16")
    full, half = slope(frozen), slope(halved)
    assert half.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(full.flatten(), half.flatten(), dim=0) > 0.98
    logits = torch.tensor(halved.logits(make_inputs(), Batches(), 64))
    assert not torch.equal(logits, logits.bfloat16().float()), "a head in bfloat16 would give no finer logits"


@pytest.mark.parametrize("mapped", [False, True])
def test_a_scout_reads_delta_through_its_own_words_and_map(
    frozen: FrozenTeacher, teacher: Path, tmp_path: Path, mapped: bool
) -> None:
    folder, inputs = save_scout(tmp_path, [5, 6], teacher if mapped else None), make_inputs()
    batch = frozen.padded(inputs, MAX_LENGTH)
    delta = torch.randn(len(inputs), MAX_LENGTH, WIDTH, generator=torch.Generator().manual_seed(0))
    for snapshot in (1, 2):
        found = Scout(folder, snapshot, "float32").logits_at_delta(batch, delta)
        plain, linear = Plain(folder.snapshot(snapshot)), folder.map()
        for row, length in enumerate(inputs.lengths()):
            moved = delta[row, :length] if linear is None else delta[row, :length] @ linear
            np.testing.assert_allclose(found[row], plain.logits_on(inputs, row, moved.numpy()), atol=1e-5)


@pytest.mark.parametrize(("mapped", "precision"), [(False, "float32"), (True, "bfloat16")])
def test_delta_aimed_at_a_scout_follows_its_gradient_and_is_labelled_by_the_teacher(
    teacher: Path, tmp_path: Path, mapped: bool, precision: Precision
) -> None:
    folder, inputs = save_scout(tmp_path, [5, 6], teacher if mapped else None), make_inputs()
    models = ModelSet(ModelFolders(teacher, tmp_path), precision)
    clean = models.teacher.logits(inputs, Batches(), 8)
    settings = augment_settings(perturbation={"steps": 3, "step_size": 0.5}, codec="float16", precision=precision)

    def aimed(snapshot: int | None) -> list[Label]:
        return make_variant(models, Scored(inputs, clean), None, Making(1, settings, 0.2, snapshot)).labels

    def gap(labels: list[Label], snapshot: int) -> float:
        """KL(teacher's untouched answer ‖ the snapshot's on the perturbed row), mean."""
        scout, linear = Plain(folder.snapshot(snapshot)), folder.map()
        moved = [
            decoded(label, "float16") if linear is None else decoded(label, "float16") @ linear.numpy() for label in labels
        ]
        after = np.stack([scout.logits_on(inputs, row, delta) for row, delta in enumerate(moved)])
        logs = [torch.tensor(logits).log_softmax(-1) for logits in (after, clean)]
        return float(torch.nn.functional.kl_div(*logs, log_target=True, reduction="batchmean"))

    labels = {snapshot: aimed(snapshot) for snapshot in (None, 1, 2)}
    assert gap(labels[1], 1) > 1.1 * max(gap(labels[None], 1), gap(labels[2], 1))
    assert gap(labels[2], 2) > 1.1 * max(gap(labels[None], 2), gap(labels[1], 2))
    own = Plain(teacher)
    for row, label in enumerate(labels[1]):
        expected = own.logits_on(inputs, row, decoded(label, "float16"))
        np.testing.assert_allclose(label.logits, expected, atol=1e-5 if precision == "float32" else 0.2)


PROPOSING = MaskedLMSettings(replace=0.4, candidates=5, batch_rows=8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> ModelFolders:
    """A teacher with what its training left below, a scout with a map, and a masked language model."""
    place = tmp_path_factory.mktemp("models")
    for left in (save_teacher(place / "teacher", make_task()), save_masked_lm(place / "words")):
        save_teacher(left / "checkpoint-10", make_task())
    save_scout(place / "scout", [1, 2], teacher)
    return ModelFolders(place / "teacher", place / "scout", place / "words", PROPOSING)


def test_a_worker_needs_the_models_themselves_all_snapshots_and_nothing_that_training_left(folders: ModelFolders) -> None:
    place = folders.teacher.parent
    found = {str(file.relative_to(place)) for file in folders.files()}
    assert found >= {"teacher/model.safetensors", "teacher/task.json", "teacher/tokenizer.json", "words/model.safetensors"}
    assert found >= {f"scout/{name}" for name in (SCOUT_FILE, MAP_FILE, "snapshot-1/config.json", "snapshot-2/config.json")}
    assert not [name for name in found if "checkpoint" in name]


def test_each_model_is_loaded_once_and_only_when_it_is_needed(folders: ModelFolders) -> None:
    models = ModelSet(ModelFolders(folders.teacher, *[Path("there/is/nowhere")] * 2, PROPOSING), "float32")
    assert models.teacher is models.teacher
    with pytest.raises(PipelineError, match="nowhere"):
        models.scout(1)
    with pytest.raises(PipelineError, match="nowhere"):
        _ = models.masked_lm
    ready = ModelSet(folders, "float32")
    assert ready.masked_lm is ready.masked_lm
    assert ready.scout(1) is ready.scout(1) is not ready.scout(2)
    batch = ready.teacher.padded(make_inputs(), MAX_LENGTH)
    nothing = ready.teacher.words(batch["input_ids"]) * 0
    assert not ready.scout(1).logits_at_delta(batch, nothing).equal(ready.scout(2).logits_at_delta(batch, nothing))


def test_a_model_that_changed_since_its_hash_was_taken_is_rejected(folders: ModelFolders) -> None:
    assert folders.scout is not None
    assert folders.masked_lm is not None
    scout = ScoutFolder(folders.scout).hashes()
    hashes = {
        "teacher_hash": model_hash(folders.teacher), "scout_hashes": scout, "masked_lm_hash": model_hash(folders.masked_lm)
    }  # fmt: skip
    load: dict[str, Callable[[ModelSet], object]] = {
        "teacher_hash": lambda models: models.teacher,
        "scout_hashes": lambda models: models.scout(2),
        "masked_lm_hash": lambda models: models.masked_lm,
    }
    for name, loaded in load.items():
        assert loaded(ModelSet(dataclasses.replace(folders, **hashes), "float32"))
        changed = hashes | {name: (scout[0], "another") if name == "scout_hashes" else "another"}
        with pytest.raises(PipelineError, match=r"^the .* in .* was changed while this run was going; start it again$"):
            loaded(ModelSet(dataclasses.replace(folders, **changed), "float32"))
