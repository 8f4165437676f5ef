import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch

from pipeline.augment import cluster
from pipeline.augment.cluster import Cluster, RuntimeSettings
from pipeline.augment.teacher import FrozenTeacher
from pipeline.errors import PipelineError


def runtime(workers: int | None = 2, address: str | None = None) -> RuntimeSettings:
    return RuntimeSettings(ray_address=address, workers=workers, store="unused")


@dataclass(frozen=True)
class Telling:
    """Tells where it was done; waits for another to be at work, so that two workers are needed."""

    number: int
    meeting: Path

    @property
    def name(self) -> str:
        return f"telling {self.number}"

    def run(self, teacher: FrozenTeacher) -> tuple[int, int, int, int]:
        (self.meeting / str(os.getpid())).touch()
        while len(list(self.meeting.iterdir())) < 2:
            time.sleep(0.01)
        return self.number, os.getpid(), torch.get_num_threads(), teacher.width


@dataclass(frozen=True)
class Deadly:
    """Kills its worker until it has left as many marks as lives are asked for."""

    marks: Path
    lives: int

    @property
    def name(self) -> str:
        return f"deadly {self.lives}"

    def run(self, teacher: FrozenTeacher) -> str:
        taken = len(list(self.marks.iterdir()))
        if taken < self.lives:
            (self.marks / str(taken)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "survived"


@dataclass(frozen=True)
class Failing:
    """Stumbles over a number."""

    name: str = "failing"

    def run(self, teacher: FrozenTeacher) -> float:
        return 1 / 0


@pytest.fixture(scope="module")
def running(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two real workers of a teacher in whose folder training left another one; shared, since a start takes seconds."""
    folder = Path(shutil.copytree(teacher, tmp_path_factory.mktemp("cluster") / "teacher"))
    shutil.copytree(teacher, folder / "checkpoint-1")
    address = os.environ.pop("RAY_ADDRESS", None)
    with Cluster(folder, runtime()) as cluster_of_two:
        yield cluster_of_two
    children = {process.name() for process in psutil.Process().children(recursive=True)}
    assert not ray.is_initialized()
    assert not {name for name in children if "ray" in name}
    if address is not None:
        os.environ["RAY_ADDRESS"] = address


def test_every_job_is_done_once_by_workers_of_one_thread_that_have_the_teacher(running: Cluster, tmp_path: Path) -> None:
    jobs = [Telling(number, tmp_path) for number in range(6)]
    done = list(running.run(jobs))
    assert sorted(job.number for job, _ in done) == list(range(6))
    assert all(result[0] == job.number and result[2:] == (1, 32) for job, result in done)
    assert len({result[1] for _, result in done} - {os.getpid()}) == 2


def test_a_worker_that_dies_is_replaced_and_its_job_done_by_another(
    running: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [Deadly(tmp_path, 1), Deadly(tmp_path, 0), Deadly(tmp_path, 0)]
    assert [result for _, result in running.run(jobs)] == ["survived"] * 3
    assert capsys.readouterr().out.count("a worker died on deadly 1; another takes it over") == 1


def test_a_job_that_kills_one_worker_after_the_other_is_called_the_cause(
    running: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cluster.DEATHS_ALLOWED == 3
    monkeypatch.setattr(cluster, "DEATHS_ALLOWED", 2)
    with pytest.raises(PipelineError, match=r"^deadly 9 killed 2 workers: \S"):
        list(running.run([Deadly(tmp_path, 9)]))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_job_that_fails_is_named_with_the_cause_and_not_tried_again(running: Cluster) -> None:
    with pytest.raises(PipelineError, match=r"^failing failed: division by zero$"):
        list(running.run([Failing()]))


class Started(Exception):
    """Ray would have been started."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What Ray was asked for; it is not started."""
    arguments: dict[str, Any] = {}

    def init(**given: Any) -> None:
        arguments.update(given)
        raise Started

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster.ray, "init", init)
    return arguments


def start(settings: RuntimeSettings, folder: Path) -> None:
    with Cluster(folder, settings) as started, pytest.raises(Started):
        list(started.run([Failing()]))


def test_ray_is_started_here_for_as_many_workers_as_asked(asked: dict[str, Any], tmp_path: Path) -> None:
    start(runtime(workers=3), tmp_path)
    assert (asked["address"], asked["num_cpus"]) == ("local", 3)


def test_a_running_cluster_is_joined_where_the_settings_name_one(asked: dict[str, Any], tmp_path: Path) -> None:
    start(runtime(address="ray.example:6379"), tmp_path)
    assert asked["address"] == "ray.example:6379"
    assert "num_cpus" not in asked, "Ray refuses resources for a cluster that is already there"


def test_the_environment_names_a_cluster_before_the_settings_do(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "here.example:6379")
    start(runtime(address="ray.example:6379"), tmp_path)
    assert asked["address"] == "here.example:6379"


def test_a_cluster_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def init(**given: Any) -> None:
        raise ConnectionError("nobody\nis there")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster.ray, "init", init)
    sentence = r"^no Ray cluster answers at ray.example:6379: is there$"
    with Cluster(tmp_path, runtime(address="ray.example:6379")) as started, pytest.raises(PipelineError, match=sentence):
        list(started.run([Failing()]))


@pytest.mark.parametrize(
    ("workers", "resources", "expected"),
    [
        (None, {"CPU": 4.0}, 4),
        (None, {"CPU": 16.0, "GPU": 2.0}, 2),
        (1, {"CPU": 16.0, "GPU": 2.0}, 1),
        (3, {"CPU": 16.0, "GPU": 2.0}, 2),
        (None, {}, 1),
    ],
)
def test_there_is_one_worker_a_gpu_else_one_a_core_unless_the_settings_ask_for_fewer(
    workers: int | None, resources: dict[str, float], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    monkeypatch.setattr(cluster, "_join_ray", lambda settings: None)
    monkeypatch.setattr(cluster.ray, "put", lambda value: value)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: resources)
    monkeypatch.setattr(Cluster, "_new_worker", lambda self: made.append(1))
    with Cluster(tmp_path, runtime(workers)) as started, pytest.raises(AttributeError):
        next(started.run([Failing()] * 20))  # nothing that was made can run
    assert len(made) == expected


def test_nothing_is_started_where_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cluster.ray, "init", lambda **given: pytest.fail("Ray was started"))
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: pytest.fail("somebody else's Ray was left"))
    with Cluster(tmp_path, runtime()):
        pass
