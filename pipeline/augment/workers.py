"""A worker, which holds models and does the work of jobs, and the workers of a run: here this process itself."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol, TypeVar

import torch

from pipeline.augment.jobs import Done, Job, Work
from pipeline.augment.teacher import ModelFolders, ModelSet
from pipeline.config.errors import failing_as, naming
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
    named = {"teacher": folders.teacher, "surrogate": folders.surrogate, "masked_lm": folders.masked_lm}
    return {name: add_folder(store, "model", folder, name == "surrogate") for name, folder in named.items() if folder}


class Worker:
    """Models that are read from the store for the first job and kept for the next ones."""

    def __init__(self, folders: ModelFolders, keys: Mapping[str, Key], precision: Precision, store: Store) -> None:
        """``folders`` are the driver's, which errors name; ``keys`` are those of ``put_models``."""
        self._originals = {name: str(getattr(folders, name)) for name in keys}
        self._folders, self._keys, self._precision, self._store = folders, keys, precision, store

    def run(self, work: Work) -> Done:
        """Do the work of a job on one thread: faster than threads if all cores work, and the same arithmetic everywhere."""
        torch.set_num_threads(1)
        if not all(copy.is_dir() for copy in self._copies.values()):  # a cache needed the room
            del self._copies
        with naming({str(copy): self._originals[name] for name, copy in self._copies.items()}):
            return work(self._models, self._store)

    @cached_property
    def _copies(self) -> dict[str, Any]:
        titles = {name: f"the model of {original}" for name, original in self._originals.items()}
        return {name: needed(self._store, key, titles[name]).folder for name, key in self._keys.items()}

    @cached_property
    def _models(self) -> ModelSet:
        return ModelSet(replace(self._folders, **self._copies), self._precision)


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
