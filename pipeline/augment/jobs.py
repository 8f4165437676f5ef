"""Jobs and work: what the driver hands out and what a worker does with it. Knows the store, not what is computed.

The driver holds jobs, which are small; it reads a job's rows only when a worker takes it, and they travel with it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.augment.teacher import ModelSet
from pipeline.config.corpus import Split
from pipeline.config.errors import PipelineError
from pipeline.shards.manifest import SHARD_FILE, Receipt
from pipeline.store.keys import Key
from pipeline.store.store import Facts, Store


@dataclass(frozen=True)
class Done:
    """What a worker says of finished work."""

    result: Any
    """A receipt, or what else the work gives."""
    notes: tuple[str, ...] = ()
    """What a person should know and no product says."""


class Work(Protocol):
    """What a worker does; it travels with all that it needs beside the models."""

    def run(self, models: ModelSet, store: Store) -> Done:
        """Do it; a shard goes into the store."""


class Job(Protocol):
    """What the driver has to give away."""

    @property
    def name(self) -> str:
        """What a person calls it, in progress lines and errors."""

    def work(self) -> Work:
        """Read what a worker needs for it."""


class ShardJob(Job, Protocol):
    """A job that finishes one shard in the store."""

    @property
    def key(self) -> Key:
        """What decides the shard's bytes."""

    @property
    def split(self) -> Split: ...

    @property
    def partition(self) -> int: ...

    @property
    def variant(self) -> int: ...


def kept(store: Store, key: Key, write: Callable[[Path], Receipt]) -> Receipt:
    """Put a shard that ``write`` writes into the store.

    Raises:
        PipelineError: the store cannot be written to; nothing half-written is left.
    """
    facts: Facts = {}
    try:
        with store.put(key, facts) as folder:
            receipt = write(folder / SHARD_FILE)
            facts |= receipt.facts()
    except OSError as cause:
        raise PipelineError(f"the store {store.folder} does not take it: {cause.strerror or cause}") from cause
    return receipt
