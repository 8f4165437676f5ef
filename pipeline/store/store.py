"""The store: results by key, each complete or absent, and verified when read."""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.config.errors import PipelineError
from pipeline.store.files import PARTIAL, complete, partial_name, write_json, written_whole
from pipeline.store.keys import Key, key_hash, sha256_of

RECEIPT = "receipt.json"
"""The file of an entry that is written last: its key, the hashes of its files, and facts."""

UNFINISHED = ".unfinished-"
"""Prefix of the folder with the checkpoints of a training; the hash of its key follows."""

KEY_FILE = "key.json"
"""The key, in the folder of an unfinished training."""

STORED_AS = "stored_as"
"""Field of a manifest, lineage or note: the name, or a list of names, of the entries that its folder uses."""

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
    """Plain values that describe the result."""

    @property
    def name(self) -> str:
        return self.folder.name

    def error(self) -> str | None:
        """Hash all files; a sentence about the first one that differs from the receipt."""
        for name, written in self.files.items():
            try:
                found = sha256_of(self.folder / name)
            except OSError as cause:
                return f"{self.name}/{name} cannot be read ({cause.strerror or cause})"
            if found != written["sha256"]:
                return f"{self.name}/{name} is damaged: its sha256 differs from its receipt's"
        return None


@dataclass(frozen=True)
class Store:
    """A folder with one folder per entry, named by the hash of its key."""

    folder: Path

    def __str__(self) -> str:
        return str(self.folder)

    def folder_of(self, key: Key) -> Path:
        return self.folder / key_hash(key)

    def get(self, key: Key) -> Entry | None:
        """The entry of a key, every file verified by its sha256; None if there is none or it is damaged.

        The receipt's modification time is updated, so that garbage collection sees the use.
        """
        with suppress(OSError):  # the store may be read-only
            os.utime(self.folder_of(key) / RECEIPT)
        entry = self.peek(key)
        return entry if entry and entry.error() is None else None

    def peek(self, key: Key) -> Entry | None:
        """The entry of a key if its files have the sizes of its receipt; hashes nothing and changes no time."""
        entry = self.named(key_hash(key))
        if entry is None:
            return None
        try:
            whole = all((entry.folder / name).stat().st_size == file["bytes"] for name, file in entry.files.items())
        except ABSENT:
            return None
        return entry if whole else None

    def has(self, key: Key) -> bool:
        """Whether there is anything under a key, intact or not."""
        return self.folder_of(key).exists()

    def fetch(self, key: Key, files: Mapping[str, Mapping[str, Any]]) -> Entry:
        """These files of an entry, named with ``sha256`` and ``bytes`` as in its receipt, in a local folder and verified.

        Raises:
            PipelineError: a file is missing or differs.
        """
        entry = Entry(self.folder_of(key), key, files)
        if error := entry.error():
            raise PipelineError(f"the store {self} cannot be trusted: {error}")
        return entry

    def named(self, name: str) -> Entry | None:
        """The entry of this name if its receipt is readable and has that name; its files are not checked."""
        try:
            receipt = json.loads((self.folder / name / RECEIPT).read_text(encoding="utf-8"))
            entry = Entry(self.folder / name, receipt["key"], receipt["files"], receipt["facts"])
            whole = all({"sha256", "bytes"} <= file.keys() for file in entry.files.values())
        except (*ABSENT, ValueError, KeyError, TypeError, AttributeError):
            return None
        return entry if whole and key_hash(entry.key) == name else None

    def place(self, entry: Entry, folder: Path, names: Mapping[str, str] | None = None) -> None:
        """Link the files of an entry into an existing folder, or copy them if the file system has no hard links.

        ``names`` maps the files to place to their new names; by default all keep their names.
        """
        for file, name in (names or {file: file for file in entry.files}).items():
            _link(entry.folder / file, folder / name)

    @contextmanager
    def put(self, key: Key, facts: Facts | None = None) -> Iterator[Path]:
        """Give an empty temporary folder for files; it becomes the entry only if the block ends without an error.

        The block may still change ``facts``. An intact entry of another process stays. The checkpoints of the training are
        deleted.
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
            while not self._settled(partial, key):
                with suppress(FileNotFoundError):
                    self.remove(target.name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(self._unfinished(key), ignore_errors=True)

    def _settled(self, partial: Path, key: Key) -> bool:
        """Rename a finished folder to its place; False if a damaged entry is there."""
        try:
            partial.rename(self.folder_of(key))
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            there = self.peek(key)
            return there is not None and there.error() is None
        return True

    def obtain(self, key: Key, title: str, make: Callable[[], None]) -> Entry:
        """The entry of a key; ``make`` puts it if it is absent, in only one of several processes that need it."""
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
    def probe(self) -> Iterator[str]:
        """A token by which another process finds out with ``sees`` whether it has the same store.

        Raises:
            PipelineError: the store cannot be written to.
        """
        file = self.folder / f"{PARTIAL}{secrets.token_hex(6)}-{secrets.token_hex(16)}.probe_file"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"\0" * 4096)
        except OSError as cause:
            with suppress(OSError):
                file.unlink()
            raise PipelineError(
                f"the store {self} cannot be written to: {cause.strerror or cause}; "
                "free some space or correct its permissions, or set runtime.store to another folder"
            ) from cause
        try:
            yield file.name
        finally:
            file.unlink(missing_ok=True)

    def sees(self, token: str) -> bool:
        """Whether the token of ``probe`` comes from this store."""
        return (self.folder / token).exists()

    @contextmanager
    def lock(self, key: Key, title: str) -> Iterator[None]:
        """Make other processes of this machine wait if they need the same entry; rejects a store that is not writable."""
        lock = FileLock(self.lock_file(key_hash(key)))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            print(f"{title}: another process trains this; waiting for it", flush=True)
            lock.acquire()
        except OSError as cause:
            raise PipelineError(f"runtime.store: {self.folder} cannot be written to: {cause.strerror or cause}") from cause
        try:
            yield
        finally:
            lock.release()

    def lock_file(self, name: str) -> Path:
        """The lock file of an entry; it is never deleted, since that would let two waiting processes in."""
        return self.folder / f"{name}.lock"

    def unfinished(self, key: Key) -> Path:
        """A folder for the checkpoints of a training until its entry is put."""
        folder = self._unfinished(key)
        if not (folder / KEY_FILE).is_file():
            write_json(folder / KEY_FILE, key)
        return folder

    def _unfinished(self, key: Key) -> Path:
        return self.folder / f"{UNFINISHED}{key_hash(key)}"

    def remove(self, name: str) -> None:
        """Delete an entry, or any other file or folder of the store; for other processes it disappears at once."""
        doomed = self.folder / name
        aside = doomed if name.startswith(PARTIAL) else partial_name(doomed)
        doomed.rename(aside)
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink(missing_ok=True)


@contextmanager
def writing_to(store: Store) -> Iterator[None]:
    """Turn an ``OSError`` of the block, such as a full disk, into a ``PipelineError`` that names the store."""
    try:
        yield
    except OSError as cause:
        raise PipelineError(f"cannot write to the store {store}: {cause.strerror or cause}") from cause


def add_files(store: Store, key: Key, files: Mapping[str, Path], facts: Facts | None = None) -> None:
    """Put existing files, by their names in the entry, unless an intact entry is there; links them where possible.

    Raises:
        PipelineError: the store cannot be written to.
    """
    if store.get(key) is None:
        with writing_to(store), store.put(key, facts) as folder:
            for name, source in files.items():
                _link(source.resolve(), folder / name)


def add_folder(store: Store, content: str, folder: Path, below: bool = False) -> Key:
    """Put the files of a folder, with ``below`` those of its subfolders too, under a key of their names and bytes."""
    paths = [path for path in (folder.rglob("*") if below else folder.glob("*")) if path.is_file()]
    files = {path.relative_to(folder).as_posix(): path for path in sorted(paths)}
    key: Key = {"content": content, "files": {name: sha256_of(path) for name, path in files.items()}}
    add_files(store, key, files)
    return key


def needed(store: Store, key: Key, title: str) -> Entry:
    """An entry that another process has put; raises ``PipelineError`` with its title if it is not there."""
    if (entry := store.get(key)) is None:
        raise PipelineError(f"{title} cannot be read from the store {store}; run the stage again")
    return entry


def _link(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it if the file system has no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        with written_whole(target) as partial:
            shutil.copyfile(source, partial)


def stored_as(*keys: Key) -> list[str]:
    """The value of ``STORED_AS`` for entries with these keys, sorted."""
    return sorted({key_hash(key) for key in keys})


def write_stored_as(folder: Path, entry: Entry) -> None:
    """Write the note of a folder that uses one entry."""
    write_json(folder / STORED_AS_FILE, {STORED_AS: entry.name})
