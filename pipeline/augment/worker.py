"""A worker process: it has the models on its device and does what it is given. Knows files and work; Ray only runs it.

One that does not see the driver's models or store works in a folder of its own and hands over what it made in small pieces.
"""

import shutil
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from pipeline.augment.jobs import Done, Work
from pipeline.augment.model_set import ModelFolders, ModelSet
from pipeline.augment.teacher import Precision
from pipeline.shards.manifest import SHARD_FILE, Receipt
from pipeline.store.code import BUILD, Build
from pipeline.store.hashing import key_hash, sha256_of
from pipeline.store.store import Store

PIECE_BYTES = 8 * 2**20
"""Files travel in pieces of this size, one at a time."""


@dataclass(frozen=True)
class Sight:
    """What a new worker sees of the driver's files, and what it computes with otherwise than the driver."""

    models: bool
    store: bool
    strange: list[str]
    """Modules, and libraries with their versions; empty where all are the driver's."""


class Worker:
    """One process with the models on its device."""

    def __init__(self, folders: ModelFolders, precision: Precision, store: Store) -> None:
        # One thread each: as many workers as cores are faster than threads, and the arithmetic stays the same everywhere.
        torch.set_num_threads(1)
        self._folders, self._precision, self._store = folders, precision, store
        self._models: ModelSet | None = None

    def look(self, hashes: dict[str, str], mark: str, build: Build) -> Sight:
        """Which of the driver's files are here, byte for byte; a store that is not is replaced by a folder of this worker."""
        models = all(Path(path).exists() and sha256_of(Path(path)) == wanted for path, wanted in hashes.items())
        store = Path(mark).exists()
        if not store:
            self._store = Store(self._own / "store")
        return Sight(models, store, BUILD.differs_from(build))

    def receive(self, path: str, piece: bytes) -> None:
        """Take the next piece of a file of the driver's."""
        target = self._received(Path(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("ab") as file:
            file.write(piece)

    def use_received(self) -> None:
        """From now on the models are those that were received."""
        self._folders = self._folders.at(self._received)

    def run(self, work: Work) -> Done:
        """Do a job's work."""
        if self._models is None:
            self._models = ModelSet(self._folders, self._precision)
        return work.run(self._models, self._store)

    def piece(self, receipt: Receipt, start: int) -> bytes:
        """A piece of a shard that waits in this worker's own folder."""
        with (self._store.folder_of(receipt.key) / SHARD_FILE).open("rb") as file:
            file.seek(start)
            return file.read(PIECE_BYTES)

    def forget(self, receipt: Receipt) -> None:
        """Delete a shard that was handed back."""
        self._store.remove(key_hash(receipt.key))

    def leave(self) -> None:
        """Delete what was received, if anything was."""
        if "_own" in vars(self):
            shutil.rmtree(self._own)

    @cached_property
    def _own(self) -> Path:
        return Path(tempfile.mkdtemp(prefix="augment-worker-"))

    def _received(self, path: Path) -> Path:
        """Where a file or folder of the driver's lies once it is received."""
        return self._own / "models" / path.relative_to(path.anchor)
