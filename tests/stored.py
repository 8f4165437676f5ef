"""A store with results in it, and folders of products that use it."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.shards.manifest import SHARD_FILE, Manifest, Receipt
from pipeline.shards.reader import Shards
from pipeline.store.collect import STORED_AS
from pipeline.store.files import write_json
from pipeline.store.keys import Key, key_hash
from pipeline.store.store import Entry, Store

HOUR, DAY = 3600.0, 24 * 3600.0


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Where folders of products are published."""
    return tmp_path / "data"


@pytest.fixture
def store(data: Path) -> Store:
    """An empty store among them."""
    found = Store(data / "store")
    found.folder.mkdir(parents=True)
    return found


def shard_path(store: Store, key: Key) -> Path:
    """Where the store has the shard of a key."""
    return store.folder_of(key) / SHARD_FILE


def found(store: Store, key: Key) -> Receipt | None:
    """The receipt of a shard that the store has and that is intact."""
    entry = store.get(key)
    return None if entry is None else Receipt.of(entry)


@dataclass(frozen=True)
class RemoteStore(Store):
    """A folder as a store whose files have to be fetched, which no forked process may do."""

    remote = True
    fetched: list[Key] = field(default_factory=list)
    wait: Callable[[Key], object] = bool  # before a file is fetched
    process: int = field(default_factory=os.getpid)

    def fetch(self, key: Key, files: Mapping[str, Mapping[str, Any]]) -> Entry:
        assert os.getpid() == self.process, "a forked process fetches"
        self.wait(key)
        self.fetched.append(key)
        return super().fetch(key, files)


def only_in(store: Store, folder: Path) -> Shards:
    """The set of a folder, of which the folder keeps the manifest only."""
    for entry in Manifest.read(folder).shards:
        shard_path(store, entry.receipt.key).parent.mkdir(parents=True)
        (folder / entry.file).rename(shard_path(store, entry.receipt.key))
    return Shards(folder, store)


def verified(folder: Path) -> Manifest:
    """The manifest of a set whose every shard is opened."""
    shards = Shards(folder)
    shards.rows_of(*shards.manifest.shards).open()
    return shards.manifest


def flip_byte(path: Path) -> None:
    """Change one bit in the middle of a file, which may be a hard link."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


def shards_in(store: Path) -> list[Path]:
    """All shards of a store, sorted."""
    return sorted(store.glob(f"*/{SHARD_FILE}"))


def add(store: Store, content: str = "soft_labels", number: int = 0, **facts: Any) -> Key:
    """An entry with a file of 1,000 bytes."""
    key = {"content": content, "teacher": "ab" * 32, "number": number}
    with store.put(key, facts) as folder:
        (folder / "model.bin").write_bytes(bytes(1000))
    return key


def publish(folder: Path, store: Store, keys: Sequence[Key], file: str = "manifest.json") -> Path:
    """A folder of products that uses these entries, hard-linked as the stages leave it."""
    folder.mkdir(parents=True)
    for number, key in enumerate(keys):
        entry = store.named(key_hash(key))
        assert entry is not None
        store.place(entry, folder, {"model.bin": f"{number}.bin"})
    write_json(folder / file, {STORED_AS: [key_hash(key) for key in keys]})
    return folder


def begin(store: Store, key: Key) -> Path:
    """The checkpoints of a training that was killed."""
    folder = store.unfinished(key)
    (folder / "checkpoint-8").mkdir()
    (folder / "checkpoint-8" / "optimizer.pt").write_bytes(bytes(500))
    return folder


def age(path: Path, seconds: float) -> None:
    """Everything in a folder was last touched so long ago."""
    then = time.time() - seconds
    for one in [*path.rglob("*"), path]:
        os.utime(one, (then, then))
