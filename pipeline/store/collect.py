"""Garbage collection: what a store holds, which folders use it, what is damaged, what may go. Prints nothing."""

import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from pipeline.config.errors import PipelineError
from pipeline.store.files import PARTIAL
from pipeline.store.hashing import Key
from pipeline.store.store import KEY_FILE, RECEIPT, STORED_AS, STORED_AS_FILE, UNFINISHED, Entry, Store

MANIFEST_FILE = "manifest.json"

LISTS = (MANIFEST_FILE, "lineage.json", STORED_AS_FILE)
"""Files of product folders whose field ``STORED_AS`` names what the folder uses; only a lineage may lack it."""

HASH = re.compile("[0-9a-f]{32}")
HASH_AT_END = re.compile("[0-9a-f]{32}$")

SECONDS_UNFINISHED = 3600.0
"""Partial and unfinished folders younger than this may belong to a run in progress."""

State = Literal["finished", "damaged", "unfinished", "partial"]


@dataclass(frozen=True)
class Uses:
    """Which entries the folders of products use."""

    folders: Mapping[str, tuple[Path, ...]]
    """By the name of the entry."""
    unreadable: tuple[str, ...]
    """One sentence for each folder or list that cannot be read."""
    without: tuple[Path, ...]
    """Those of the given folders that are missing or have no list below them."""


@dataclass(frozen=True)
class Item:
    """An entry, or what is left of one that is not finished."""

    name: str
    """Of its file or folder in the store."""
    state: State
    """As far as the receipt and the sizes of files tell."""
    label: str
    """What a person recognises it by."""
    bytes: int
    shared: int
    """Of the bytes those that another folder has a hard link to, so that deleting them here frees nothing."""
    touched: float
    """Seconds since the epoch when it was last written or asked for."""
    used_by: tuple[Path, ...]

    @property
    def lock(self) -> str:
        """The name of the entry whose lock protects it; empty where that is not known."""
        return found[0] if (found := HASH_AT_END.search(self.name)) else ""


def uses_of(folders: Iterable[Path], store: Store) -> Uses:
    """Read every list below these folders; the store itself and hidden folders are left out."""
    errors: list[str] = []
    found: dict[str, list[Path]] = {}
    without = []
    for data in folders:
        lists = _lists_below(data, store.folder, errors)
        if not lists:
            without.append(data)
        for path in lists:
            for name in _names_in(path, errors):
                found.setdefault(name, []).append(path.parent)
    return Uses({name: tuple(dict.fromkeys(places)) for name, places in found.items()}, tuple(errors), tuple(without))


def check_known(uses: Uses, everything: bool) -> None:
    """Reject to call anything unused where it is not known what is in use.

    Raises:
        PipelineError: a list cannot be read, or a folder has none and ``everything`` does not confirm that.
    """
    if uses.unreadable:
        raise PipelineError("\n  - ".join(["what is in use is not known, so nothing is deleted:", *uses.unreadable]))
    if uses.without and not everything:
        raise PipelineError(
            f"no {MANIFEST_FILE} below {', '.join(map(str, uses.without))}, so everything would count as unused; name the "
            "folder of the products with --data, or give --everything if there are none on purpose"
        )


def items_of(store: Store, uses: Uses) -> list[Item]:
    """Everything in the store that is the store's, by label; hashes nothing."""
    names = sorted(path.name for path in store.folder.iterdir()) if store.folder.is_dir() else []
    found = [_item(store, name, uses) for name in names]
    return sorted((item for item in found if item), key=lambda item: (item.state, item.label, item.used_by, item.name))


def error_of(store: Store, item: Item) -> str | None:
    """Hash the files of an entry; what is wrong with it, if anything is."""
    if item.state not in ("finished", "damaged"):
        return None
    entry = store.named(item.name)
    return f"{item.name} has no {RECEIPT} that can be read and is its own" if entry is None else entry.error()


def garbage(items: Iterable[Item], least_age: float) -> tuple[list[Item], int]:
    """What may go: what nothing uses and nobody has written or asked for in the last ``least_age`` seconds.

    The second value counts what is unused but younger. Unfinished and partial folders stay for ``SECONDS_UNFINISHED`` at
    least.
    """
    unused = [item for item in items if not item.used_by]
    now = time.time()
    doomed = [item for item in unused if item.touched + _patience(item, least_age) <= now]
    return doomed, len(unused) - len(doomed)


def delete(store: Store, item: Item) -> bool:
    """Delete an item unless it is locked or has changed since it was looked at; whether it was deleted."""
    lock = FileLock(store.lock_file(item.lock)) if item.lock and store.lock_file(item.lock).exists() else None
    try:
        if lock:
            lock.acquire(timeout=0)
    except Timeout:
        return False
    try:
        if _measured(store.folder / item.name) != (item.bytes, item.shared, item.touched):
            return False
        store.remove(item.name)
    finally:
        if lock:
            lock.release()
    return True


def _patience(item: Item, least_age: float) -> float:
    return max(least_age, SECONDS_UNFINISHED) if item.state in ("unfinished", "partial") else least_age


def _item(store: Store, name: str, uses: Uses) -> Item | None:
    """What the store has under a name; None where the name is not the store's or the item is gone."""
    path, state = store.folder / name, _state(store, name)
    if state is None or not (measured := _measured(path)):
        return None
    entry = store.named(name) if state != "partial" else None
    used_by = uses.folders.get(name, ()) if state in ("finished", "damaged") else ()
    return Item(name, state, _label(path, entry), *measured, used_by)


def _state(store: Store, name: str) -> State | None:
    if name.startswith(PARTIAL):
        return "partial"
    if name.startswith(UNFINISHED):
        return "unfinished" if HASH.fullmatch(name.removeprefix(UNFINISHED)) else None
    if not HASH.fullmatch(name):
        return None
    entry = store.named(name)
    return "finished" if entry is not None and store.peek(entry.key) is not None else "damaged"


def _label(path: Path, entry: Entry | None) -> str:
    """The title of an entry, else what its key says that it is."""
    if entry is not None:
        return str(entry.facts.get("title") or entry.key.get("content") or "unknown")
    try:
        key: Key = json.loads((path / KEY_FILE).read_text(encoding="utf-8"))
        return str(key["content"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


def _measured(path: Path) -> tuple[int, int, float] | None:
    """Bytes, shared bytes and the newest time of a file, or of a folder with all in it; files may vanish meanwhile."""
    size, shared, touched = 0, 0, 0.0
    for one in [path, *(path.rglob("*") if path.is_dir() else ())]:
        try:
            found = one.stat()
        except FileNotFoundError:
            continue
        if one.is_file():
            size, shared = size + found.st_size, shared + (found.st_size if found.st_nlink > 1 else 0)
        touched = max(touched, found.st_mtime)
    return (size, shared, touched) if touched else None


def _lists_below(data: Path, store: Path, errors: list[str]) -> list[Path]:
    """The lists below a folder; what cannot be looked into is added to the errors."""
    found, seen, unreadable = list[Path](), {store.resolve()}, list[OSError]()
    for folder, below, files in os.walk(data, onerror=unreadable.append, followlinks=True) if data.is_dir() else ():
        here = Path(folder).resolve()
        below[:] = [] if here in seen else sorted(name for name in below if not name.startswith("."))
        if here not in seen:
            found += [Path(folder) / name for name in LISTS if name in files]
        seen.add(here)
    errors += [f"{error.filename} cannot be looked into ({error.strerror})" for error in unreadable]
    return found


def _names_in(path: Path, errors: list[str]) -> list[str]:
    """The names in a list; why it cannot be known is added to the errors."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        errors.append(f"{path} cannot be read ({error.strerror})")
        return []
    except ValueError:
        errors.append(f"{path} is damaged")
        return []
    held = content.get(STORED_AS, [] if path.name == "lineage.json" else None) if isinstance(content, dict) else None
    names = [held] if isinstance(held, str) else held
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        errors.append(f"{path} does not say what it uses ({STORED_AS}); another version of this package may have written it")
        return []
    return names
