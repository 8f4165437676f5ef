"""The store: results by key, each complete or absent, and verified when read."""

import errno
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from filelock import FileLock, Timeout

from pipeline.config.errors import PipelineError
from pipeline.config.settings import RuntimeSettings
from pipeline.store.files import PARTIAL, complete, link, partial_name, write_json
from pipeline.store.keys import Key, key_hash, sha256_of

RECEIPT = "receipt.json"
"""The file of an entry that is written last: its key, the hashes of its files, and facts."""

UNFINISHED = ".unfinished-"
"""Prefix of the folder with the checkpoints of a training; the hash of its key follows."""

NAME = re.compile("[0-9a-f]{32}")
"""Names of entries."""

SECONDS_UNFINISHED = 3600.0
"""Partial and unfinished folders younger than this may belong to a run in progress."""

KEY_FILE = "key.json"
"""The key, in the folder of an unfinished training."""

Facts = dict[str, Any]

Files = Mapping[str, Mapping[str, Any]]
"""``sha256`` and ``bytes`` of each file of an entry, by its path in the entry's folder."""

ABSENT = (FileNotFoundError, NotADirectoryError)


@dataclass(frozen=True)
class Entry:
    """A finished result."""

    folder: Path
    key: Key
    files: Files = field(default_factory=dict)
    facts: Facts = field(default_factory=dict)
    """Plain values that describe the result."""

    @property
    def name(self) -> str:
        return self.folder.name

    def receipt(self) -> dict[str, Any]:
        """The content of its ``RECEIPT``."""
        return {"key": self.key, "files": self.files, "facts": self.facts}

    def error(self) -> str | None:
        """Hash all files; a sentence about the first one that differs from the receipt."""
        for name, written in self.files.items():
            try:
                found = sha256_of(self.folder / name)
            except OSError as cause:
                return f"{key_hash(self.key)}/{name} cannot be read ({cause.strerror or cause})"
            if found != written["sha256"]:
                return f"{key_hash(self.key)}/{name} is damaged: its sha256 differs from its receipt's"
        return None


class Size(NamedTuple):
    """Size and age of an entry, or of the rest of an unfinished one."""

    bytes: int
    shared: int
    """Bytes with a hard link in another folder, which deletion does not free."""
    touched: float
    """Seconds since the epoch when it was last written or read."""


@dataclass(frozen=True)
class Store:
    """A folder with one folder per entry, named by the hash of its key. ``BucketStore`` has the same methods."""

    folder: Path

    remote: ClassVar[bool] = False
    """Whether ``fetch`` has to copy files; outputs then hold the manifest only."""

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
        return entry if entry and self.is_whole(entry) else None

    def is_whole(self, entry: Entry) -> bool:
        """Whether the files of an entry have the sizes of its receipt."""
        try:
            return all((entry.folder / name).stat().st_size == file["bytes"] for name, file in entry.files.items())
        except ABSENT:
            return False

    def find(self, keys: Sequence[Key]) -> list[Entry | None]:
        """``get`` of many keys."""
        with ThreadPoolExecutor() as threads:  # hashing releases the interpreter's lock
            return list(threads.map(self.get, keys))

    def peek_all(self, keys: Sequence[Key]) -> list[Entry | None]:
        """``peek`` of many keys."""
        return [self.peek(key) for key in keys]

    def has(self, key: Key) -> bool:
        """Whether there is anything under a key, intact or not."""
        return self.folder_of(key).exists()

    def fetch(self, key: Key, files: Files) -> Entry:
        """These files of an entry in a local folder, verified.

        Raises:
            PipelineError: a file is missing or differs.
        """
        entry = Entry(self.folder_of(key), key, files)
        if error := entry.error():
            raise PipelineError(f"the store {self} cannot be trusted: {error}")
        return entry

    def check_fits(self, size: int, what: str) -> None:
        """Nothing to check: what is read is where it is."""

    def named(self, name: str) -> Entry | None:
        """The entry of this name if its receipt is readable and has that name; its files are not checked."""
        try:
            return entry_of(self.folder / name, (self.folder / name / RECEIPT).read_bytes())
        except ABSENT:
            return None

    def error_of(self, entry: Entry) -> str | None:
        """Hash all files of an entry; a sentence about the first one that differs from the receipt."""
        return entry.error()

    def place(self, entry: Entry, folder: Path, names: Mapping[str, str] | None = None) -> None:
        """Link the files of an entry into an existing folder, or copy them if the file system has no hard links.

        ``names`` maps the files to place to their new names; by default all keep their names.
        """
        for file, name in (names or {file: file for file in entry.files}).items():
            link(entry.folder / file, folder / name)

    @contextmanager
    def put(self, key: Key, facts: Facts | None = None) -> Iterator[Path]:
        """Give an empty temporary folder for files; it becomes the entry only if the block ends without an error.

        The block may still change ``facts``. An intact entry of another process stays. The checkpoints of the training are
        deleted.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = partial_name(self.folder_of(key))
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
            self._keep(partial, key, files)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(self._unfinished(key), ignore_errors=True)

    def _keep(self, partial: Path, key: Key, files: Files) -> None:
        """Make a finished folder the entry of its key, unless an intact one is there."""
        while not self._settled(partial, key):
            with suppress(FileNotFoundError):
                shutil.rmtree(_aside(self.folder_of(key)), ignore_errors=True)

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
                    if made is None:
                        raise PipelineError(f"{title}: the store {self} lost it while it was written; run the stage again")
                    return made
        print(f"{title}: finished before, taken from {self}/{entry.name}", flush=True)
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
            raise PipelineError(f"the store's folder {self.folder} cannot be written to: {cause.strerror or cause}") from cause
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

    def sizes(self) -> dict[str, Size]:
        """Size and age of everything in the store, by name."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        return {name: size for name in names if (size := self.size(name))}

    def size(self, name: str) -> Size | None:
        """Size and age of one file or folder of the store; None if it is gone, and files may vanish meanwhile."""
        size, shared, touched = 0, 0, 0.0
        below = (Path(folder, one) for folder, folders, files in os.walk(self.folder / name) for one in folders + files)
        for path in (self.folder / name, *below):
            with suppress(FileNotFoundError):
                found = path.stat()
                touched = max(touched, found.st_mtime)
                if stat.S_ISREG(found.st_mode):
                    size, shared = size + found.st_size, shared + (found.st_size if found.st_nlink > 1 else 0)
        return Size(size, shared, touched) if touched else None

    def remove(self, name: str) -> None:
        """Delete an entry, or any other file or folder of the store; for other processes it disappears at once."""
        aside = self.folder / name if name.startswith(PARTIAL) else _aside(self.folder / name)
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink(missing_ok=True)


def _aside(path: Path) -> Path:
    """Rename a file or folder to a temporary name, so that it disappears at once."""
    return path.rename(partial_name(path))


def entry_of(folder: Path, receipt: bytes) -> Entry | None:
    """The entry of a receipt; None if the receipt is damaged or not that of the folder's name."""
    try:
        content = json.loads(receipt)
        entry = Entry(folder, content["key"], content["files"], content["facts"])
        whole = all({"sha256", "bytes"} <= file.keys() for file in entry.files.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return entry if whole and key_hash(entry.key) == folder.name else None


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
    if store.find([key])[0] is None:
        with writing_to(store), store.put(key, facts) as folder:
            for name, source in files.items():
                link(source.resolve(), folder / name)


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
        way_out = "python -m stages.store verify --delete, then run the stage again" if store.remote else "run the stage again"
        raise PipelineError(f"{title} cannot be read from the store {store}; {way_out}")
    return entry


def open_store(runtime: RuntimeSettings) -> Store:
    """The store of the settings."""
    if "://" not in runtime.store:
        return Store(Path(runtime.store).resolve())
    from pipeline.store.bucket import bucket_store  # which imports this module

    return bucket_store(runtime.store, runtime.cache, runtime.cache_bytes)
