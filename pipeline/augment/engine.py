"""Workers as actors of Ray, one per GPU or core of the cluster.

Ray places the actors and reports those whose process or node is lost. The job of a lost one is given to another, and a new
actor is created where there is a place. Ray's own retries are not used: they are spent within a second on the address of a
dead node, and an actor that Ray starts again may wait for a place while another one is idle.
"""

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import joblib
import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.augment.jobs import Done
from pipeline.augment.teacher import ModelFolders
from pipeline.augment.workers import AnyJob, Worker, put_models
from pipeline.config.errors import PipelineError, failing_as, last_line
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


class RayActors:
    """Actors with the same models; Ray is started or joined for the first job."""

    def __init__(self, folders: ModelFolders, precision: Precision, store: Store, runtime: RuntimeSettings) -> None:
        self._folders, self._precision, self._store, self._most = folders, precision, store, runtime.workers
        self._open = ExitStack()
        self._kind = ""  # of a worker's place, once Ray is joined
        self._idle: list[Any] = []
        self._starting: dict[Any, Any] = {}  # by the promise of the node's check

    def run(self, jobs: Sequence[AnyJob]) -> Iterator[tuple[AnyJob, Done]]:
        """Like ``Workers.run``; a job whose worker is lost ``TRIES`` times has failed."""
        self._join()
        waiting, busy, lost = deque(jobs), dict[Any, tuple[Any, AnyJob]](), Counter[str]()
        self._idle, last = [*filter(_is_alive, self._idle)], time.monotonic()
        while waiting or busy:
            self._add_actors(len(waiting) + len(busy), len(busy))
            while waiting and self._idle:
                actor, job = self._idle.pop(), waiting.popleft()
                with failing_as(job.name):
                    job.prepare(self._store)
                busy[actor.run.remote(job.work)] = actor, job
            if not (busy or self._starting):  # there is no place at all
                time.sleep(min(POLL_SECONDS, START_SECONDS))
            ready, _ = ray.wait([*busy, *self._starting], timeout=POLL_SECONDS)
            if not ready and not busy and time.monotonic() - last > START_SECONDS:
                raise PipelineError(
                    f"no worker could be started within {START_SECONDS:.0f} seconds; the cluster has no free place, or its "
                    "nodes lack this package (see them with: ray status)"
                )
            for promise in ready:
                last = time.monotonic()
                actor, ended = busy.pop(promise, None) or (self._starting.pop(promise), None)
                name = ended.name if ended else "the start of a worker"
                with failing_as(name):
                    try:
                        done = ray.get(promise)
                    except RayTaskError as error:  # has the worker's traceback
                        raise error.cause from error
                    except RayError as cause:
                        lost[name] += 1
                        if lost[name] == TRIES:
                            raise PipelineError(f"its process was lost {TRIES} times: {last_line(cause)}") from cause
                        if ended:
                            print(f"{name}: its worker was lost; another one runs it", flush=True)
                            waiting.append(ended)
                            self._idle = [*filter(_is_alive, self._idle)]  # its node may have had others
                        continue
                del lost[name]
                self._idle.append(actor)
                if ended:
                    yield ended, done

    def close(self) -> None:
        """Leave Ray."""
        self._open.close()

    def _join(self) -> None:
        if not self._kind:
            join_ray(self._most or int(joblib.cpu_count()))
            self._open.callback(ray.shutdown)
            self._share, self._kind = one_place()

    def _add_actors(self, wanted: int, busy: int) -> None:
        """Create actors where there are places for them, up to the number of jobs."""
        places = int(ray.cluster_resources().get(self._kind, 0))
        there = busy + len(self._idle) + len(self._starting)
        missing = range(there, min(self._most or places, places, wanted))
        if missing:  # also of late ones, since garbage collection may have deleted what no manifest lists
            check = NodeCheck(self._store, self._open.enter_context(self._store.probe()), BUILD)
            keys = put_models(self._folders, self._store)
        for _ in missing:
            actor: Any = ray.remote(Worker).options(**self._share).remote(self._folders, keys, self._precision, self._store)
            self._starting[actor.__ray_call__.remote(lambda worker: check())] = actor


def _is_alive(actor: Any) -> bool:
    """Whether an idle actor replies."""
    with suppress(RayError):  # a timeout is one
        ray.get(actor.__ray_ready__.remote(), timeout=POLL_SECONDS)
        return True
    return False
