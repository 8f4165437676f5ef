"""Workers that run jobs: this process, or a process that Ray starts."""

import secrets
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeVar

import torch

from pipeline.augment.jobs import Done, Job, Work
from pipeline.augment.teacher import ModelFolders, ModelSet
from pipeline.config.errors import PipelineError, last_line
from pipeline.config.settings import Precision
from pipeline.shards.manifest import SHARD_FILE, Receipt
from pipeline.store.files import PARTIAL
from pipeline.store.keys import BUILD, Build, key_hash, sha256_of
from pipeline.store.store import Store

AnyJob = TypeVar("AnyJob", bound=Job)

PIECE_BYTES = 8 * 2**20
"""Files are transferred in pieces of this size, one at a time."""


class Workers(Protocol):
    """Runs jobs within a ``with`` block."""

    def __enter__(self) -> "Workers": ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def run(self, jobs: Sequence[AnyJob]) -> Iterator[tuple[AnyJob, Done]]:
        """Yield each job with its result when it is finished, in any order; an error names its job."""


class ThisProcess:
    """Runs jobs in this process, in the order given."""

    def __init__(self, folders: ModelFolders, precision: Precision, store: Store) -> None:
        self._models = ModelSet(folders, precision)
        self._store = store
        self._threads = torch.get_num_threads()

    def __enter__(self) -> "ThisProcess":
        torch.set_num_threads(1)  # as in every worker, so that the bytes are the same
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        torch.set_num_threads(self._threads)

    def run(self, jobs: Sequence[AnyJob]) -> Iterator[tuple[AnyJob, Done]]:
        """Like ``Workers.run``."""
        with probe_file(self._store):
            pass  # fails before anything is computed
        for job in jobs:
            try:
                done = job.work()(self._models, self._store)
            except Exception as cause:
                raise failure(job.name, cause) from cause
            yield job, done


def failure(name: str, cause: BaseException) -> PipelineError:
    """The error of a failed job; the traceback of an unexpected cause is printed."""
    if not isinstance(cause, PipelineError):
        print("".join(traceback.format_exception(cause)), file=sys.stderr, flush=True)
    return PipelineError(f"{name} failed: {last_line(cause)}")


@contextmanager
def probe_file(store: Store) -> Iterator[Path]:
    """A file in the store by which a worker recognises the same store; fails if the store cannot be written to."""
    mark = store.folder / f"{PARTIAL}{secrets.token_hex(6)}-{secrets.token_hex(16)}.probe_file"
    try:
        store.folder.mkdir(parents=True, exist_ok=True)
        mark.write_bytes(b"\0" * 4096)
    except OSError as cause:
        with suppress(OSError):
            mark.unlink()
        raise PipelineError(
            f"the store {store.folder} cannot be written to: {cause.strerror or cause}; "
            "free some space or correct its permissions, or set runtime.store to another folder"
        ) from cause
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)


@dataclass(frozen=True)
class NodeVisibility:
    """Which of the driver's files a new worker sees, and how its code and libraries differ."""

    models: bool
    store: bool
    differences: list[str]
    """Modules, and libraries with their versions."""


class Worker:
    """A worker process; if it does not see the driver's models or store it uses a folder of its own and returns its shards."""

    def __init__(self, folders: ModelFolders, precision: Precision, store: Store) -> None:
        # One worker per core is faster than threads, and keeps the arithmetic the same everywhere.
        torch.set_num_threads(1)
        self._folders, self._precision, self._store = folders, precision, store
        self._models: ModelSet | None = None

    def look(self, hashes: dict[str, str], mark: str, build: Build) -> NodeVisibility:
        """Compare with the driver; a store that is not visible is replaced by a folder of its own."""
        models = all(Path(path).exists() and sha256_of(Path(path)) == wanted for path, wanted in hashes.items())
        store = Path(mark).exists()
        if not store:
            self._store = Store(self._own / "store")
        return NodeVisibility(models, store, BUILD.differs_from(build))

    def receive(self, path: str, piece: bytes) -> None:
        """Append a piece to the copy of one of the driver's files."""
        target = self._received(Path(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("ab") as file:
            file.write(piece)

    def use_received(self) -> None:
        """Use the received copies of the models."""
        self._folders = self._folders.at(self._received)

    def run(self, work: Work) -> Done:
        if self._models is None:
            self._models = ModelSet(self._folders, self._precision)
        return work(self._models, self._store)

    def piece(self, receipt: Receipt, start: int) -> bytes:
        """A piece of a shard in this worker's own folder."""
        with (self._store.folder_of(receipt.key) / SHARD_FILE).open("rb") as file:
            file.seek(start)
            return file.read(PIECE_BYTES)

    def forget(self, receipt: Receipt) -> None:
        """Delete a shard that the driver has fetched."""
        self._store.remove(key_hash(receipt.key))

    def leave(self) -> None:
        """Delete this worker's own folder, if it has one."""
        if "_own" in vars(self):
            shutil.rmtree(self._own)

    @cached_property
    def _own(self) -> Path:
        return Path(tempfile.mkdtemp(prefix="augment-worker-"))

    def _received(self, path: Path) -> Path:
        """The copy of one of the driver's files or folders."""
        return self._own / "models" / path.relative_to(path.anchor)
