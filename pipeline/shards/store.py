"""The shard store: finished shards by key, outside DVC's outs, so that nothing computed is lost or mixed.

A shard is written whole, its receipt after it. A shard without a receipt, or whose bytes are not those of its receipt, is
not there: it is computed again and replaces itself.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.shards.manifest import Key, Receipt, key_hash
from pipeline.store.files import PARTIAL, hash_of, sha256_of, write_json, written_whole

SHARD, RECEIPT, NOTE = ".arrow", ".json", ".note.json"
"""What follows the key's hash in the name of a file of the store."""

NAME = r"([0-9a-f]{32})"
PAIR_FILE = re.compile(f"{NAME}(?:{re.escape(SHARD)}|{re.escape(RECEIPT)})")
NOTE_FILE = re.compile(NAME + re.escape(NOTE))
PARTIAL_FILE = re.compile(f"{re.escape(PARTIAL)}[0-9a-f]+-{NAME}\\..+")
"""Files of other names are not the store's: nothing here sees them."""


ABSENT = (FileNotFoundError, NotADirectoryError)
"""How the system says that there is no such file."""


@dataclass(frozen=True)
class StoredFile:
    """A file as it was when it was looked at; one that has changed since is another."""

    path: Path
    bytes: int
    inode: int
    changed_ns: int
    links: int
    """Names of the file on this disk: above 1 it is in an output folder as well, and deleting it here frees nothing."""


@dataclass(frozen=True)
class Entry:
    """What the store has under the hash of one key: receipt and shard, of which either may be missing."""

    name: str
    receipt_file: StoredFile | None
    shard: StoredFile | None
    receipt: Receipt | None
    """None also where this version of the package cannot read it."""
    key: Key | None
    """Of the receipt, of whatever version of the package."""

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """In the order in which they may be deleted."""
        return tuple(file for file in (self.receipt_file, self.shard) if file)


@dataclass(frozen=True)
class Note:
    """A small result that is no shard, such as a radius found."""

    file: StoredFile
    key: Key | None


@dataclass(frozen=True)
class Contents:
    """Everything in a store that is the store's."""

    entries: tuple[Entry, ...]
    notes: tuple[Note, ...]
    partials: tuple[StoredFile, ...]
    """Of files that were being written; abandoned if old."""


@dataclass(frozen=True)
class ShardStore:
    """A folder of ``<key hash>.arrow`` with ``<key hash>.json`` beside each."""

    folder: Path

    def shard_path(self, key: Key) -> Path:
        """Where the shard of a key lies once it is finished."""
        return self.folder / (key_hash(key) + SHARD)

    def receipt_path(self, key: Key) -> Path:
        """Where the receipt of a key lies; it is written after the shard."""
        return self.folder / (key_hash(key) + RECEIPT)

    def note_path(self, key: Key) -> Path:
        """Where what is remembered under a key lies."""
        return self.folder / (key_hash(key) + NOTE)

    def find(self, key: Key) -> Receipt | None:
        """The receipt of a finished shard whose bytes are as they were written, else None.

        The receipt's time becomes that of this call, so that whoever clears the store sees that the shard is in use.
        """
        _touch(self.receipt_path(key))
        return self.peek(key)

    def peek(self, key: Key) -> Receipt | None:
        """The same without a trace."""
        receipt = self.receipt_named(key_hash(key))
        shard = self.shard_path(key)
        if receipt is None or not shard.exists() or shard.stat().st_size != receipt.bytes:
            return None
        return receipt if sha256_of(shard) == receipt.sha256 else None

    def has_receipt(self, key: Key) -> bool:
        """Whether the shard was finished once; with nothing to ``find`` it was damaged since."""
        return self.receipt_path(key).exists()

    def finish(self, receipt: Receipt) -> None:
        """Write the receipt: from now on the shard counts as finished."""
        write_json(self.receipt_path(receipt.key), receipt.model_dump())

    def place(self, key: Key, target: Path) -> None:
        """Put the shard of a key at ``target``: a hard link where the file system has them, else a copy."""
        try:
            os.link(self.shard_path(key), target)
        except OSError:
            with written_whole(target) as partial:
                shutil.copyfile(self.shard_path(key), partial)

    def remember(self, key: Key, value: dict[str, Any]) -> None:
        """Keep a small result that is no shard, such as a radius found, under its key."""
        write_json(self.note_path(key), {"key": key, "value": value})

    def recall(self, key: Key) -> dict[str, Any] | None:
        """What was remembered under a key, else None; its time becomes that of this call."""
        _touch(self.note_path(key))
        return self.peek_note(key)

    def peek_note(self, key: Key) -> dict[str, Any] | None:
        """The same without a trace."""
        try:
            note = json.loads(self.note_path(key).read_text(encoding="utf-8"))
            value: dict[str, Any] = note["value"]
            return value if hash_of(note["key"]) == hash_of(key) else None
        except (*ABSENT, ValueError, KeyError, TypeError):
            return None

    def receipt_named(self, name: str) -> Receipt | None:
        """The receipt under a key's hash, if it can be read and is that key's."""
        try:
            receipt = Receipt.model_validate_json((self.folder / (name + RECEIPT)).read_bytes())
        except (*ABSENT, ValidationError):
            return None
        return receipt if key_hash(receipt.key) == name else None

    def contents(self) -> Contents:
        """Take stock; reads receipts and notes, but no shard."""
        files = {file.path.name: file for file in map(stored_file, sorted(self.folder.iterdir())) if file}
        names = sorted({match[1] for match in map(PAIR_FILE.fullmatch, files) if match})
        return Contents(
            entries=tuple(self._entry(name, files) for name in names),
            notes=tuple(Note(file, _key_in(file.path)) for name, file in files.items() if NOTE_FILE.fullmatch(name)),
            partials=tuple(file for name, file in files.items() if PARTIAL_FILE.fullmatch(name)),
        )

    def _entry(self, name: str, files: Mapping[str, StoredFile]) -> Entry:
        receipt_file, receipt = files.get(name + RECEIPT), self.receipt_named(name)
        key = receipt.key if receipt else _key_in(self.folder / (name + RECEIPT))
        return Entry(name, receipt_file, files.get(name + SHARD), receipt, key)


def stored_file(path: Path) -> StoredFile | None:
    """A file as it is now; None if it is gone, or no file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return StoredFile(path, found.st_size, found.st_ino, found.st_mtime_ns, found.st_nlink) if path.is_file() else None


def _key_in(path: Path) -> Key | None:
    """The key in a receipt or note, of whatever version, if it is that of the file's name."""
    try:
        key: Key = json.loads(path.read_text(encoding="utf-8"))["key"]
        return key if isinstance(key, dict) and path.name.startswith(key_hash(key) + ".") else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _touch(path: Path) -> None:
    """Note that a file was asked for, where the store may be written to by whoever asks."""
    with suppress(OSError):
        os.utime(path)
