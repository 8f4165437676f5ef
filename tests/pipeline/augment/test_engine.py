import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self
from unittest.mock import DEFAULT, Mock, patch

import pytest
import ray
import torch

from pipeline.augment import engine
from pipeline.augment.engine import TRIES, RayActors
from pipeline.augment.jobs import Done
from pipeline.augment.teacher import ModelFolders, ModelSet
from pipeline.config.errors import PipelineError
from pipeline.store.files import PARTIAL
from pipeline.store.keys import BUILD, Build
from pipeline.store.store import Store
from tests.running import NODE, nodes
from tests.world import runtime_at

SECONDS = 60.0


def until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


def actors_at(teacher: Path, folder: Path, workers: int | None) -> RayActors:
    runtime = runtime_at(folder).model_copy(update={"workers": workers})
    return RayActors(ModelFolders(teacher), "float32", Store(folder / "store"), runtime)


class Itself:
    """A job that is its own work and reads nothing."""

    @property
    def work(self) -> Self:
        return self

    def prepare(self, store: Store) -> None: ...


@dataclass(frozen=True)
class Meeting(Itself):
    """Reports where it ran; waits until that many processes have run such a job."""

    number: int
    marks: Path
    processes: int = 2

    @property
    def name(self) -> str:
        return f"meeting {self.number}"

    def __call__(self, models: ModelSet, store: Store) -> Done:
        (self.marks / f"process {os.getpid()}").touch()
        until(lambda: len(list(self.marks.glob("process *"))) >= self.processes)
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
        taken = len(list(self.marks.glob("death *")))
        if taken < self.lives:
            (self.marks / f"death {taken}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Done("survived")


@dataclass(frozen=True)
class Failing(Itself):
    """Fails with an unexpected error."""

    name: str = "failing"

    def __call__(self, models: ModelSet, store: Store) -> Done:
        return Done(1 / 0)


@dataclass(frozen=True)
class Waiting(Itself):
    """Leaves a mark, waits for a file and reports its node."""

    number: int
    marks: Path

    @property
    def name(self) -> str:
        return f"waiting {self.number}"

    def __call__(self, models: ModelSet, store: Store) -> Done:
        node = ray.get_runtime_context().get_node_id()
        (self.marks / f"job {self.number} on {node}").touch()
        until((self.marks / "go").exists)
        return Done(node)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes with a place for one worker each."""
    with nodes(2) as made, pytest.MonkeyPatch.context() as changed:
        changed.setenv("RAY_ADDRESS", made.address)
        yield made


@pytest.fixture(scope="module")
def running(cluster: Any, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayActors]:
    """Two real workers, shared since a start takes seconds."""
    with closing(actors_at(teacher, tmp_path_factory.mktemp("engine"), None)) as two:
        assert [done.result for _, done in two.run([Deadly(tmp_path_factory.mktemp("marks"), 0)])] == ["survived"]
        yield two
    assert not ray.is_initialized()


def test_every_job_runs_once_and_workers_stay_for_the_next_jobs(running: RayActors, tmp_path: Path) -> None:
    processes = []
    for _ in range(3):
        done = [(job, done.result) for job, done in running.run([Meeting(number, tmp_path) for number in range(6)])]
        assert sorted(job.number for job, _ in done) == list(range(6))
        assert all(result[0] == job.number and result[2:] == (1, 32) for job, result in done), "one thread, the teacher"
        processes.append({result[1] for _, result in done})
    assert len(processes[0]) == 2
    assert os.getpid() not in processes[0]
    assert set.union(*processes) == processes[0]


def test_a_job_that_fails_is_named_with_the_cause(running: RayActors, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PipelineError, match=r"^failing failed: division by zero$"):
        list(running.run([Failing()]))
    assert "return Done(1 / 0)" in capfd.readouterr().err, "an unexpected error is shown with its traceback"


def test_the_job_of_a_killed_worker_is_run_again(
    running: RayActors, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [Deadly(tmp_path, 1), Deadly(tmp_path, 0), Deadly(tmp_path, 0)]
    assert [done.result for _, done in running.run(jobs)] == ["survived"] * 3
    assert capsys.readouterr().out.count("deadly 1: its worker was lost; another one runs it\n") == 1


def test_a_job_that_kills_every_worker_fails_by_its_name_and_others_are_finished(running: RayActors, tmp_path: Path) -> None:
    jobs = running.run([Deadly(tmp_path, 9), *(Meeting(number, tmp_path, 1) for number in range(4))])
    assert {next(jobs)[0].number for _ in range(4)} == set(range(4))
    with pytest.raises(PipelineError, match=rf"^deadly 9 failed: its process was lost {TRIES} times: \S"):
        next(jobs)
    assert len(list(tmp_path.glob("death *"))) == TRIES
    assert [done.result for _, done in running.run([Deadly(tmp_path, 0)])] == ["survived"]


def test_workers_lost_while_they_are_idle_do_not_count_against_a_job(
    running: RayActors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = {done.result[1] for _, done in running.run([Meeting(number, tmp_path) for number in range(2)])}
    assert len(processes) == 2
    for process in processes:
        os.kill(process, signal.SIGKILL)
    monkeypatch.setattr(engine, "TRIES", 1)
    assert [done.result for _, done in running.run([Deadly(tmp_path, 0)])] == ["survived"]


def test_garbage_collection_between_runs_neither_stops_idle_workers_nor_keeps_new_ones_from_starting(
    running: RayActors, tmp_path: Path
) -> None:
    def processes() -> set[int]:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        return {done.result[1] for _, done in running.run([Meeting(number, folder) for number in range(2)])}

    before, store = processes(), running._store
    probes = [name for name in store.sizes() if name.startswith(PARTIAL)]
    assert probes
    for name in probes:
        store.remove(name)
    assert processes() == before
    for process in before:
        os.kill(process, signal.SIGKILL)
    for name in store.sizes():
        store.remove(name)
    after = processes()
    assert len(after) == 2
    assert not after & before


def test_a_late_node_is_used_and_the_job_of_a_lost_one_is_finished_although_no_place_is_free(
    cluster: Any, running: RayActors, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = running.run([Meeting(0, tmp_path, 1), *(Meeting(number, tmp_path, 3) for number in range(1, 8))])
    assert next(jobs)[0].number == 0
    late = cluster.add_node(**NODE)
    assert len(list(jobs)) == 7, "they wait for a third process"

    def lose() -> None:
        until(lambda: len(list(tmp_path.glob("job *"))) == 3)
        cluster.remove_node(late)
        (tmp_path / "go").touch()

    loss = threading.Thread(target=lose)
    loss.start()
    done = [done for _, done in running.run([Waiting(number, tmp_path) for number in range(3)])]
    loss.join()
    assert late.node_id not in {one.result for one in done}
    assert capsys.readouterr().out.count(": its worker was lost; another one runs it\n") == 1


def test_a_node_that_does_not_fit_is_rejected_in_one_sentence_before_it_works(
    running: RayActors, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rejection() -> str:
        monkeypatch.setattr(engine, "join_ray", lambda cores: None)  # more workers on the running Ray
        monkeypatch.setattr(ray, "shutdown", lambda: None)
        with closing(actors_at(teacher, tmp_path, 1)) as others, pytest.raises(PipelineError) as error:
            list(others.run([Meeting(0, tmp_path, 1)]))
        assert not list(tmp_path.glob("process *"))
        return str(error.value)

    running._idle.clear()  # makes room
    other = Build({**BUILD.sources, "pipeline.corpus.task": "changed"}, {**BUILD.libraries, "torch": "2.0.0"})
    with monkeypatch.context() as changed:
        changed.setattr(engine, "BUILD", other)
        assert "uses other sources or libraries than this process: pipeline.corpus.task, torch " in rejection()

    @contextmanager
    def elsewhere(store: Store) -> Iterator[str]:
        yield "a probe in another folder of the same name"

    monkeypatch.setattr(Store, "probe", elsewhere)
    address, store = ray.util.get_node_ip_address(), tmp_path / "store"
    assert rejection() == (
        f"the start of a worker failed: node {address} does not see the store {store}; set runtime.store to a bucket or to a "
        "folder that all nodes share at the same path"
    )


@contextmanager
def without_ray(resources: dict[str, float]) -> Iterator[Mock]:
    """Ray replaced by mocks; no worker ever starts."""
    with (
        patch.multiple(ray, shutdown=DEFAULT, cluster_resources=lambda: resources, wait=lambda *_, **__: ([], [])),
        patch.multiple(engine, join_ray=DEFAULT, START_SECONDS=0.0),
        patch.object(ray, "remote") as remote,
    ):
        remote.return_value.options.return_value.remote.side_effect = lambda *_: SimpleNamespace(__ray_call__=Mock())
        yield remote


@pytest.mark.parametrize(
    ("workers", "resources", "place", "count"),
    [
        (None, {"CPU": 4.0}, {"num_cpus": 1}, 4),
        (1, {"CPU": 16.0, "GPU": 2.0}, {"num_gpus": 1}, 1),
        (3, {"CPU": 16.0, "GPU": 2.0}, {"num_gpus": 1}, 2),
        (9, {"CPU": 64.0}, {"num_cpus": 1}, 7),
        (None, {}, {}, 0),
    ],
)
def test_there_is_one_worker_per_gpu_or_core_and_no_more_than_jobs_and_none_started_is_an_error(
    teacher: Path, tmp_path: Path, workers: int | None, resources: dict[str, float], place: dict[str, int], count: int
) -> None:
    sentence = r"^no worker could be started within 0 seconds; the cluster has no free place"
    with (
        without_ray(resources) as remote,
        closing(actors_at(teacher, tmp_path, workers)) as started,
        pytest.raises(PipelineError, match=sentence),
    ):
        list(started.run([Failing()] * 7))
    options = [call.kwargs for call in remote.return_value.options.call_args_list]
    assert options == [place] * count
