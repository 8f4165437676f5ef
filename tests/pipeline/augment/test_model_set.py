import dataclasses
from pathlib import Path

import numpy as np
import pytest

from pipeline.augment.masked_lm import MaskedLMSettings
from pipeline.augment.model_set import ModelFolders, ModelSet
from pipeline.config.errors import PipelineError
from pipeline.models.folder import model_hash
from pipeline.perturbation.surrogate import MAP_FILE, SCOUT_FILE, ScoutFolder
from tests.world import MAX_LENGTH, make_inputs, make_task, save_masked_lm, save_scout, save_teacher

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
    assert found >= {
        f"scout/{name}" for name in (SCOUT_FILE, MAP_FILE, "snapshot-1/config.json", "snapshot-2/model.safetensors")
    }
    assert not [name for name in found if "checkpoint" in name]
    assert len(folders.files()) == len(found)
    assert all(file.is_file() for file in folders.files())


def test_the_files_come_in_the_same_order_each_time(folders: ModelFolders) -> None:
    assert folders.files() == folders.files()
    teacher_alone = ModelFolders(folders.teacher).files()
    assert teacher_alone == sorted(teacher_alone)


def test_models_at_another_place_are_the_same_models_there(folders: ModelFolders, tmp_path: Path) -> None:
    there = folders.at(lambda path: tmp_path / path.name)
    assert (there.teacher, there.scout, there.masked_lm) == tuple(tmp_path / name for name in ("teacher", "scout", "words"))
    assert there.proposing == PROPOSING


def test_what_is_not_there_is_not_made_up() -> None:
    assert ModelFolders(Path("teacher")).at(Path.resolve) == ModelFolders(Path("teacher").resolve())


def test_every_snapshot_of_the_scout_is_loaded_once(folders: ModelFolders) -> None:
    models = ModelSet(folders, "float32")
    first = models.scout(1)
    assert models.scout(1) is first
    second = models.scout(2)
    assert second is not first
    assert models.scout(2) is second
    batch = models.teacher.padded(make_inputs(), MAX_LENGTH)
    nothing = models.teacher.words(batch["input_ids"]) * 0
    assert models.scout(1) is first
    assert not first.logits_at_delta(batch, nothing).equal(second.logits_at_delta(batch, nothing))


def test_each_model_is_loaded_once_and_only_when_it_is_needed(folders: ModelFolders) -> None:
    models = ModelSet(ModelFolders(folders.teacher, *[Path("there/is/nowhere")] * 2, PROPOSING), "float32")
    assert models.teacher is models.teacher
    with pytest.raises(PipelineError, match="nowhere"):
        models.scout(1)
    with pytest.raises(PipelineError, match="nowhere"):
        _ = models.masked_lm
    ready = ModelSet(folders, "float32")
    assert ready.masked_lm is ready.masked_lm
    (row,) = ready.masked_lm.candidates([np.array([2, 9, 3], dtype=np.int32)], None)
    assert len(row.ids) == 5


def test_a_teacher_that_cannot_be_loaded_is_an_error_only_when_it_is_asked_for(tmp_path: Path) -> None:
    models = ModelSet(ModelFolders(tmp_path / "no teacher"), "float32")
    with pytest.raises(PipelineError, match="no teacher"):
        _ = models.teacher


def test_a_teacher_that_is_no_longer_the_one_of_the_keys_is_refused(folders: ModelFolders, tmp_path: Path) -> None:
    wanted = dataclasses.replace(folders, teacher_hash=model_hash(folders.teacher))
    assert ModelSet(wanted, "float32").teacher
    other = wanted.at(lambda path: save_teacher(tmp_path / "other", make_task(), seed=1) if path == folders.teacher else path)
    with pytest.raises(PipelineError, match=r"the teacher in .*other was changed while this run was going; start it again"):
        _ = ModelSet(other, "float32").teacher


def test_a_snapshot_that_is_no_longer_the_one_of_the_keys_is_refused(folders: ModelFolders) -> None:
    assert folders.scout is not None
    hashes = ScoutFolder(folders.scout).hashes()
    assert ModelSet(dataclasses.replace(folders, scout_hashes=hashes), "float32").scout(2)
    changed = ModelSet(dataclasses.replace(folders, scout_hashes=(hashes[0], "another")), "float32")
    assert changed.scout(1)
    with pytest.raises(PipelineError, match=r"the scout in .*scout was changed while this run was going; start it again"):
        changed.scout(2)


def test_a_masked_language_model_that_is_no_longer_the_one_of_the_keys_is_refused(folders: ModelFolders) -> None:
    assert folders.masked_lm is not None
    wanted = model_hash(folders.masked_lm)
    assert ModelSet(dataclasses.replace(folders, masked_lm_hash=wanted), "float32").masked_lm
    changed = ModelSet(dataclasses.replace(folders, masked_lm_hash="another"), "float32")
    with pytest.raises(
        PipelineError, match=r"the masked language model in .*words was changed while this run was going; start"
    ):
        _ = changed.masked_lm


def test_every_model_of_the_set_runs_in_the_precision_that_was_asked_for(folders: ModelFolders) -> None:
    full, half = ModelSet(folders, "float32"), ModelSet(folders, "bfloat16")
    batch = full.teacher.padded(make_inputs(), MAX_LENGTH)
    nothing = full.teacher.words(batch["input_ids"]) * 0
    answers = [models.scout(1).logits_at_delta(batch, nothing) for models in (full, half)]
    assert 0 < (answers[0] - answers[1]).abs().max() < 0.5
    answers = [models.teacher.logits_at(batch, models.teacher.words(batch["input_ids"])) for models in (full, half)]
    assert 0 < (answers[0] - answers[1]).abs().max() < 0.5
