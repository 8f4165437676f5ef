import hashlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from pipeline.augment import engine, workers
from pipeline.augment.jobs import Done
from pipeline.augment.passes import augment, soft_label
from pipeline.augment.plans import Augmentation
from pipeline.augment.teacher import ModelFolders, ModelSet
from pipeline.augment.workers import ThisProcess, put_models
from pipeline.config.errors import PipelineError
from pipeline.perturbation.surrogate import MAP_FILE, SURROGATE_FILE
from pipeline.store.keys import Key
from pipeline.store.store import Store, needed
from tests.stored import shards_in
from tests.world import INFERENCE, augment_settings, make_task, runtime_at, save_masked_lm, save_surrogate, save_teacher

RECIPES = [["perturb"], ["mask", "perturb"], ["delete"]]


@dataclass(frozen=True)
class Small:
    """A job that reports its number and threads, or fails."""

    number: int
    error: BaseException | None = None

    @property
    def name(self) -> str:
        return f"small {self.number}"

    @property
    def work(self) -> "Small":
        return self

    def prepare(self, store: Store) -> None:
        """It reads nothing."""

    def __call__(self, models: ModelSet, store: Store) -> Done:
        if self.error is not None:
            raise self.error
        return Done((self.number, torch.get_num_threads(), models.teacher.width))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def here(teacher: Path, store: Store) -> ThisProcess:
    return ThisProcess(ModelFolders(teacher), "float32", store)


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_two_workers_and_none_give_equal_bytes_and_a_second_run_starts_no_ray(
    tmp_path: Path, prepared: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    none, two = (tmp_path / name for name in ("none", "two"))
    settings = augment_settings(variants=3, recipes=RECIPES)

    def run(folder: Path, soft_labels: Path, workers: int) -> None:
        augment(Augmentation.of(soft_labels, teacher, settings), runtime_at(folder, workers), folder / "shards")

    for folder, count in ((none, 0), (two, 2)):
        soft_label(prepared, teacher, INFERENCE, runtime_at(folder, count), folder / "soft_labels")
        run(folder, folder / "soft_labels", count)
    assert hashes(none / "soft_labels") == hashes(two / "soft_labels")
    assert hashes(none / "shards") == hashes(two / "shards")
    assert hashes(none / "store") == hashes(two / "store"), "receipts too, and no partial file"

    monkeypatch.setattr(engine, "join_ray", lambda cores: pytest.fail("Ray was started"))
    run(two, two / "soft_labels", 2)
    assert hashes(two / "shards") == hashes(none / "shards")


def test_this_process_runs_jobs_in_order_on_one_thread_and_restores_its_threads(teacher: Path, store: Store) -> None:
    before = torch.get_num_threads()
    jobs = [Small(4), Small(1), Small(3, PipelineError("stumbled")), Small(2, AssertionError("tried"))]
    torch.set_num_threads(3)
    try:
        with closing(ThisProcess(ModelFolders(teacher), "float32", store)) as workers:
            found = workers.run(jobs)
            assert [next(found)[1].result for _ in range(2)] == [(4, 1, 32), (1, 1, 32)]
            with pytest.raises(PipelineError, match=r"^small 3 failed: stumbled$"):
                next(found)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_an_interrupt_is_not_a_failed_job(here: ThisProcess) -> None:
    with pytest.raises(KeyboardInterrupt):
        list(here.run([Small(1, KeyboardInterrupt())]))


def test_only_an_unexpected_error_is_printed_with_its_traceback(here: ThisProcess, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PipelineError, match=r"^small 5 failed: 'missing'$") as error:
        list(here.run([Small(5, KeyError("missing"))]))
    assert isinstance(error.value.__cause__, KeyError)
    shown = capsys.readouterr()
    assert "KeyError: 'missing'" in shown.err
    assert __file__ in shown.err, "the line that failed"
    with pytest.raises(PipelineError, match=r"^small 6 failed: expected$"):
        list(here.run([Small(6, PipelineError("expected"))]))
    assert capsys.readouterr() == ("", "")


def test_models_go_into_the_store_without_checkpoints_of_their_trainings_or_bytes_twice(store: Store, tmp_path: Path) -> None:
    for folder in (save_teacher(tmp_path / "teacher", make_task()), save_masked_lm(tmp_path / "masked_lm")):
        save_teacher(folder / "checkpoint-10", make_task())
    save_surrogate(tmp_path / "surrogate", [1, 2], tmp_path / "teacher")
    folders = ModelFolders(tmp_path / "teacher", tmp_path / "surrogate", tmp_path / "masked_lm", augment_settings())
    entries = {name: needed(store, key, name) for name, key in put_models(folders, store).items()}
    files = {name: set(entry.files) for name, entry in entries.items()}
    assert files["teacher"] >= {"model.safetensors", "task.json", "tokenizer.json"}
    assert not [file for file in files["teacher"] | files["masked_lm"] if "checkpoint" in file]
    assert files["surrogate"] >= {
        f"1/{name}" for name in (SURROGATE_FILE, MAP_FILE, "surrogate-1/config.json", "surrogate-2/model.safetensors")
    }
    assert (entries["teacher"].folder / "model.safetensors").samefile(tmp_path / "teacher" / "model.safetensors")


def in_place(teacher: Path) -> None:
    weights = teacher / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\1\1")


@pytest.mark.parametrize("change", [in_place, lambda teacher: save_teacher(teacher, make_task(), seed=9)])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_teacher_that_changes_during_a_run_labels_nothing_under_the_old_key(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, change: Callable[[Path], object]
) -> None:
    """Before or after it is put into the store, but after the keys were made."""
    teacher, put = save_teacher(tmp_path / "teacher", make_task()), workers.put_models

    def changing(folders: ModelFolders, store: Store) -> dict[str, Key]:
        stored = put(folders, store) if when == "after" else None
        change(teacher)
        return stored or put(folders, store)

    soft_label(prepared, teacher, INFERENCE, runtime_at(tmp_path / "before"), tmp_path / "before" / "soft_labels")
    monkeypatch.setattr(workers, "put_models", changing)
    if when == "after" and change is not in_place:  # the store keeps the file that was replaced
        soft_label(prepared, teacher, INFERENCE, runtime_at(tmp_path), tmp_path / "soft_labels")
        assert hashes(tmp_path / "soft_labels") == hashes(tmp_path / "before" / "soft_labels")
        return
    with pytest.raises(PipelineError, match=rf"the (teacher in|model of) {teacher} "):
        soft_label(prepared, teacher, INFERENCE, runtime_at(tmp_path), tmp_path / "soft_labels")
    assert shards_in(tmp_path / "store") == []


def test_errors_name_the_folder_of_a_model_and_not_its_copy_in_the_store(prepared: Path, tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher", make_task())
    (teacher / "tokenizer.json").write_text("{}")
    here = ThisProcess(ModelFolders(teacher), "float32", Store(tmp_path / "store"))
    with pytest.raises(PipelineError, match=rf"^small 1 failed: no tokenizer can be loaded from {teacher}: "):
        list(here.run([Small(1)]))


def test_soft_labels_that_the_store_lacks_are_read_from_their_folder(
    made: tuple[Path, Path], teacher: Path, tmp_path: Path
) -> None:
    """As after ``dvc pull``."""
    augment(Augmentation.of(made[0], teacher, augment_settings()), runtime_at(tmp_path), tmp_path / "shards")
    assert hashes(tmp_path / "shards") == hashes(made[1])
