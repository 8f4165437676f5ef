"""Where students are trained: in this process, in several that share one student, or several students at once, on Ray.

Knows Ray and jobs; not how a student is trained.
"""

import io
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.config.errors import PipelineError, last_line
from pipeline.config.runtime import RuntimeSettings, cores
from pipeline.distill.jobs import StudentJob, train_into
from pipeline.store.code import BUILD, Build, refused
from pipeline.store.hashing import key_hash
from pipeline.store.store import Store

RESTARTS = 3
"""How often processes that train one student together are started again after one of them died."""

SECONDS_BETWEEN_LOOKS = 0.5
"""How often is looked for what processes have to say."""


def obtain(job: StudentJob, runtime: RuntimeSettings, out: Path, cost: Path) -> dict[str, Any]:
    """Put a student at ``out``, from the store or trained now, and what it took at ``cost``; returns its lineage.

    Raises:
        PipelineError: it cannot be trained; names what differs, or the cause.
    """
    store, key = Store(runtime.store_folder), job.key()
    entry = store.obtain(key, job.title, lambda: _train(store, job, runtime))
    if job.key() != key:
        raise PipelineError(f"{job.title}: teacher, scores or variants were made again meanwhile; run this once more")
    return job.publish(store, entry, out, cost)


def _train(store: Store, job: StudentJob, runtime: RuntimeSettings) -> None:
    """Train a student into the store."""
    if runtime.trainers == 1:
        train_into(store, job, runtime)
    else:
        job.sources()  # rejects what does not belong together before Ray starts
        _train_together(store, job, runtime)


def train_all(jobs: Sequence[StudentJob], runtime: RuntimeSettings) -> None:
    """Train all students that the store lacks, as many at once as there are GPUs, or cores where there are none.

    Raises:
        PipelineError: some cannot be trained; the others are finished first.
    """
    import ray

    from pipeline.training.ray_session import join_ray

    store = Store(runtime.store_folder)
    lacking = [(key_hash(key), job) for job in jobs if store.get(key := job.key()) is None]
    missing = list(dict(lacking).values())
    there, twins = len(jobs) - len(lacking), len(lacking) - len(missing)
    told = f", {twins} the same as another" if twins else ""
    print(f"distill: {len(jobs)} students, {there} in the store, {len(missing)} to train{told}", flush=True)
    if not missing:
        return
    join_ray(runtime, runtime.workers or cores())
    try:
        share = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {"num_cpus": 1}
        said, task = _Said.start(), ray.remote(_train_one).options(**share, max_retries=RESTARTS)
        waiting = {task.remote(said.actor, store, job, runtime, Path.cwd(), BUILD): job for job in missing}
        faults = []
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=SECONDS_BETWEEN_LOOKS)
            said.show()
            for promise in ready:
                job = waiting.pop(promise)
                try:
                    ray.get(promise)
                except ray.exceptions.RayError as error:
                    cause = getattr(error, "cause", None) or error
                    faults.append(f"{job.name} ({job.scores.name}): {last_line(cause)}")
    finally:
        ray.shutdown()
    if faults:
        raise PipelineError("\n  - ".join([f"{len(faults)} of {len(missing)} students were not trained:", *faults]))


def _train_one(said: Any, store: Store, job: StudentJob, runtime: RuntimeSettings, home: Path, build: Build) -> None:
    """In a process of its own."""
    _settle(home, build)
    with redirect_stdout(_Teller(said)):
        store.obtain(job.key(), job.title, lambda: train_into(store, job, runtime))


def _train_together(store: Store, job: StudentJob, runtime: RuntimeSettings) -> None:
    """In several processes, each with its share of every step; torch.distributed averages their gradients."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    from pipeline.training.ray_session import join_ray

    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # else it says every line twice
    join_ray(runtime, runtime.trainers)
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        if gpus and gpus < runtime.trainers:
            raise PipelineError(
                f"runtime.trainers is {runtime.trainers}, but there are {gpus} GPUs; a trainer has one to itself"
            )
        said = _Said.start()
        given = {"said": said.actor, "store": store, "job": job, "runtime": runtime, "home": Path.cwd(), "build": BUILD}
        with tempfile.TemporaryDirectory(prefix="trainers-") as notes, ThreadPoolExecutor(1) as beside:
            trainer = TorchTrainer(
                _train_share,
                train_loop_config=given,
                scaling_config=ScalingConfig(num_workers=runtime.trainers, use_gpu=bool(gpus)),
                run_config=RunConfig(storage_path=notes, failure_config=FailureConfig(max_failures=RESTARTS)),
            )
            fitting = beside.submit(trainer.fit)
            said.show_until(fitting.done)
            fitting.result()
    except TrainingFailedError as error:
        causes = getattr(error, "worker_failures", {}).values()
        raise PipelineError(f"{job.name} failed: {last_line(next(iter(causes), error))}") from error
    finally:
        ray.shutdown()


def _train_share(given: dict[str, Any]) -> None:
    """In one of several processes."""
    _settle(given["home"], given["build"])
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    with redirect_stdout(_Teller(given["said"])):
        train_into(given["store"], given["job"], given["runtime"])


def _settle(home: Path, build: Build) -> None:
    """Paths are relative to where the command was given; Ray starts its processes elsewhere, maybe with other packages."""
    if differing := BUILD.differs_from(build):
        raise PipelineError(refused(differing))
    if not home.is_dir():
        raise PipelineError(f"this node does not see {home}; to train students it needs the project's folder on a shared disk")
    os.chdir(home)


class _Lines:
    """Where processes leave what they have to say."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def say(self, text: str) -> None:
        self._lines.append(text)

    def take(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines


@dataclass(frozen=True)
class _Said:
    """What processes elsewhere print, to be printed here: Ray's own way adds names of processes, and what libraries say."""

    actor: Any

    @classmethod
    def start(cls) -> "_Said":
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # no other node ends it
        return cls(ray.remote(_Lines).options(num_cpus=0, scheduling_strategy=here).remote())

    def show(self) -> None:
        """Print what was said since."""
        import ray

        print("".join(ray.get(self.actor.take.remote())), end="", flush=True)

    def show_until(self, done: Callable[[], bool]) -> None:
        """Print it as it comes."""
        while not done():
            time.sleep(SECONDS_BETWEEN_LOOKS)
            self.show()


class _Teller(io.TextIOBase):
    """A standard output whose lines go to ``_Lines``."""

    def __init__(self, actor: Any) -> None:
        self._actor, self._begun = actor, ""

    def write(self, text: str) -> int:
        """Pass on whole lines."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._actor.say.remote(line + "\n")
        return len(text)
