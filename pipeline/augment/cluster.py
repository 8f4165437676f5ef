"""Ray workers that run jobs: started, fed, replaced when they die. Knows Ray; not what a job computes."""

import functools
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, TypeVar

import ray
import torch
from pydantic import Field
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayTaskError, WorkerCrashedError

from pipeline.augment.jobs import Job
from pipeline.augment.teacher import FrozenTeacher
from pipeline.config import Settings
from pipeline.errors import PipelineError

AnyJob = TypeVar("AnyJob", bound=Job)

LOCAL_OBJECT_STORE_BYTES = 512 * 2**20
"""Workers write shards themselves; what goes through Ray is the teacher, once a node, and the rows of one job a worker."""

WORKER_LOST = (RayActorError, WorkerCrashedError, NodeDiedError, OutOfMemoryError)
"""How Ray says that a worker is no more; anything else is the job's own error."""

DEATHS_ALLOWED = 3
"""How many workers may die on one job before the job is called the cause."""


class RuntimeSettings(Settings):
    """What changes speed and never a byte."""

    ray_address: str | None
    """Of a running cluster; null starts Ray on this machine. The environment's RAY_ADDRESS comes first."""
    workers: Annotated[int, Field(ge=1)] | None
    """Most worker processes; null and more than there is room for are one a GPU, or one a core where there is no GPU."""
    store: str
    """Folder of the shard store; on a cluster one that all nodes share."""


class Worker:
    """One process with the teacher on its device."""

    def __init__(self, files: dict[str, bytes]) -> None:
        # One thread each: as many workers as cores are faster than threads, and the arithmetic stays the same everywhere.
        torch.set_num_threads(1)
        self._files = files

    def run(self, job: Job) -> Any:
        """Do one job."""
        return job.run(self._teacher)

    @functools.cached_property
    def _teacher(self) -> FrozenTeacher:
        """Loaded with the first job, so that a teacher that cannot be loaded is that job's error and not a worker's death."""
        with tempfile.TemporaryDirectory() as folder:
            for name, content in self._files.items():
                (Path(folder) / name).write_bytes(content)
            return FrozenTeacher(Path(folder))


class Cluster:
    """Workers of one teacher. Ray is started, or joined, when the first job comes and left with the ``with`` block."""

    def __init__(self, teacher_folder: Path, runtime: RuntimeSettings) -> None:
        self._teacher_folder = teacher_folder
        self._runtime = runtime
        self._idle: list[Any] = []
        self._started = False

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._started:
            ray.shutdown()

    def run(self, jobs: Sequence[AnyJob]) -> Iterator[tuple[AnyJob, Any]]:
        """Run jobs on all workers; give each with its result as it is finished, in whatever order.

        Raises:
            PipelineError: a job failed, or killed ``DEATHS_ALLOWED`` workers; names the job and the cause.
        """
        self._start(len(jobs))
        waiting = list(reversed(jobs))
        deaths: dict[int, int] = {}
        busy: dict[Any, tuple[Any, AnyJob]] = {}
        while waiting or busy:
            while waiting and self._idle:
                worker, job = self._idle.pop(), waiting.pop()
                busy[worker.run.remote(job)] = (worker, job)
            finished = ray.wait(list(busy), num_returns=1)[0][0]
            worker, job = busy.pop(finished)
            try:
                result = ray.get(finished)
            except WORKER_LOST as cause:
                deaths[id(job)] = deaths.get(id(job), 0) + 1
                if deaths[id(job)] >= DEATHS_ALLOWED:
                    raise PipelineError(f"{job.name} killed {DEATHS_ALLOWED} workers: {_last_line(cause)}") from cause
                print(f"a worker died on {job.name}; another takes it over", flush=True)
                waiting.append(job)
                self._idle.insert(0, self._new_worker())  # behind those that are loaded already
            except RayTaskError as error:
                raise PipelineError(f"{job.name} failed: {_last_line(error.cause)}") from error
            else:
                self._idle.append(worker)
                yield job, result

    def _start(self, jobs: int) -> None:
        if not self._started:
            _join_ray(self._runtime)
            self._started = True
            self._files = ray.put({file.name: file.read_bytes() for file in _files_of(self._teacher_folder)})
        while len(self._idle) < min(self._size(), jobs):
            self._idle.append(self._new_worker())

    def _size(self) -> int:
        resources = ray.cluster_resources()
        places = int(resources.get("GPU", 0)) or max(1, int(resources.get("CPU", 1)))
        return min(self._runtime.workers or places, places)

    def _new_worker(self) -> Any:
        share = {"num_gpus": 1} if ray.cluster_resources().get("GPU", 0) else {"num_cpus": 1}
        return ray.remote(Worker).options(**share).remote(self._files)


def _join_ray(runtime: RuntimeSettings) -> None:
    """Join the cluster that the environment or the settings name, else start Ray on this machine."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = os.environ.get("RAY_ADDRESS") or runtime.ray_address
    if address:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as cause:
            raise PipelineError(f"no Ray cluster answers at {address}: {_last_line(cause)}") from cause
    else:
        cores = runtime.workers or os.cpu_count()
        ray.init(
            address="local",
            num_cpus=cores,
            object_store_memory=LOCAL_OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


def _files_of(folder: Path) -> list[Path]:
    """What a worker needs of a teacher's folder: its files, not what training left in folders below."""
    return sorted(file for file in folder.iterdir() if file.is_file())


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
