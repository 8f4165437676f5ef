import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from pipeline.augment import cluster
from pipeline.augment.jobs import Done
from pipeline.augment.passes import augment, score
from pipeline.augment.teacher import ModelFolders, ModelSet
from pipeline.augment.workers import ThisProcess, landmark
from pipeline.config.errors import PipelineError
from pipeline.store.store import Store
from tests.world import SCORE_SETTINGS, augment_settings, runtime_at

RECIPES = [["perturb"], ["mask", "perturb"], ["mix"]]


@dataclass(frozen=True)
class Small:
    """Work that tells where it was done, or fails."""

    number: int
    error: BaseException | None = None

    @property
    def name(self) -> str:
        return f"small {self.number}"

    def work(self) -> "Small":
        return self

    def run(self, models: ModelSet, store: Store) -> Done:
        if self.error is not None:
            raise self.error
        return Done((self.number, torch.get_num_threads(), models.teacher.width))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def here(teacher: Path, store: Store) -> ThisProcess:
    return ThisProcess(ModelFolders(teacher), "float32", store)


@pytest.fixture
def three_threads() -> Iterator[None]:
    """A process that computes with three threads before it is asked to be a worker."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def test_one_and_two_workers_and_none_give_equal_bytes_and_a_second_run_starts_no_ray(
    tmp_path: Path, prepared: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    none, one, two = (tmp_path / name for name in ("none", "one", "two"))
    settings = augment_settings(variants=3, recipes=RECIPES)

    def run(folder: Path, scores: Path, workers: int) -> None:
        augment(scores, teacher, None, settings, runtime_at(folder, workers), folder / "shards")

    for folder, workers in ((none, 0), (two, 2)):
        score(prepared, teacher, SCORE_SETTINGS, runtime_at(folder, workers), folder / "scores")
        run(folder, folder / "scores", workers)
    run(one, two / "scores", 1)
    assert hashes(none / "scores") == hashes(two / "scores")
    assert hashes(none / "shards") == hashes(two / "shards") == hashes(one / "shards")
    assert hashes(none / "store") == hashes(two / "store"), "receipts too, and nothing half-written is left"

    def fail(runtime: object, cores: int) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(cluster, "join_ray", fail)
    before, count = hashes(two / "shards"), len(hashes(two / "shards")) - 1
    capsys.readouterr()
    run(two, two / "scores", 2)
    assert hashes(two / "shards") == before
    assert f"augment tiny: {count} shards, {count} in the store, 0 to compute" in capsys.readouterr().out


@pytest.mark.usefixtures("three_threads")
def test_this_process_works_on_one_thread_in_the_order_given_and_then_has_its_threads_again(
    teacher: Path, store: Store
) -> None:
    jobs = [Small(number) for number in (4, 1, 3)]
    with ThisProcess(ModelFolders(teacher), "float32", store) as workers:
        done = list(workers.run(jobs))
    assert [(job, done.result) for job, done in done] == [(job, (job.number, 1, 32)) for job in jobs]
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_this_process_has_its_threads_again_after_an_error(teacher: Path, store: Store) -> None:
    with (
        pytest.raises(PipelineError, match=r"^small 2 failed: stumbled$"),
        ThisProcess(ModelFolders(teacher), "float32", store) as workers,
    ):
        list(workers.run([Small(1), Small(2, PipelineError("stumbled"))]))
    assert torch.get_num_threads() == 3


def test_what_was_done_before_a_failure_is_given_and_nothing_after_it_is_tried(here: ThisProcess) -> None:
    done = here.run([Small(1), Small(2, ValueError("no")), Small(3, AssertionError("tried"))])
    assert next(done)[1].result[0] == 1
    with pytest.raises(PipelineError, match=r"^small 2 failed: no$") as error:
        next(done)
    assert isinstance(error.value.__cause__, ValueError)


def test_an_interruption_is_no_failure_of_a_job(here: ThisProcess) -> None:
    with pytest.raises(KeyboardInterrupt):
        list(here.run([Small(1, KeyboardInterrupt())]))


def test_a_teacher_that_cannot_be_loaded_fails_the_first_job_with_a_sentence(tmp_path: Path, store: Store) -> None:
    workers = ThisProcess(ModelFolders(tmp_path / "nowhere"), "float32", store)
    with pytest.raises(PipelineError, match=r"^small 1 failed: .*nowhere"):
        list(workers.run([Small(1)]))


def test_an_unforeseen_error_is_shown_in_full_and_a_foreseen_one_is_its_sentence(
    here: ThisProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PipelineError, match=r"^small 5 failed: 'missing'$"):
        list(here.run([Small(5, KeyError("missing"))]))
    shown = capsys.readouterr()
    assert shown.err.startswith("Traceback (most recent call last)")
    assert "KeyError: 'missing'" in shown.err
    assert __file__ in shown.err, "the line that failed"
    assert shown.out == ""
    with pytest.raises(PipelineError, match=r"^small 6 failed: foreseen$"):
        list(here.run([Small(6, PipelineError("foreseen"))]))
    assert capsys.readouterr() == ("", "")


def test_a_landmark_lies_in_the_store_and_is_gone_afterwards_also_after_an_error(store: Store) -> None:
    with landmark(store) as mark:
        assert mark.parent == store.folder
        assert mark.exists()
        with landmark(store) as other:
            assert other != mark
    assert list(store.folder.iterdir()) == []
    with pytest.raises(ZeroDivisionError), landmark(store):
        _ = 1 / 0
    assert list(store.folder.iterdir()) == []


def test_a_file_in_place_of_the_store_is_a_sentence_before_anything_is_computed(here: ThisProcess, store: Store) -> None:
    store.folder.write_text("mine")
    said = rf"^the store {store.folder} cannot be written to: .+; free some space or correct its permissions, or set runtime"
    with pytest.raises(PipelineError, match=said), landmark(store):
        raise AssertionError("there is no landmark")
    with pytest.raises(PipelineError, match=said):
        list(here.run([Small(1, AssertionError("computed"))]))
    assert store.folder.read_text() == "mine"


def test_a_full_disk_is_a_sentence_and_leaves_no_landmark(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, content: bytes) -> int:
        path.touch()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fail)
        with (
            pytest.raises(PipelineError, match=r"cannot be written to: No space left on device; free some space"),
            landmark(store),
        ):
            raise AssertionError("there is no landmark")
    assert list(store.folder.iterdir()) == []
