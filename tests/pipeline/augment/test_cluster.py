import os
import joblib
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
import ray
import torch

from pipeline.augment import cluster
from pipeline.augment.cluster import Cluster, Sight, Worker
from pipeline.augment.jobs import Done
from pipeline.augment.teacher import ModelFolders, ModelSet
from pipeline.config.errors import PipelineError
from pipeline.config.settings import RuntimeSettings
from pipeline.store.keys import BUILD, Build
from pipeline.store.keys import sha256_of
from pipeline.store.store import Store
from tests.world import RUNTIME

GUESTS = 1
"""Places on Ray for a worker of a test, beside the two that all tests share."""


def runtime(workers: int | None = 2, address: str | None = None) -> RuntimeSettings:
    return RuntimeSettings.model_validate(RUNTIME | {"ray_address": address, "workers": workers, "store": "unused"})


def cluster_at(folder: Path, settings: RuntimeSettings) -> Cluster:
    return Cluster(ModelFolders(folder), "float32", Store(folder.parent / "store"), settings)


class Itself:
    """A job that is its own work."""

    def work(self) -> Any:
        return self


@dataclass(frozen=True)
class Telling(Itself):
    """Tells where it was done; waits for another to be at work, so that two workers are needed."""

    number: int
    meeting: Path

    @property
    def name(self) -> str:
        return f"telling {self.number}"

    def run(self, models: ModelSet, store: Store) -> Done:
        (self.meeting / str(os.getpid())).touch()
        while len(list(self.meeting.iterdir())) < 2:
            time.sleep(0.01)
        return Done((self.number, os.getpid(), torch.get_num_threads(), models.teacher.width))


@dataclass(frozen=True)
class Deadly(Itself):
    """Kills its worker until it has left as many marks as lives are asked for."""

    marks: Path
    lives: int

    @property
    def name(self) -> str:
        return f"deadly {self.lives}"

    def run(self, models: ModelSet, store: Store) -> Done:
        taken = len(list(self.marks.iterdir()))
        if taken < self.lives:
            (self.marks / str(taken)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Done("survived")


@dataclass(frozen=True)
class Failing(Itself):
    """Stumbles over a number."""

    name: str = "failing"

    def run(self, models: ModelSet, store: Store) -> Done:
        return Done(1 / 0)


@pytest.fixture(scope="module")
def running(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two real workers of a teacher in whose folder training left another one; shared, since a start takes seconds."""
    folder = Path(shutil.copytree(teacher, tmp_path_factory.mktemp("cluster") / "teacher"))
    shutil.copytree(teacher, folder / "checkpoint-1")
    with pytest.MonkeyPatch.context() as patch, cluster_at(folder, runtime(2 + GUESTS)) as cluster_of_two:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert [done.result for _, done in cluster_of_two.run([Deadly(tmp_path_factory.mktemp("marks"), 0)])] == ["survived"]
        patch.setattr(cluster_of_two, "_runtime", runtime(2))
        yield cluster_of_two
    children = {process.name() for process in psutil.Process().children(recursive=True)}
    assert not ray.is_initialized()
    assert not {name for name in children if "ray" in name}


def test_every_job_is_done_once_by_workers_of_one_thread_that_have_the_teacher(running: Cluster, tmp_path: Path) -> None:
    jobs = [Telling(number, tmp_path) for number in range(6)]
    done = [(job, done.result) for job, done in running.run(jobs)]
    assert sorted(job.number for job, _ in done) == list(range(6))
    assert all(result[0] == job.number and result[2:] == (1, 32) for job, result in done)
    assert len({result[1] for _, result in done} - {os.getpid()}) == 2


def test_a_worker_that_dies_is_replaced_and_its_job_done_by_another(
    running: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [Deadly(tmp_path, 1), Deadly(tmp_path, 0), Deadly(tmp_path, 0)]
    assert [done.result for _, done in running.run(jobs)] == ["survived"] * 3
    assert capsys.readouterr().out.count("a worker died on deadly 1; another takes it over") == 1


def test_a_job_that_kills_one_worker_after_the_other_is_called_the_cause(
    running: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cluster.DEATHS_ALLOWED == 3
    monkeypatch.setattr(cluster, "DEATHS_ALLOWED", 2)
    with pytest.raises(PipelineError, match=r"^deadly 9 killed 2 workers: \S"):
        list(running.run([Deadly(tmp_path, 9)]))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_job_that_fails_is_named_with_the_cause_and_not_tried_again(
    running: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PipelineError, match=r"^failing failed: division by zero$"):
        list(running.run([Failing()]))
    assert "return Done(1 / 0)" in capfd.readouterr().err, "what nobody foresaw is shown where it happened"


@pytest.fixture
def beside(running: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A further Cluster uses the Ray that runs."""
    monkeypatch.setattr(cluster, "join_ray", lambda settings, cores: None)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)


class Strange(Store):
    """Cannot be unpacked on a node that lacks the package; leaves a mark."""

    def __reduce__(self) -> Any:
        return lacking, (self.folder,)


def lacking(folder: Path) -> None:
    (folder / f"try {os.getpid()}").touch()
    raise ModuleNotFoundError("No module named 'pipeline'")


@pytest.mark.usefixtures("beside")
def test_workers_that_cannot_start_are_given_up_with_the_cause(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "DEATHS_ALLOWED", 2)
    with (
        Cluster(ModelFolders(teacher), "float32", Strange(tmp_path), runtime(1)) as none,
        pytest.raises(PipelineError) as error,
    ):
        list(none.run([Failing()]))
    assert str(error.value) == "2 workers could not be started: ModuleNotFoundError: No module named 'pipeline'"
    assert len(list(tmp_path.glob("try *"))) == 2


@pytest.mark.usefixtures("beside")
def test_a_worker_with_other_sources_or_libraries_is_refused(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {
        f"pipeline.{name}": "changed"
        for name in ("corpus.encoding", "corpus.seeding", "corpus.task", "models.forward", "perturbation.inputs", "store.files")
    }
    here = Build({**BUILD.sources, **changed}, {**BUILD.libraries, "torch": "2.0.0"})
    monkeypatch.setattr(cluster, "BUILD", here)
    with cluster_at(teacher, runtime(1)) as other, pytest.raises(PipelineError) as error:
        list(other.run([Failing()]))
    assert str(error.value).startswith(
        "a worker computes with other sources or libraries than this process: pipeline.corpus.encoding, "
        "pipeline.corpus.seeding, pipeline.corpus.task, pipeline.models.forward, pipeline.perturbation.inputs and 2 more; "
        "what it made would"
    )


@pytest.mark.usefixtures("beside")
def test_a_cluster_without_a_free_place_is_not_waited_for_for_ever(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ARRIVAL_SECONDS", 1.0)
    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: {"GPU": 1.0})
    with (
        cluster_at(teacher, runtime(1)) as none,
        pytest.raises(PipelineError, match="no worker could be started within 1 seconds"),
    ):
        list(none.run([Failing()]))


def test_a_teacher_changed_at_the_worker_is_seen_and_what_was_sent_is_used(teacher: Path, tmp_path: Path) -> None:
    there = Path(shutil.copytree(teacher, tmp_path / "teacher"))
    hashes = {str(path): sha256_of(path) for path in there.iterdir()}
    worker = Worker(ModelFolders(there), "float32", Store(tmp_path / "store"))
    assert worker.look(hashes, str(there), BUILD) == Sight(models=True, store=True, strange=[])
    weights = there / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert worker.look(hashes, str(tmp_path / "landmark"), BUILD) == Sight(models=False, store=False, strange=[])
    for path in teacher.iterdir():
        worker.receive(str(there / path.name), path.read_bytes())
    worker.use_received()
    used = worker._folders.teacher
    assert {path.name: path.read_bytes() for path in used.iterdir()} == {
        path.name: path.read_bytes() for path in teacher.iterdir()
    }
    worker.leave()
    assert not used.exists()
    assert weights.read_bytes().endswith(b"?"), "what lies there is left alone"


class Asked(Exception):
    """Ray would be started, or joined."""


@pytest.mark.parametrize(("workers", "wanted"), [(3, 3), (None, int(joblib.cpu_count()))])
def test_ray_is_asked_for_a_core_for_each_worker(
    workers: int | None, wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def join(settings: RuntimeSettings, asked: int) -> None:
        raise Asked(asked)

    monkeypatch.setattr(cluster, "join_ray", join)
    with cluster_at(tmp_path / "teacher", runtime(workers)) as started, pytest.raises(Asked, match=f"^{wanted}$"):
        list(started.run([Failing()]))


class Fake:
    """Stands for Ray's handle of an actor; its workers never arrive."""

    made: ClassVar[list[dict[str, float]]]

    def __init__(self, actor: type) -> None:
        self.look = self

    def options(self, **share: float) -> "Fake":
        self.made.append(share)
        return self

    def remote(self, *arguments: Any) -> Any:
        return self if isinstance(arguments[0], ModelFolders) else object()


@pytest.mark.parametrize(
    ("workers", "resources", "expected"),
    [
        (None, {"CPU": 4.0}, [{"num_cpus": 1}] * 4),
        (None, {"CPU": 16.0, "GPU": 2.0}, [{"num_gpus": 1}] * 2),
        (1, {"CPU": 16.0, "GPU": 2.0}, [{"num_gpus": 1}]),
        (3, {"CPU": 16.0, "GPU": 2.0}, [{"num_gpus": 1}] * 2),
        (9, {"CPU": 64.0}, [{"num_cpus": 1}] * 7),
        (None, {}, [{"num_cpus": 1}]),
    ],
)
def test_there_is_one_worker_a_gpu_else_one_a_core_unless_fewer_are_asked_for_or_needed(
    workers: int | None,
    resources: dict[str, float],
    expected: list[dict[str, float]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Fake, "made", [], raising=False)
    fakes = {
        "remote": Fake,
        "shutdown": lambda: None,
        "cluster_resources": lambda: resources,
        "wait": lambda *_, **__: ([], []),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(cluster.ray, name, fake)
    monkeypatch.setattr(cluster, "join_ray", lambda settings, cores: None)
    sentence = "no worker could be started within 180 seconds"
    with cluster_at(tmp_path / "teacher", runtime(workers)) as started, pytest.raises(PipelineError, match=sentence):
        list(started.run([Failing()] * 7))
    assert Fake.made == expected


def test_nothing_is_started_where_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cluster.ray, "init", lambda **given: pytest.fail("Ray was started"))
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: pytest.fail("somebody else's Ray was left"))
    with cluster_at(tmp_path / "teacher", runtime()):
        pass
    assert not (tmp_path / "store").exists()
