import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from unittest.mock import DEFAULT, Mock, patch

import psutil
import pytest
import ray
import torch
from ray.exceptions import WorkerCrashedError

from pipeline.augment import cluster
from pipeline.augment.cluster import Cluster
from pipeline.augment.jobs import Done
from pipeline.augment.teacher import ModelFolders, ModelSet
from pipeline.augment.workers import Worker
from pipeline.config.errors import PipelineError
from pipeline.config.settings import RuntimeSettings
from pipeline.store.keys import BUILD, Build
from pipeline.store.store import Store
from tests.world import RUNTIME


def runtime(workers: int | None = 2, address: str | None = None) -> RuntimeSettings:
    return RuntimeSettings.model_validate(RUNTIME | {"ray_address": address, "workers": workers, "store": "unused"})


def cluster_at(folder: Path, settings: RuntimeSettings) -> Cluster:
    return Cluster(ModelFolders(folder), "float32", Store(folder.parent / "store"), settings)


class Itself:
    """A job that is its own work."""

    def work(self) -> Self:
        return self


@dataclass(frozen=True)
class Meeting(Itself):
    """Reports where it ran; waits for another job to run, so that two workers are needed."""

    number: int
    meeting: Path

    @property
    def name(self) -> str:
        return f"meeting {self.number}"

    def __call__(self, models: ModelSet, store: Store) -> Done:
        (self.meeting / str(os.getpid())).touch()
        while len(list(self.meeting.iterdir())) < 2:
            time.sleep(0.01)
        return Done((self.number, os.getpid(), torch.get_num_threads(), models.teacher.width))


@dataclass(frozen=True)
class Deadly(Itself):
    """Kills its worker ``lives`` times and leaves a mark each time."""

    marks: Path
    lives: int

    @property
    def name(self) -> str:
        return f"deadly {self.lives}"

    def __call__(self, models: ModelSet, store: Store) -> Done:
        taken = len(list(self.marks.iterdir()))
        if taken < self.lives:
            (self.marks / str(taken)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Done("survived")


@dataclass(frozen=True)
class Failing(Itself):
    """Fails with an unexpected error."""

    name: str = "failing"

    def __call__(self, models: ModelSet, store: Store) -> Done:
        return Done(1 / 0)


@pytest.fixture(scope="module")
def running(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two real workers, shared since a start takes seconds; the teacher's folder holds a checkpoint of its training too."""
    folder = Path(shutil.copytree(teacher, tmp_path_factory.mktemp("cluster") / "teacher"))
    shutil.copytree(teacher, folder / "checkpoint-1")
    with pytest.MonkeyPatch.context() as changed, cluster_at(folder, runtime(2)) as cluster_of_two:
        changed.delenv("RAY_ADDRESS", raising=False)
        changed.setenv("CUDA_VISIBLE_DEVICES", "")
        assert [done.result for _, done in cluster_of_two.run([Deadly(tmp_path_factory.mktemp("marks"), 0)])] == ["survived"]
        yield cluster_of_two
    children = {process.name() for process in psutil.Process().children(recursive=True)}
    assert not ray.is_initialized()
    assert not {name for name in children if "ray" in name}


def test_every_job_runs_once_in_a_worker_of_one_thread_with_the_teacher(running: Cluster, tmp_path: Path) -> None:
    jobs = [Meeting(number, tmp_path) for number in range(6)]
    done = [(job, done.result) for job, done in running.run(jobs)]
    assert sorted(job.number for job, _ in done) == list(range(6))
    assert all(result[0] == job.number and result[2:] == (1, 32) for job, result in done)
    assert len({result[1] for _, result in done} - {os.getpid()}) == 2


def test_a_job_that_fails_is_named_with_the_cause(running: Cluster, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PipelineError, match=r"^failing failed: division by zero$"):
        list(running.run([Failing()]))
    assert "return Done(1 / 0)" in capfd.readouterr().err, "an unexpected error is shown with its traceback"


def test_the_job_of_a_dead_worker_is_run_again(running: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [Deadly(tmp_path, 1), Deadly(tmp_path, 0), Deadly(tmp_path, 0)]
    assert [done.result for _, done in running.run(jobs)] == ["survived"] * 3
    assert capsys.readouterr().out.count("a worker died on deadly 1; another takes it over") == 1


def test_a_job_that_kills_several_workers_fails(running: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "DEATHS_ALLOWED", 2)
    with pytest.raises(PipelineError, match=r"^deadly 9 killed 2 workers: \S"):
        list(running.run([Deadly(tmp_path, 9)]))
    assert len(list(tmp_path.iterdir())) == 2


@contextmanager
def without_ray(promised: list[Any], kept: Any = None, resources: dict[str, float] | None = None) -> Iterator[Mock]:
    """Ray replaced by mocks: the promises that are ready, and the value of each."""
    with (
        patch.multiple(ray, shutdown=DEFAULT, cluster_resources=lambda: resources or {}),
        patch.multiple(ray, wait=lambda *_, **__: (promised, []), get=Mock(side_effect=[kept] * 9)),
        patch.object(cluster, "join_ray"),
        patch.object(ray, "remote") as remote,
    ):
        yield remote


def promise_of(remote: Mock) -> Any:
    """The mock of ``Worker.look``."""
    return remote.return_value.options.return_value.remote.return_value.look.remote


def test_workers_that_cannot_start_are_an_error_with_its_cause(tmp_path: Path) -> None:
    promise = object()
    with without_ray([promise], WorkerCrashedError()) as remote, cluster_at(tmp_path / "teacher", runtime(1)) as started:
        promise_of(remote).return_value = promise
        with pytest.raises(PipelineError, match=r"^3 workers could not be started: .*died"):
            list(started.run([Failing()]))
        assert promise_of(remote).call_count == 3


def test_a_worker_with_other_sources_or_libraries_is_rejected(teacher: Path, tmp_path: Path) -> None:
    build = Build({**BUILD.sources, "pipeline.corpus.task": "changed"}, {**BUILD.libraries, "torch": "2.0.0"})
    visibility = Worker(ModelFolders(teacher), "float32", Store(tmp_path)).look({}, str(tmp_path), build)
    sentence = r"^a worker uses other sources or libraries than this process: pipeline\.corpus\.task.*torch"
    promise = object()
    with without_ray([promise], visibility) as remote, cluster_at(tmp_path / "teacher", runtime(1)) as started:
        promise_of(remote).return_value = promise
        with pytest.raises(PipelineError, match=sentence):
            list(started.run([Failing()]))


@pytest.mark.parametrize(
    ("workers", "resources", "expected"),
    [
        (None, {"CPU": 4.0}, [{"num_cpus": 1}] * 4),
        (1, {"CPU": 16.0, "GPU": 2.0}, [{"num_gpus": 1}]),
        (3, {"CPU": 16.0, "GPU": 2.0}, [{"num_gpus": 1}] * 2),
        (9, {"CPU": 64.0}, [{"num_cpus": 1}] * 7),
        (None, {}, [{"num_cpus": 1}]),
    ],
)
def test_there_is_one_worker_per_gpu_or_core_and_no_more_than_jobs(
    workers: int | None, resources: dict[str, float], expected: list[dict[str, float]], tmp_path: Path
) -> None:
    with (
        without_ray([], resources=resources) as remote,
        cluster_at(tmp_path / "teacher", runtime(workers)) as started,
        pytest.raises(PipelineError, match="no worker could be started"),
    ):
        list(started.run([Failing()] * 7))
    assert [call.kwargs for call in remote.return_value.options.call_args_list] == expected
