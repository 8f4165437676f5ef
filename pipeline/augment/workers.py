"""Who does the jobs: what all workers have in common, and this process as the only one. Knows the store, not Ray."""

import secrets
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeVar

import torch

from pipeline.augment.jobs import Done, Job
from pipeline.augment.model_set import ModelFolders, ModelSet
from pipeline.augment.teacher import Precision
from pipeline.config.errors import PipelineError, last_line
from pipeline.store.files import PARTIAL
from pipeline.store.store import Store

AnyJob = TypeVar("AnyJob", bound=Job)


class Workers(Protocol):
    """Does jobs within a ``with`` block."""

    def __enter__(self) -> "Workers": ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def run(self, jobs: Sequence[AnyJob]) -> Iterator[tuple[AnyJob, Done]]:
        """Give each job with what was done as it is finished, in whatever order.

        Raises:
            PipelineError: a job failed; names the job and the cause.
        """


class ThisProcess:
    """Does jobs here, one after the other, in the order given."""

    def __init__(self, folders: ModelFolders, precision: Precision, store: Store) -> None:
        self._models = ModelSet(folders, precision)
        self._store = store
        self._threads = torch.get_num_threads()

    def __enter__(self) -> "ThisProcess":
        torch.set_num_threads(1)  # as every worker, so that the bytes are the same
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        torch.set_num_threads(self._threads)

    def run(self, jobs: Sequence[AnyJob]) -> Iterator[tuple[AnyJob, Done]]:
        """Like ``Workers.run``."""
        with landmark(self._store):
            pass  # a store that cannot be written to is known before anything is computed
        for job in jobs:
            try:
                done = job.work().run(self._models, self._store)
            except Exception as cause:
                raise failure(job.name, cause) from cause
            yield job, done


def failure(name: str, cause: BaseException) -> PipelineError:
    """The sentence for a job that failed; what nobody foresaw is shown in full before it."""
    if not isinstance(cause, PipelineError):
        print("".join(traceback.format_exception(cause)), file=sys.stderr, flush=True)
    return PipelineError(f"{name} failed: {last_line(cause)}")


@contextmanager
def landmark(store: Store) -> Iterator[Path]:
    """A file in the store by which a worker sees that it has the same store.

    Raises:
        PipelineError: the store cannot be written to.
    """
    mark = store.folder / f"{PARTIAL}{secrets.token_hex(6)}-{secrets.token_hex(16)}.landmark"
    try:
        store.folder.mkdir(parents=True, exist_ok=True)
        mark.write_bytes(b"\0" * 4096)
    except OSError as cause:
        with suppress(OSError):
            mark.unlink()
        raise PipelineError(
            f"the store {store.folder} cannot be written to: {cause.strerror or cause}; "
            "make room or mend its rights, or set runtime.store to another folder"
        ) from cause
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)
