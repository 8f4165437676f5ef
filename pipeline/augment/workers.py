"""A worker, which holds models and does the work of jobs, and the workers of a run: here this process itself."""

import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

import torch

from pipeline.augment.jobs import Done, Job, Work
from pipeline.augment.teacher import ModelFolders, ModelSet
from pipeline.config.errors import PipelineError, last_line, naming
from pipeline.config.settings import Precision
from pipeline.store.keys import Key
from pipeline.store.store import Store, add_files, key_of_files, needed

AnyJob = TypeVar("AnyJob", bound=Job)


class Workers(Protocol):
    """Runs jobs within a ``with`` block."""

    def __enter__(self) -> "Workers": ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def run(self, jobs: Sequence[AnyJob]) -> Iterator[tuple[AnyJob, Done]]:
        """Yield each job with its result when it is finished, in any order; an error names its job."""


@dataclass(frozen=True)
class StoredModels:
    """The models of a run, which workers read from the store."""

    folders: ModelFolders
    """The driver's."""
    keys: Mapping[str, Key]
    """Of the models' entries, by the name of their field."""

    @classmethod
    def put(cls, folders: ModelFolders, store: Store) -> "StoredModels":
        """Put into the store the files of each model: a folder without its subfolders, all checkpoints of a surrogate."""
        keys = {}
        for name in ("teacher", "surrogate", "masked_lm"):
            folder: Path | None = getattr(folders, name)
            if folder is not None:
                paths = folder.rglob("*") if name == "surrogate" else folder.glob("*")
                files = {path.relative_to(folder).as_posix(): path for path in paths if path.is_file()}
                keys[name] = key_of_files("model", files)
                add_files(store, keys[name], files)
        return cls(folders, keys)

    def copies(self, store: Store) -> dict[str, Path]:
        """The folders of the models' entries."""
        named = ((name, key, f"the model of {getattr(self.folders, name)}") for name, key in self.keys.items())
        return {name: needed(store, key, title).folder for name, key, title in named}


class Worker:
    """Models that are loaded for the first job and kept for the next ones."""

    def __init__(self, stored: StoredModels, precision: Precision, store: Store) -> None:
        self._stored, self._precision, self._store = stored, precision, store

    def run(self, work: Work) -> Done:
        """Do the work of a job on one thread: faster than threads if all cores work, and the same arithmetic everywhere."""
        torch.set_num_threads(1)
        originals = {str(copy): str(getattr(self._stored.folders, name)) for name, copy in self._copies.items()}
        with naming(originals):
            return work(self._models, self._store)

    @cached_property
    def _copies(self) -> dict[str, Path]:
        return self._stored.copies(self._store)

    @cached_property
    def _models(self) -> ModelSet:
        copies: dict[str, Any] = dict(self._copies)
        return ModelSet(replace(self._stored.folders, **copies), self._precision)


class ThisProcess:
    """Runs jobs in this process, in the order given."""

    def __init__(self, folders: ModelFolders, precision: Precision, store: Store) -> None:
        self._folders, self._precision, self._store = folders, precision, store
        self._threads = torch.get_num_threads()

    def __enter__(self) -> "ThisProcess":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        torch.set_num_threads(self._threads)

    def run(self, jobs: Sequence[AnyJob]) -> Iterator[tuple[AnyJob, Done]]:
        """Like ``Workers.run``."""
        worker = self._worker
        for job in jobs:
            try:
                job.prepare(self._store)
                done = worker.run(job.work)
            except Exception as cause:
                raise failure(job.name, cause) from cause
            yield job, done

    @cached_property
    def _worker(self) -> Worker:
        with self._store.probe():  # fails before anything is computed
            return Worker(StoredModels.put(self._folders, self._store), self._precision, self._store)


def failure(name: str, cause: BaseException) -> PipelineError:
    """The error of a failed job; the traceback of an unexpected cause is printed."""
    if not isinstance(cause, PipelineError):
        print("".join(traceback.format_exception(cause)), file=sys.stderr, flush=True)
    return PipelineError(f"{name} failed: {last_line(cause)}")
