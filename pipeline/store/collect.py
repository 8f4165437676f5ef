"""Garbage collection: the lists of entries that folders use, the entries of a store, damage, and what may be deleted."""

import json
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from pipeline.config.errors import PipelineError
from pipeline.store.files import PARTIAL, write_json
from pipeline.store.keys import Key, key_hash
from pipeline.store.store import KEY_FILE, NAME, RECEIPT, SECONDS_UNFINISHED, UNFINISHED, Entry, Size, Store

MANIFEST_FILE = "manifest.json"

STORED_AS = "stored_as"
"""Field of a manifest, lineage or note: the name, or a list of names, of the entries that its folder uses."""

STORED_AS_FILE = "stored_as.json"
"""The note of a folder that has neither manifest nor lineage."""

LISTS = (MANIFEST_FILE, "lineage.json", STORED_AS_FILE)
"""Files of product folders whose field ``STORED_AS`` names the entries that the folder uses; only a lineage may lack it."""

State = Literal["finished", "damaged", "unfinished", "partial"]


@dataclass(frozen=True)
class Uses:
    """The entries that product folders use."""

    folders: Mapping[str, tuple[Path, ...]]
    """The folders, by the name of the entry."""
    unreadable: tuple[str, ...]
    """One sentence for each folder or list that cannot be read."""
    without: tuple[Path, ...]
    """The given folders that have no list below them or do not exist."""


@dataclass(frozen=True)
class Item:
    """An entry, or the rest of an unfinished one."""

    name: str
    """Of its file or folder in the store."""
    state: State
    """According to the receipt and the sizes of the files."""
    label: str
    """The title of the entry, or the content that its key names."""
    size: Size
    used_by: tuple[Path, ...]


def stored_as(*keys: Key) -> list[str]:
    """The value of ``STORED_AS`` for entries with these keys, sorted."""
    return sorted({key_hash(key) for key in keys})


def write_stored_as(folder: Path, entry: Entry) -> None:
    """Write the note of a folder that uses one entry."""
    write_json(folder / STORED_AS_FILE, {STORED_AS: entry.name})


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
    """Reject garbage collection if the entries in use are not known.

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
    """The entries and unfinished entries of the store, by label; hashes nothing."""
    with ThreadPoolExecutor() as threads:  # each receipt of a bucket is a request
        found = list(filter(None, threads.map(lambda one: _item(store, one[0], one[1], uses), store.sizes().items())))
    return sorted(found, key=lambda item: (item.state, item.label, item.used_by, item.name))


def error_of(store: Store, item: Item) -> str | None:
    """Hash the files of an entry; a sentence about the first error."""
    if item.state not in ("finished", "damaged"):
        return None
    entry = store.named(item.name)
    return f"{item.name} has no readable {RECEIPT} of its own" if entry is None else store.error_of(entry)


def garbage(items: Iterable[Item], least_age: float) -> tuple[list[Item], int]:
    """The unused items that nobody wrote or read in the last ``least_age`` seconds, and the number of younger unused items.

    Unfinished and partial folders are kept for at least ``SECONDS_UNFINISHED``.
    """

    def is_old(item: Item) -> bool:
        least = max(least_age, SECONDS_UNFINISHED) if item.state in ("unfinished", "partial") else least_age
        return item.size.touched + least <= now

    now, unused = time.time(), [item for item in items if not item.used_by]
    doomed = list(filter(is_old, unused))
    return doomed, len(unused) - len(doomed)


def delete(store: Store, item: Item) -> bool:
    """Delete an item, and return True, unless it is locked or has changed since it was listed."""
    lock = store.lock_file(item.name[-32:])
    try:
        with FileLock(lock, timeout=0) if lock.exists() else nullcontext():
            if store.size(item.name) != item.size:
                return False
            store.remove(item.name)
    except Timeout:
        return False
    return True


def _item(store: Store, name: str, size: Size, uses: Uses) -> Item | None:
    """The item of this name; None if the name is not the store's."""
    entry = None
    if name.startswith(PARTIAL):
        state: State = "partial"
    elif name.startswith(UNFINISHED) and NAME.fullmatch(name.removeprefix(UNFINISHED)):
        state = "unfinished"
    elif NAME.fullmatch(name):
        entry = store.named(name)
        state = "finished" if entry is not None and store.is_whole(entry) else "damaged"
        if entry is None and store.remote:  # its upload may be in progress
            state = "partial"
    else:
        return None
    used_by = uses.folders.get(name, ()) if state in ("finished", "damaged") else ()
    return Item(name, state, _label(store.folder / name, entry), size, used_by)


def _label(path: Path, entry: Entry | None) -> str:
    if entry is not None:
        return str(entry.facts.get("title") or entry.key.get("content") or "unknown")
    try:
        return str(json.loads((path / KEY_FILE).read_text(encoding="utf-8"))["content"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


def _lists_below(data: Path, store: Path, errors: list[str]) -> list[Path]:
    """The lists below a folder; unreadable folders are added to the errors."""
    found, seen, unreadable = list[Path](), {store.resolve()}, list[OSError]()
    for folder, below, files in os.walk(data, onerror=unreadable.append, followlinks=True) if data.is_dir() else ():
        here = Path(folder).resolve()
        below[:] = [] if here in seen else sorted(name for name in below if not name.startswith("."))
        if here not in seen:
            found += [Path(folder) / name for name in LISTS if name in files]
        seen.add(here)
    errors += [f"{error.filename} cannot be read ({error.strerror})" for error in unreadable]
    return found


def _names_in(path: Path, errors: list[str]) -> list[str]:
    """The names in a list; the reason why they are not known is added to the errors."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        errors.append(f"{path} cannot be read ({error.strerror})")
        return []
    except ValueError:
        content = None
    held = content.get(STORED_AS, [] if path.name == "lineage.json" else None) if isinstance(content, dict) else None
    names = [held] if isinstance(held, str) else held
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        errors.append(f"{path} has no valid {STORED_AS}; it is damaged or another version of this package wrote it")
        return []
    return names
