"""Where students are trained: in this process, in several that share one student, or several students at once on Ray."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joblib
import torch

from pipeline.config.errors import PipelineError, last_line
from pipeline.config.settings import RuntimeSettings
from pipeline.distill.jobs import StoredJob, StudentJob, train_into
from pipeline.store.keys import BUILD, Build, Key, key_hash, rejection
from pipeline.store.store import Store, open_store

if TYPE_CHECKING:
    from pipeline.training.ray_session import NodeCheck  # imports Ray

RESTARTS = 3
"""Most restarts of processes that train a student after one of them died."""


def obtain(job: StudentJob, runtime: RuntimeSettings, out: Path, cost: Path) -> dict[str, Any]:
    """Put a student at ``out``, from the store or trained now, and the cost of its training at ``cost``; returns its lineage.

    Raises:
        PipelineError: it cannot be trained; names what differs, or the cause.
    """
    store, key = open_store(runtime), job.key()
    train = train_into if runtime.world_size == 1 else _train_together
    entry = store.obtain(key, job.title, lambda: train(store, job, runtime))
    if job.key() != key:
        raise PipelineError(f"{job.title}: teacher, soft labels or variants changed during the training; run the stage again")
    return job.publish(store, entry, out, cost)


def train_all(jobs: Sequence[StudentJob], runtime: RuntimeSettings) -> None:
    """Train all students that the store lacks, as many at once as there are GPUs, or cores if there are none.

    Raises:
        PipelineError: some cannot be trained; the others are finished first.
    """
    import ray

    from pipeline.training.ray_session import NodeCheck, join_ray, one_place

    store = open_store(runtime)
    keys = [job.key() for job in jobs]
    lacking = [(key_hash(key), job) for key, job, held in zip(keys, jobs, store.find(keys), strict=True) if held is None]
    missing = list(dict(lacking).values())
    there, twins = len(jobs) - len(lacking), len(lacking) - len(missing)
    note = f", {twins} identical to another" if twins else ""
    print(f"distill: {len(jobs)} students, {there} in the store, {len(missing)} to train{note}", flush=True)
    if not missing:
        return
    errors, stored, known = [], [], dict[str, Key]()
    for job in missing:
        stored.append(StoredJob.put(job, store, known))
        known |= stored[-1].keys
    with store.probe() as token:
        join_ray(runtime.workers or int(joblib.cpu_count()), log_to_driver=True)
        try:
            task = ray.remote(_train_one).options(**one_place()[0], max_retries=RESTARTS)
            promises = [task.remote(job, runtime, NodeCheck(store, token, BUILD)) for job in stored]
            for job, promise in zip(missing, promises, strict=True):
                try:
                    ray.get(promise)
                except ray.exceptions.RayError as error:
                    errors.append(f"{job.name} ({job.soft_labels.name}): {last_line(getattr(error, 'cause', None) or error)}")
        finally:
            ray.shutdown()
    if errors:
        raise PipelineError("\n  - ".join([f"{len(errors)} of {len(missing)} students were not trained:", *errors]))


def _train_one(stored: StoredJob, runtime: RuntimeSettings, check: "NodeCheck") -> None:
    """Runs in a process of its own, on any node."""
    check()
    with stored.opened(check.store) as job:
        check.store.obtain(job.key(), job.title, lambda: train_into(check.store, job, runtime))


def _train_together(store: Store, job: StudentJob, runtime: RuntimeSettings) -> None:
    """Train in several processes, each with its share of every step; torch.distributed averages their gradients."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    from pipeline.training.ray_session import join_ray

    job.sources(store)  # an error in them is raised here, not by every process
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # otherwise every line appears twice
    join_ray(runtime.world_size, log_to_driver=True)
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        if gpus and gpus < runtime.world_size:
            raise PipelineError(f"runtime.world_size: {runtime.world_size} processes need a GPU each, and there are {gpus}")
        given = {"store": store, "job": job, "runtime": runtime, "home": Path.cwd(), "build": BUILD}
        with tempfile.TemporaryDirectory(prefix="trainers-") as notes:
            TorchTrainer(
                _train_share,
                train_loop_config=given,
                scaling_config=ScalingConfig(num_workers=runtime.world_size, use_gpu=bool(gpus)),
                run_config=RunConfig(storage_path=notes, failure_config=FailureConfig(max_failures=RESTARTS)),
            ).fit()
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
    train_into(given["store"], given["job"], given["runtime"])


def _settle(home: Path, build: Build) -> None:
    """Change to the directory of the command, since Ray starts processes elsewhere, and reject other sources or libraries."""
    if differing := BUILD.differs_from(build):
        raise PipelineError(rejection(differing))
    if not home.is_dir():
        raise PipelineError(f"this node has no {home}; training students needs the project's folder on a shared disk")
    os.chdir(home)
