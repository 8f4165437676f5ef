"""Where students are trained: in this process, in several that share one student, or several students at once, on Ray."""

import io
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import joblib
import torch

from pipeline.config.errors import PipelineError, last_line
from pipeline.config.settings import RuntimeSettings
from pipeline.distill.jobs import StudentJob, train_into
from pipeline.store.keys import BUILD, Build, key_hash, rejection
from pipeline.store.store import Store

RESTARTS = 3
"""Most restarts of processes that train a student after one of them died."""

SECONDS_BETWEEN_LOOKS = 0.5
"""Interval at which lines of other processes are printed."""


def obtain(job: StudentJob, runtime: RuntimeSettings, out: Path, cost: Path) -> dict[str, Any]:
    """Put a student at ``out``, from the store or trained now, and what it took at ``cost``; returns its lineage.

    Raises:
        PipelineError: it cannot be trained; names what differs, or the cause.
    """
    store, key = Store(runtime.store_folder), job.key()
    entry = store.obtain(key, job.title, lambda: _train(store, job, runtime))
    if job.key() != key:
        raise PipelineError(f"{job.title}: teacher, soft_labels or variants were made again meanwhile; run this once more")
    return job.publish(store, entry, out, cost)


def _train(store: Store, job: StudentJob, runtime: RuntimeSettings) -> None:
    """Train a student into the store."""
    if runtime.world_size == 1:
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
    join_ray(runtime, runtime.workers or int(joblib.cpu_count()))
    try:
        share = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {"num_cpus": 1}
        lines, task = _queue(), ray.remote(_train_one).options(**share, max_retries=RESTARTS)
        waiting = {task.remote(lines, store, job, runtime, Path.cwd(), BUILD): job for job in missing}
        errors = []
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=SECONDS_BETWEEN_LOOKS)
            _print_new(lines)
            for promise in ready:
                job = waiting.pop(promise)
                try:
                    ray.get(promise)
                except ray.exceptions.RayError as error:
                    cause = getattr(error, "cause", None) or error
                    errors.append(f"{job.name} ({job.soft_labels.name}): {last_line(cause)}")
    finally:
        ray.shutdown()
    if errors:
        raise PipelineError("\n  - ".join([f"{len(errors)} of {len(missing)} students were not trained:", *errors]))


def _train_one(lines: Any, store: Store, job: StudentJob, runtime: RuntimeSettings, home: Path, build: Build) -> None:
    """Runs in a process of its own."""
    _settle(home, build)
    with redirect_stdout(_Lines(lines.put)):
        store.obtain(job.key(), job.title, lambda: train_into(store, job, runtime))


def _train_together(store: Store, job: StudentJob, runtime: RuntimeSettings) -> None:
    """Train in several processes, each with its share of every step; torch.distributed averages their gradients."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    from pipeline.training.ray_session import join_ray

    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # otherwise every line appears twice
    join_ray(runtime, runtime.world_size)
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        if gpus and gpus < runtime.world_size:
            raise PipelineError(
                f"runtime.world_size is {runtime.world_size}, but there are {gpus} GPUs; a trainer has one to itself"
            )
        lines = _queue()
        given = {"lines": lines, "store": store, "job": job, "runtime": runtime, "home": Path.cwd(), "build": BUILD}
        with tempfile.TemporaryDirectory(prefix="trainers-") as notes, ThreadPoolExecutor(1) as beside:
            trainer = TorchTrainer(
                _train_share,
                train_loop_config=given,
                scaling_config=ScalingConfig(num_workers=runtime.world_size, use_gpu=bool(gpus)),
                run_config=RunConfig(storage_path=notes, failure_config=FailureConfig(max_failures=RESTARTS)),
            )
            fitting = beside.submit(trainer.fit)
            while not fitting.done():
                time.sleep(SECONDS_BETWEEN_LOOKS)
                _print_new(lines)
            _print_new(lines)
            fitting.result()
    except TrainingFailedError as error:
        causes = getattr(error, "worker_failures", {}).values()
        raise PipelineError(f"{job.name} failed: {last_line(next(iter(causes), error))}") from error
    finally:
        ray.shutdown()


def _train_share(given: dict[str, Any]) -> None:
    """Runs in one of several processes."""
    _settle(given["home"], given["build"])
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    with redirect_stdout(_Lines(given["lines"].put)):
        train_into(given["store"], given["job"], given["runtime"])


def _settle(home: Path, build: Build) -> None:
    """Change to the directory of the command, since Ray starts processes elsewhere, and reject other sources or libraries."""
    if differing := BUILD.differs_from(build):
        raise PipelineError(rejection(differing))
    if not home.is_dir():
        raise PipelineError(f"this node does not see {home}; to train students it needs the project's folder on a shared disk")
    os.chdir(home)


def _queue() -> Any:
    """A queue for the lines that other processes print; Ray's own forwarding adds process names and libraries' messages."""
    import ray
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # survives other nodes
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


def _print_new(lines: Any) -> None:
    for line in lines.get_nowait_batch(lines.qsize()):
        print(line, flush=True)


class _Lines(io.TextIOBase):
    """A standard output that passes on whole lines."""

    def __init__(self, put: Callable[[str], None]) -> None:
        self._put, self._begun = put, ""

    def write(self, text: str) -> int:
        """Keep what does not end with a newline for later."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._put(line)
        return len(text)
