"""The store: results by key, each whole or absent, verified when read, so that nothing computed is lost or mixed."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.store.files import PARTIAL, complete, partial_name, write_json, written_whole
from pipeline.store.hashing import Key, key_hash, sha256_of

RECEIPT = "receipt.json"
"""In the folder of an entry: its key, its files with their hashes, and facts; written last."""

UNFINISHED = ".unfinished-"
"""Prefix of the folder with the checkpoints of a training; the hash of its key follows."""

KEY_FILE = "key.json"
"""In the folder of an unfinished training: its key."""

LOCK = ".lock"
"""What follows the hash of a key in the name of its lock file."""

STORED_AS = "stored_as"
"""In a manifest, lineage or note of a folder made from the store: the name, or a list of names, of the entries it uses."""

STORED_AS_FILE = "stored_as.json"
"""The note of a folder that has neither manifest nor lineage."""

Facts = dict[str, Any]

ABSENT = (FileNotFoundError, NotADirectoryError)


@dataclass(frozen=True)
class Entry:
    """A finished result."""

    folder: Path
    key: Key
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """``sha256`` and ``bytes`` of each file, by its path in the folder."""
    facts: Facts = field(default_factory=dict)
    """What else is known of the result, as plain values."""

    @property
    def name(self) -> str:
        """The hash of the key."""
        return self.folder.name

    def path(self, file: str) -> Path:
        """Where a file of the entry is."""
        return self.folder / file

    def error(self) -> str | None:
        """Hash all files; a sentence on the first one that is not as it was written."""
        for name, written in self.files.items():
            try:
                found = sha256_of(self.path(name))
            except OSError as cause:
                return f"{self.name}/{name} cannot be read ({cause.strerror or cause})"
            if found != written["sha256"]:
                return f"{self.name}/{name} has other bytes than when it was written (its sha256 differs from its receipt's)"
        return None


@dataclass(frozen=True)
class Store:
    """A folder with one folder of each entry, named by the hash of its key."""

    folder: Path

    def folder_of(self, key: Key) -> Path:
        """Where the entry of a key is, once it is finished."""
        return self.folder / key_hash(key)

    def get(self, key: Key) -> Entry | None:
        """The entry of a key, every file verified by its sha256; None if there is none or it is damaged.

        The time of the receipt becomes that of this call, so that garbage collection sees the use.
        """
        with suppress(OSError):  # a store that somebody else owns is read all the same
            os.utime(self.folder_of(key) / RECEIPT)
        entry = self.peek(key)
        return entry if entry and entry.error() is None else None

    def peek(self, key: Key) -> Entry | None:
        """The entry of a key if its files have the sizes of its receipt; hashes nothing and leaves no trace."""
        entry = self.named(key_hash(key))
        if entry is None:
            return None
        try:
            whole = all(entry.path(name).stat().st_size == file["bytes"] for name, file in entry.files.items())
        except ABSENT:
            return None
        return entry if whole else None

    def named(self, name: str) -> Entry | None:
        """The entry of this name, if its receipt can be read and is that of the name; its files are not looked at."""
        try:
            receipt = json.loads((self.folder / name / RECEIPT).read_text(encoding="utf-8"))
            entry = Entry(self.folder / name, receipt["key"], receipt["files"], receipt["facts"])
            whole = all({"sha256", "bytes"} <= file.keys() for file in entry.files.values())
        except (*ABSENT, ValueError, KeyError, TypeError, AttributeError):
            return None
        return entry if whole and key_hash(entry.key) == name else None

    def place(self, entry: Entry, folder: Path, names: Mapping[str, str] | None = None) -> None:
        """Put files of an entry into a folder: hard links where the file system has them, else copies.

        Args:
            entry: of this store.
            folder: must exist.
            names: of the files to place, with their names there; left out, all under their own names.
        """
        for file, name in (names or {file: file for file in entry.files}).items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(entry.path(file), target)
            except OSError:
                with written_whole(target) as partial:
                    shutil.copyfile(entry.path(file), partial)

    @contextmanager
    def put(self, key: Key, facts: Facts | None = None) -> Iterator[Path]:
        """Give an empty temporary folder for files; it becomes the entry only if the block ends without an error.

        An intact entry that another process has put meanwhile stays. The checkpoints of the unfinished training are deleted.

        Args:
            key: decides all files.
            facts: plain values for the receipt; the block may complete them.
        """
        target = self.folder_of(key)
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = partial_name(target)
        partial.mkdir()
        try:
            yield partial
            files = {
                path.relative_to(partial).as_posix(): {"sha256": sha256_of(path), "bytes": path.stat().st_size}
                for path in sorted(partial.rglob("*"))
                if path.is_file()
            }
            write_json(partial / RECEIPT, {"key": key, "files": files, "facts": facts or {}})
            complete(partial)
            self._settle(partial, key)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(self._unfinished(key), ignore_errors=True)

    def obtain(self, key: Key, title: str, make: Callable[[], None]) -> Entry:
        """The entry of a key, made by ``make`` if it is not there; of several processes that want it, one makes it.

        Args:
            key: of the entry.
            title: what progress lines call it.
            make: puts the entry.
        """
        if (entry := self.get(key)) is None:
            with self.lock(key, title):
                if (entry := self.get(key)) is None:
                    make()
                    made = self.get(key)
                    assert made is not None, "an entry that was just put is there"
                    return made
        print(f"{title}: finished before, taken from {entry.folder}", flush=True)
        return entry

    @contextmanager
    def lock(self, key: Key, title: str) -> Iterator[None]:
        """Keep other processes of this machine from spec the same entry; who comes second waits."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.lock_file(key_hash(key)))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"{title}: another process trains this; waiting for it", flush=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def lock_file(self, name: str) -> Path:
        """The lock file of an entry; it stays, since deleting it while a process waits would let two in."""
        return self.folder / f"{name}{LOCK}"

    def unfinished(self, key: Key) -> Path:
        """A folder for the checkpoints of a training until its entry is put."""
        folder = self._unfinished(key)
        if not (folder / KEY_FILE).is_file():
            write_json(folder / KEY_FILE, key)
        return folder

    def remove(self, name: str) -> None:
        """Delete an entry, or whatever the store has under this name, at once as far as others see."""
        doomed = self.folder / name
        aside = partial_name(doomed) if not name.startswith(PARTIAL) else doomed
        doomed.rename(aside)
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink(missing_ok=True)

    def _unfinished(self, key: Key) -> Path:
        return self.folder / f"{UNFINISHED}{key_hash(key)}"

    def _settle(self, partial: Path, key: Key) -> None:
        """Rename a finished folder to its place; an intact entry there stays, a damaged one goes."""
        target = self.folder_of(key)
        while True:
            try:
                partial.rename(target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                there = self.peek(key)
                if there is not None and there.error() is None:
                    return
                with suppress(FileNotFoundError):
                    self.remove(target.name)
            else:
                return


def stored_as(*keys: Key) -> list[str]:
    """The value of ``STORED_AS`` for entries with these keys, sorted."""
    return sorted({key_hash(key) for key in keys})


def write_stored_as(folder: Path, entry: Entry) -> None:
    """Write the note of a folder that uses one entry."""
    write_json(folder / STORED_AS_FILE, {STORED_AS: entry.name})
