"""A worker, which holds models and does the work of jobs, and the workers of a run: here this process itself."""

import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from pipeline.augment.jobs import Done, Job, Work
from pipeline.augment.teacher import ModelFolders, ModelSet
from pipeline.config.errors import PipelineError, last_line, naming
from pipeline.config.settings import Precision
from pipeline.store.keys import Key
from pipeline.store.store import Store, add_folder, needed

AnyJob = TypeVar("AnyJob", bound=Job)


class Workers(Protocol):
    """Runs jobs until it is closed."""

    def run(self, jobs: Sequence[AnyJob]) -> Iterator[tuple[AnyJob, Done]]:
        """Yield each job with its result when it is finished, in any order; an error names its job."""

    def close(self) -> None: ...


def put_models(folders: ModelFolders, store: Store) -> dict[str, Key]:
    """Put the models into the store; their keys, by the name of their field."""
    found = {name: getattr(folders, name) for name in ("teacher", "surrogate", "masked_lm")}
    given = {name: folder for name, folder in found.items() if folder is not None}
    return {name: add_folder(store, "model", folder, below=name == "surrogate") for name, folder in given.items()}


class Worker:
    """Models that are read from the store for the first job and kept for the next ones."""

    def __init__(self, folders: ModelFolders, keys: Mapping[str, Key], precision: Precision, store: Store) -> None:
        """``folders`` are the driver's, which errors name; ``keys`` are those of ``put_models``."""
        self._originals = {name: str(getattr(folders, name)) for name in keys}
        self._folders, self._keys, self._precision, self._store = folders, keys, precision, store

    def check(self, node: Callable[[], None]) -> None:
        """Let ``node`` reject the machine of this process."""
        node()

    def run(self, work: Work) -> Done:
        """Do the work of a job on one thread: faster than threads if all cores work, and the same arithmetic everywhere."""
        torch.set_num_threads(1)
        if not all(copy.is_dir() for copy in self._copies.values()):  # a cache needed the room
            del self._copies
        with naming({str(copy): self._originals[name] for name, copy in self._copies.items()}):
            return work(self._models, self._store)

    @cached_property
    def _copies(self) -> dict[str, Path]:
        named = ((name, key, f"the model of {self._originals[name]}") for name, key in self._keys.items())
        return {name: needed(self._store, key, title).folder for name, key, title in named}

    @cached_property
    def _models(self) -> ModelSet:
        copies: dict[str, Any] = dict(self._copies)
        return ModelSet(replace(self._folders, **copies), self._precision)


class ThisProcess:
    """Runs jobs in this process, in the order given."""

    def __init__(self, folders: ModelFolders, precision: Precision, store: Store) -> None:
        self._folders, self._precision, self._store = folders, precision, store
        self._threads = torch.get_num_threads()

    def run(self, jobs: Sequence[AnyJob]) -> Iterator[tuple[AnyJob, Done]]:
        """Like ``Workers.run``."""
        worker = self._worker
        for job in jobs:
            with failing_as(job.name):
                job.prepare(self._store)
                done = worker.run(job.work)
            yield job, done

    def close(self) -> None:
        """Restore the number of threads."""
        torch.set_num_threads(self._threads)

    @cached_property
    def _worker(self) -> Worker:
        with self._store.probe():  # fails before anything is computed
            return Worker(self._folders, put_models(self._folders, self._store), self._precision, self._store)


@contextmanager
def failing_as(name: str) -> Iterator[None]:
    """Turn an error of the block into that of the job of this name; the traceback of an unexpected one is printed."""
    try:
        yield
    except Exception as cause:
        if not isinstance(cause, PipelineError):
            print("".join(traceback.format_exception(cause)), file=sys.stderr, flush=True)
        raise PipelineError(f"{name} failed: {last_line(cause)}") from cause
