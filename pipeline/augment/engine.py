"""Workers as actors of Ray, one per GPU or core of the cluster.

Ray starts an actor again if its process or node is lost, and then repeats its job. This module gives each actor one job at a
time, adds actors when nodes join, and stops an idle actor if another one has lost its node and has no place.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any

import joblib
import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.augment.jobs import Done, Work
from pipeline.augment.teacher import ModelFolders
from pipeline.augment.workers import AnyJob, StoredModels, Worker, failure
from pipeline.config.errors import PipelineError, last_line
from pipeline.config.settings import Precision, RuntimeSettings
from pipeline.store.keys import BUILD
from pipeline.store.store import Store
from pipeline.training.ray_session import NodeCheck, join_ray, one_place

TRIES = 3
"""How often a job is started whose worker is lost each time; then it has failed."""

START_SECONDS = 180.0
"""Longest wait for a worker to start while none is busy."""

POLL_SECONDS = 5.0
"""Longest time until a new node is used."""


class RayWorker:
    """A worker in a process of its own, which Ray may start again on another node."""

    def __init__(self, worker: Worker, check: NodeCheck) -> None:
        self._worker, self._check, self._checked = worker, check, False

    def check(self) -> None:
        """Reject a node that does not fit the driver."""
        self._check()
        self._checked = True

    def run(self, work: Work) -> Done:
        """Do the work of a job; the driver has called ``check`` unless Ray started this process again."""
        notes = () if self._checked else ("its worker was lost and started again",)
        self.check()
        done = self._worker.run(work)
        return replace(done, notes=(*notes, *done.notes))


class RayActors:
    """Actors with the same models; Ray is started or joined for the first job and left at the end of the ``with`` block."""

    def __init__(self, folders: ModelFolders, precision: Precision, store: Store, runtime: RuntimeSettings) -> None:
        self._folders, self._precision, self._store = folders, precision, store
        self._most = runtime.workers
        self._open = ExitStack()
        self._given: tuple[Any, ...] = ()  # to each actor
        self._idle: list[Any] = []
        self._starting: dict[Any, Any] = {}  # by the promise of the node's check

    def __enter__(self) -> "RayActors":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.close()

    def run(self, jobs: Sequence[AnyJob]) -> Iterator[tuple[AnyJob, Done]]:
        """Like ``Workers.run``; a job whose worker is lost ``TRIES`` times has failed."""
        self._join()
        waiting, busy, last = deque(jobs), dict[Any, tuple[Any, AnyJob]](), time.monotonic()
        while waiting or busy:
            places = self._adjust(len(waiting), len(busy))
            while waiting and self._idle:
                job, actor = waiting.popleft(), self._idle.pop()
                busy[actor.run.remote(self._prepared(job))] = actor, job
            ready, _ = ray.wait([*busy, *self._starting], timeout=POLL_SECONDS)
            if not ready and not (busy and places) and time.monotonic() - last > START_SECONDS:
                raise PipelineError(
                    f"no worker could be started within {START_SECONDS:.0f} seconds; the cluster has no free place, or its "
                    "nodes lack this package (see them with: ray status)"
                )
            for promise in ready:
                last = time.monotonic()
                if promise in self._starting:
                    self._started(promise)
                else:
                    actor, job = busy.pop(promise)
                    done = _result(job, promise)
                    self._idle.append(actor)
                    yield job, done

    def _join(self) -> None:
        if not self._given:
            token = self._open.enter_context(self._store.probe())
            stored = StoredModels.put(self._folders, self._store)
            join_ray(self._most or int(joblib.cpu_count()))
            self._open.callback(ray.shutdown)
            self._given = Worker(stored, self._precision, self._store), NodeCheck(self._store, token, BUILD)
            self._share, self._kind = one_place()

    def _adjust(self, waiting: int, busy: int) -> int:
        """Start actors where there are places for them; returns the number of places.

        If a node was lost, an actor with a job may wait for a place: then an idle one is stopped.
        """
        places = int(ray.cluster_resources().get(self._kind, 0))
        there = busy + len(self._idle) + len(self._starting)
        for _ in range(there, min(self._most or places, places, waiting + busy)):
            options = self._share | {"max_restarts": -1, "max_task_retries": TRIES - 1}
            actor: Any = ray.remote(RayWorker).options(**options).remote(*self._given)
            self._starting[actor.check.remote()] = actor
        if there > places and self._idle and not waiting:
            ray.kill(self._idle.pop())
        return places

    def _prepared(self, job: AnyJob) -> Work:
        try:
            job.prepare(self._store)
        except Exception as cause:
            raise failure(job.name, cause) from cause
        return job.work

    def _started(self, promise: Any) -> None:
        actor = self._starting.pop(promise)
        try:
            ray.get(promise)
        except RayTaskError as error:
            raise error.cause from error
        except RayError as cause:
            raise PipelineError(f"a worker could not be started: {last_line(cause)}") from cause
        self._idle.append(actor)


def _result(job: AnyJob, promise: Any) -> Done:
    try:
        done: Done = ray.get(promise)
    except RayTaskError as error:
        error.cause.add_note(str(error))  # has the worker's traceback
        raise failure(job.name, error.cause) from error
    except RayError as cause:
        raise PipelineError(f"{job.name} failed: its worker was lost {TRIES} times: {last_line(cause)}") from cause
    return done
