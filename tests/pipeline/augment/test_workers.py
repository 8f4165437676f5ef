import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from pipeline.augment import cluster
from pipeline.augment.jobs import Done
from pipeline.augment.passes import augment, score
from pipeline.augment.teacher import ModelFolders, ModelSet
from pipeline.augment.workers import ThisProcess
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


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_two_workers_and_none_give_equal_bytes_and_a_second_run_starts_no_ray(
    tmp_path: Path, prepared: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    none, two = (tmp_path / name for name in ("none", "two"))
    settings = augment_settings(variants=3, recipes=RECIPES)

    def run(folder: Path, scores: Path, workers: int) -> None:
        augment(scores, teacher, None, settings, runtime_at(folder, workers), folder / "shards")

    for folder, workers in ((none, 0), (two, 2)):
        score(prepared, teacher, SCORE_SETTINGS, runtime_at(folder, workers), folder / "scores")
        run(folder, folder / "scores", workers)
    assert hashes(none / "scores") == hashes(two / "scores")
    assert hashes(none / "shards") == hashes(two / "shards")
    assert hashes(none / "store") == hashes(two / "store"), "receipts too, and nothing half-written is left"

    def fail(runtime: object, cores: int) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(cluster, "join_ray", fail)
    run(two, two / "scores", 2)
    assert hashes(two / "shards") == hashes(none / "shards")


def test_this_process_works_on_one_thread_in_order_and_has_its_threads_again(teacher: Path, store: Store) -> None:
    before, jobs = (
        torch.get_num_threads(),
        [Small(4), Small(1), Small(3, PipelineError("stumbled")), Small(2, AssertionError("tried"))],
    )
    torch.set_num_threads(3)
    try:
        with ThisProcess(ModelFolders(teacher), "float32", store) as workers:
            found = workers.run(jobs)
            assert [next(found)[1].result for _ in range(2)] == [(4, 1, 32), (1, 1, 32)]
            with pytest.raises(PipelineError, match=r"^small 3 failed: stumbled$"):
                next(found)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_an_interruption_is_no_failure_of_a_job(here: ThisProcess) -> None:
    with pytest.raises(KeyboardInterrupt):
        list(here.run([Small(1, KeyboardInterrupt())]))


def test_an_unforeseen_error_is_shown_in_full_and_others_are_not(here: ThisProcess, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PipelineError, match=r"^small 5 failed: 'missing'$") as error:
        list(here.run([Small(5, KeyError("missing"))]))
    assert isinstance(error.value.__cause__, KeyError)
    shown = capsys.readouterr()
    assert "KeyError: 'missing'" in shown.err
    assert __file__ in shown.err, "the line that failed"
    with pytest.raises(PipelineError, match=r"^small 6 failed: foreseen$"):
        list(here.run([Small(6, PipelineError("foreseen"))]))
    assert capsys.readouterr() == ("", "")
