"""A store in a bucket with a bounded local cache, and the choice between it and a local store."""

import hashlib
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock
from pyarrow import memory_map
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem, copy_files

from pipeline.config.errors import PipelineError, last_line
from pipeline.store.files import PARTIAL, partial_name, write_json
from pipeline.store.keys import Key, key_hash
from pipeline.store.store import NAME, RECEIPT, SECONDS_UNFINISHED, Entry, Files, Size, Store, entry_of

CHUNK_BYTES = 64 * 2**20
"""Bytes that one request reads."""

REQUESTS = 16
"""Most receipts that are read at once."""

TOTAL_FILE = "cache.bytes"
"""A file of the cache with an upper bound of the bytes in it; read and written under the cache's lock."""

TOTAL = re.compile(rb"[0-9]+\n")
"""Its content; the end of the line shows that it was written whole."""

FILLED = 0.9
"""Part of the cache that may remain when entries are deleted, so that the next downloads find room."""

RESERVED = re.compile(r"\.([0-9]+)$")
"""The end of the name of a download's folder: the bytes of its files."""

HINTS = {
    "ACCESS_DENIED": "the credentials of the environment or profile do not allow it",
    "INVALID_ACCESS_KEY_ID": "the credentials of the environment or profile are not known there",
    "SIGNATURE_DOES_NOT_MATCH": "the credentials of the environment or profile are wrong",
    "NO_SUCH_BUCKET": "the bucket does not exist",
    "NETWORK_CONNECTION": "the connection failed",
}
"""What some error codes of S3 mean."""


@dataclass(frozen=True)
class BucketStore(Store):
    """A store under a URL that pyarrow.fs knows. ``folder`` is the cache, which is laid out as a local store.

    A file of an entry is the object ``<url>/<name>/<sha256>/<file>``, so that two writers of an entry never mix theirs. The
    receipt ``<url>/<name>/receipt.json`` is written last. An interrupted upload leaves no object.
    """

    url: str
    cache_bytes: int
    """Most bytes of entries in the cache and of downloads in progress, which exceed it only if they alone need more.

    Receipts come on top. The least recently used entries are deleted.
    """

    remote: ClassVar[bool] = True

    def __str__(self) -> str:
        return self.url.partition("?")[0]

    @property
    def _cache(self) -> Store:
        return Store(self.folder)

    def get(self, key: Key) -> Entry | None:
        """The entry of a key, with its files in the cache and verified; None if there is none or it is damaged."""
        entry = self.peek(key)
        return entry if entry and self._fetched(entry) is None else None

    def find(self, keys: Sequence[Key]) -> list[Entry | None]:
        """The entries of many keys, or None; a file is verified when it is fetched.

        The receipts are written again, so that garbage collection sees the use.
        """
        with ThreadPoolExecutor(REQUESTS) as threads:
            return list(threads.map(self._renewed, keys))

    def peek_all(self, keys: Sequence[Key]) -> list[Entry | None]:
        """``peek`` of many keys at once."""
        with ThreadPoolExecutor(REQUESTS) as threads:
            return list(threads.map(self.peek, keys))

    def _renewed(self, key: Key) -> Entry | None:
        if entry := self.peek(key):
            with tempfile.TemporaryDirectory() as name:
                write_json(Path(name) / RECEIPT, entry.receipt())
                self._upload(Path(name) / RECEIPT, f"{entry.name}/{RECEIPT}")
        return entry

    def has(self, key: Key) -> bool:
        """False: an entry without a readable receipt is as good as absent."""
        return False

    def is_whole(self, entry: Entry) -> bool:
        """True, since a receipt follows its objects, and an object is complete or absent."""
        return True

    def named(self, name: str) -> Entry | None:
        """The entry of this name if its receipt is readable and has that name; its files are not checked."""
        files, path = self._opened(f"{name}/{RECEIPT}")
        with self._request("read"), suppress(FileNotFoundError), files.open_input_file(path) as file:
            return entry_of(self.folder / name, file.read())
        return None

    def fetch(self, key: Key, files: Files) -> Entry:
        """These files of an entry in the cache, verified; needs no receipt in the bucket.

        Raises:
            PipelineError: a file is missing or differs, the bucket cannot be read, or the cache is too small.
        """
        entry = Entry(self.folder_of(key), key, files)
        if error := self._fetched(entry):
            raise PipelineError(f"{error}; delete what is damaged: python -m stages.store verify --delete")
        return entry

    def check_fits(self, size: int, what: str) -> None:
        """Raise a ``PipelineError`` if the cache is too small for all of this."""
        if size > self.cache_bytes:
            raise PipelineError(f"{what}: {size:,} bytes, more than runtime.cache_bytes {self.cache_bytes:,}; raise it")

    def error_of(self, entry: Entry) -> str | None:
        """Read and hash all files of an entry; a sentence about the first one that differs from the receipt."""
        for name, file in entry.files.items():
            digest, (files, path) = hashlib.sha256(), self._opened(f"{entry.name}/{file['sha256']}/{name}")
            with self._request("read"), suppress(FileNotFoundError), files.open_input_file(path) as source:
                while chunk := source.read(CHUNK_BYTES):
                    digest.update(chunk)
            if digest.hexdigest() != file["sha256"]:
                return f"{self}/{entry.name}/{name} is missing or damaged: its sha256 differs from its receipt's"
        return None

    @contextmanager
    def lock(self, key: Key, title: str) -> Iterator[None]:
        """Like ``Store.lock``; other machines do not wait, and their entry is then replaced by an equal one."""
        with self.probe():
            pass
        with super().lock(key, title):
            yield

    @contextmanager
    def probe(self) -> Iterator[str]:
        """An object by which another process recognises the same store; rejects a store that cannot be written to."""
        name = f"{PARTIAL}{secrets.token_hex(16)}"
        files, path = self._opened(name)
        with self._request("written to"), files.open_output_stream(path) as object_:
            object_.write(b"probe")
        try:
            yield name
        finally:
            with suppress(OSError):
                files.delete_file(path)

    def sees(self, probe: str) -> bool:
        """Whether this process reads the object of ``probe``."""
        files, path = self._opened(probe)
        with self._request("read"):
            return bool(files.get_file_info(path).type == FileType.File)

    def sizes(self) -> dict[str, Size]:
        """Size and age of everything in the store, by name; an entry's age is that of its newest object."""
        files, path = self._opened("")
        with self._request("read"):
            found = files.get_file_info(FileSelector(path, allow_not_found=True, recursive=True))
        grouped: dict[str, list[FileInfo]] = {}
        for info in found:
            if info.type == FileType.File:
                grouped.setdefault(info.path.removeprefix(path).split("/")[0], []).append(info)
        return {name: _size_of(infos) for name, infos in grouped.items()}

    def size(self, name: str) -> Size | None:
        """Size and age of an entry or object; None if it is gone."""
        files, path = self._opened(name)
        with self._request("read"):
            one, below = files.get_file_info(path), FileSelector(path, allow_not_found=True, recursive=True)
            infos = [one] if one.type == FileType.File else files.get_file_info(below)
        infos = [info for info in infos if info.type == FileType.File]
        return _size_of(infos) if infos else None

    def remove(self, name: str) -> None:
        """Delete an entry, its receipt first, also from the cache."""
        for path, delete in ((f"{name}/{RECEIPT}", "delete_file"), (name, "delete_dir"), (name, "delete_file")):
            files, target = self._opened(path)
            with self._request("written to"), suppress(FileNotFoundError):
                getattr(files, delete)(target)
        with suppress(FileNotFoundError):
            self._cache.remove(name)

    def _keep(self, partial: Path, key: Key, files: Files) -> None:
        """Upload a finished folder, its receipt last; whoever needs it reads it from the bucket."""
        name = key_hash(key)
        for file, facts in files.items():
            self._upload(partial / file, f"{name}/{facts['sha256']}/{file}")
        self._upload(partial / RECEIPT, f"{name}/{RECEIPT}")

    def _fetched(self, entry: Entry) -> str | None:
        """Bring the files of an entry to the cache; a sentence about a missing or damaged one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f"fetch-{entry.name[0]}.lock"):  # of several processes that need it, one reads the bucket
            with suppress(OSError):
                os.utime(entry.folder / RECEIPT)
            cached = self._cache.named(entry.name)
            if cached and all(cached.files.get(name) == file for name, file in entry.files.items()) and not cached.error():
                return None
            if entry.folder.exists():  # other files of an entry with this name, or damaged ones
                with suppress(FileNotFoundError):
                    self._cache.remove(entry.name)
            size = sum(file["bytes"] for file in entry.files.values())
            self.check_fits(size, f"{self}/{entry.name}")
            return self._download(entry, self._reserved(entry, size))

    def _download(self, entry: Entry, partial: Path) -> str | None:
        try:
            for name, file in entry.files.items():
                target = partial / name
                target.parent.mkdir(parents=True, exist_ok=True)
                files, path = self._opened(f"{entry.name}/{file['sha256']}/{name}")
                try:
                    with self._request("read"):
                        copy_files(path, str(target), files, LocalFileSystem(), chunk_size=CHUNK_BYTES)
                except FileNotFoundError:
                    return f"{self}/{entry.name}/{name} is missing"
            write_json(partial / RECEIPT, entry.receipt())
            if error := Entry(partial, entry.key, entry.files).error():
                return f"{self}/{error}"
            with self._cache_lock:  # an entry that is renamed during a walk may be missed
                self._cache._keep(partial, entry.key, entry.files)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return None

    def _upload(self, source: Path, name: str) -> None:
        """Write an object in one call: an exception between two would complete a part of it.

        ``copy_files`` is no alternative, since it ignores the error of an upload that fails at its end.
        """
        files, path = self._opened(name)
        with self._request("written to"), memory_map(str(source)) as content, files.open_output_stream(path) as target:
            target.write(content.read_buffer())

    @property
    def _cache_lock(self) -> FileLock:
        return FileLock(self.folder / "cache.lock")

    def _reserved(self, entry: Entry, size: int) -> Path:
        """A new folder for the download of an entry, whose bytes count from now on.

        The total counts every download. What fails or is deleted is subtracted only when the cache is walked, because the total
        exceeds ``cache_bytes`` or is not readable; so it is never too small.
        """
        partial, file = partial_name(entry.folder), self.folder / TOTAL_FILE
        partial = partial.with_name(f"{partial.name}.{size}")
        with self._cache_lock:
            written = file.read_bytes() if file.exists() else b""
            total = int(written) + size if TOTAL.fullmatch(written) else None
            if total is None or total > self.cache_bytes:
                total = self._make_room(size) + size
            file.write_text(f"{total}\n")
            partial.mkdir()
        return partial

    def _make_room(self, needed: int) -> int:
        """Walk the cache and delete its least recently used entries until it is ``FILLED`` with the needed bytes.

        Partial folders older than an hour are deleted as well. A deleted file that is mapped into memory stays readable.

        Returns:
            The bytes that remain. A download in progress counts in full.
        """
        held = {name: size for name, size in self._cache.sizes().items() if NAME.fullmatch(name) or name.startswith(PARTIAL)}
        counted = {name: _counted(name, size.bytes) for name, size in held.items()}
        total = sum(counted.values())
        for name, size in sorted(held.items(), key=lambda one: one[1].touched):
            over = total + needed > FILLED * self.cache_bytes
            if over and (NAME.fullmatch(name) or size.touched < time.time() - SECONDS_UNFINISHED):
                with suppress(FileNotFoundError):
                    self._cache.remove(name)
                total -= counted[name]
        return total

    @contextmanager
    def _request(self, doing: str) -> Iterator[None]:
        """Errors of the bucket as sentences; a missing object stays a ``FileNotFoundError``."""
        try:
            yield
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as cause:  # a ValueError is a URL that pyarrow does not understand
            code = re.search(r"AWS Error (\w+)", str(cause))
            hint = HINTS.get(code.group(1)) if code else None
            said = last_line(cause)
            raise PipelineError(f"the store {self} cannot be {doing}: {f'{hint} ({said})' if hint else said}") from cause

    def _opened(self, name: str) -> tuple[FileSystem, str]:
        """The file system, and the path of an object in it."""
        with self._request("read"):
            files, prefix = _file_system(self._url_with_endpoint())
        return files, f"{prefix}/{name}"

    def _url_with_endpoint(self) -> str:
        """The URL with the endpoint that the environment sets for S3; not every version of pyarrow reads it."""
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if not endpoint or not self.url.startswith("s3://") or "endpoint_override=" in self.url:
            return self.url
        scheme, _, host = endpoint.rstrip("/").partition("://")
        return f"{self.url}{'&' if '?' in self.url else '?'}scheme={scheme}&endpoint_override={host}"

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process, perhaps another user's on another machine, a cache below the home directory is below its own."""
        home = Path.home()
        folder = f"~/{self.folder.relative_to(home)}" if self.folder.is_relative_to(home) else str(self.folder)
        return bucket_store, (self.url, folder, self.cache_bytes)


def bucket_store(url: str, cache_folder: str, cache_bytes: int) -> BucketStore:
    """The store under a URL with a cache in a folder, which may begin with ``~``."""
    return BucketStore(Path(cache_folder).expanduser().resolve(), url.rstrip("/"), cache_bytes)


def _counted(name: str, found: int) -> int:
    """The bytes that count of an entry or partial folder with so many; of a download, at least those that it will have."""
    reserved = RESERVED.search(name)
    return max(found, int(reserved[1])) if reserved else found


def _size_of(infos: Sequence[FileInfo]) -> Size:
    return Size(sum(info.size for info in infos), 0, max(info.mtime_ns for info in infos) / 1e9)


@cache
def _file_system(url: str) -> tuple[FileSystem, str]:
    """The file system that a URL names, and the path in it."""
    files, path = FileSystem.from_uri(url)
    return files, path.rstrip("/")
