"""Ray workers: started, given jobs, replaced when they die.

A worker that sees the store writes to it. Another one returns its shard in small pieces, so that nothing large fills Ray's
object store.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import joblib
import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from pipeline.augment.jobs import Done, Job, Work
from pipeline.augment.teacher import ModelFolders
from pipeline.augment.workers import PIECE_BYTES, AnyJob, NodeVisibility, Worker, failure, probe_file
from pipeline.config.errors import PipelineError, last_line
from pipeline.config.settings import Precision, RuntimeSettings
from pipeline.shards.manifest import SHARD_FILE, Receipt
from pipeline.store.keys import BUILD, rejection, sha256_of
from pipeline.store.store import Store
from pipeline.training.ray_session import join_ray

WORKER_LOST = (RayActorError, WorkerCrashedError, NodeDiedError, OutOfMemoryError, ObjectLostError)
"""Ray's errors for a lost worker or result; any other error is the job's."""

DEATHS_ALLOWED = 3
"""Workers that may die on one job before it fails."""

ARRIVAL_SECONDS = 180.0
"""Longest wait for workers to start while none is busy."""

LEAVING_SECONDS = 10.0
"""Longest wait for workers to delete their files."""


@dataclass(frozen=True)
class WorkerHandle:
    """A worker that is ready."""

    worker: Any
    home: bool
    """Whether it writes to the store."""


class Cluster:
    """Workers of one set of models; Ray is started or joined for the first job and left at the end of the ``with`` block."""

    def __init__(self, folders: ModelFolders, precision: Precision, store: Store, runtime: RuntimeSettings) -> None:
        self._folders = folders.at(Path.resolve)
        self._precision, self._store, self._runtime = precision, store, runtime
        self._idle: list[WorkerHandle] = []
        self._arriving: dict[Any, Any] = {}
        self._remotes: list[Any] = []
        self._failed_arrivals = 0  # in succession
        self._open = ExitStack()
        self._mark: Path | None = None

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.close()

    def run(self, jobs: Sequence[AnyJob]) -> Iterator[tuple[AnyJob, Done]]:
        """Like ``Workers.run``; a job that killed ``DEATHS_ALLOWED`` workers has failed."""
        self._start(len(jobs))
        waiting = list(reversed(jobs))
        deaths: dict[int, int] = {}
        busy: dict[Any, tuple[WorkerHandle, AnyJob]] = {}
        while waiting or busy:
            while waiting and self._idle:
                handle, job = self._idle.pop(), waiting.pop()
                busy[handle.worker.run.remote(_read(job))] = (handle, job)
            ready = self._next([*busy, *self._arriving], patient=bool(busy))
            if ready in self._arriving:
                self._arrived(ready)
                continue
            handle, job = busy.pop(ready)
            try:
                done = ray.get(ready)
                self._bring_home(handle, done)
            except WORKER_LOST as cause:
                self._remotes = [remote for remote in self._remotes if remote is not handle.worker]
                deaths[id(job)] = deaths.get(id(job), 0) + 1
                if deaths[id(job)] >= DEATHS_ALLOWED:
                    raise PipelineError(f"{job.name} killed {DEATHS_ALLOWED} workers: {last_line(cause)}") from cause
                print(f"a worker died on {job.name}; another takes it over", flush=True)
                waiting.append(job)
                self._call_workers(len(waiting) + len(busy), busy=len(busy))
            except RayTaskError as error:
                error.cause.add_note(str(error))  # has the worker's traceback
                raise failure(job.name, error.cause) from error
            except (RayError, PipelineError) as error:
                raise failure(job.name, error) from error
            else:
                self._idle.append(handle)
                yield job, done

    def _start(self, jobs: int) -> None:
        if self._mark is None:
            self._mark = self._open.enter_context(probe_file(self._store))
            join_ray(self._runtime, self._runtime.workers or int(joblib.cpu_count()))
            self._open.callback(ray.shutdown)
            self._open.callback(self._take_leave)
            self._hashes = {str(file): sha256_of(file) for file in self._folders.files()}
        self._call_workers(jobs, busy=0)

    def _call_workers(self, jobs: int, busy: int) -> None:
        """Start workers up to the number of places or jobs; the place of a dead worker may be lost with its node."""
        resources = ray.cluster_resources()
        share = {"num_gpus": 1} if resources.get("GPU", 0) else {"num_cpus": 1}
        places = int(resources.get("GPU", 0)) or max(1, int(resources.get("CPU", 1)))
        wanted = min(self._runtime.workers or places, places, jobs)
        for _ in range(busy + len(self._idle) + len(self._arriving), wanted):
            worker: Any = ray.remote(Worker).options(**share).remote(self._folders, self._precision, self._store)
            self._arriving[worker.look.remote(self._hashes, str(self._mark), BUILD)] = worker

    def _next(self, promises: list[Any], patient: bool) -> Any:
        """The next finished promise; a timeout applies unless ``patient``."""
        ready, _ = ray.wait(promises, num_returns=1, timeout=None if patient else ARRIVAL_SECONDS)
        if not ready:
            raise PipelineError(
                f"no worker could be started within {ARRIVAL_SECONDS:.0f} seconds; the cluster has no free place, or its nodes "
                "lack this package (see them with: ray status)"
            )
        return ready[0]

    def _arrived(self, promise: Any) -> None:
        """Send a new worker the models that it does not see, and make it available."""
        worker = self._arriving.pop(promise)
        try:
            visibility: NodeVisibility = ray.get(promise)
            if visibility.differences:
                raise PipelineError(rejection(visibility.differences))
            if not (visibility.models and visibility.store):
                self._remotes.append(worker)
            if not visibility.models:
                self._send_models(worker)
        except (*WORKER_LOST, RayTaskError) as cause:
            self._failed_arrivals += 1
            if self._failed_arrivals >= DEATHS_ALLOWED:
                raise PipelineError(f"{DEATHS_ALLOWED} workers could not be started: {last_line(cause)}") from cause
            self._call_workers(len(self._arriving) + len(self._idle) + 1, busy=0)
        else:
            self._failed_arrivals = 0
            self._idle.append(WorkerHandle(worker, visibility.store))

    def _send_models(self, worker: Any) -> None:
        for path in self._hashes:
            with Path(path).open("rb") as file:
                ray.get(worker.receive.remote(path, file.read(PIECE_BYTES)))  # also of an empty file
                while piece := file.read(PIECE_BYTES):
                    ray.get(worker.receive.remote(path, piece))
        ray.get(worker.use_received.remote())

    def _bring_home(self, handle: WorkerHandle, done: Done) -> None:
        """Fetch a shard that a worker could not write to the store itself."""
        receipt = done.result
        if handle.home or not isinstance(receipt, Receipt):
            return
        try:
            with self._store.put(receipt.key, receipt.facts()) as folder:
                self._fetch(handle, receipt, folder / SHARD_FILE)
        except RayError:
            raise
        except OSError as cause:
            raise PipelineError(f"cannot write to the store {self._store.folder}: {cause.strerror or cause}") from cause
        ray.get(handle.worker.forget.remote(receipt))

    def _fetch(self, handle: WorkerHandle, receipt: Receipt, partial: Path) -> None:
        with partial.open("wb") as file:
            while file.tell() < receipt.bytes and (piece := ray.get(handle.worker.piece.remote(receipt, file.tell()))):
                file.write(piece)
        if sha256_of(partial) != receipt.sha256:
            raise PipelineError("the shard received from its worker is damaged; look for a full or failing disk there")

    def _take_leave(self) -> None:
        """Let workers of other machines delete the files they received, if they finish in time."""
        leaving = [worker.leave.remote() for worker in self._remotes]
        if leaving:
            ray.wait(leaving, num_returns=len(leaving), timeout=LEAVING_SECONDS)


def _read(job: Job) -> Work:
    """The work of a job; an error in it is the job's."""
    try:
        return job.work()
    except Exception as cause:
        raise failure(job.name, cause) from cause
