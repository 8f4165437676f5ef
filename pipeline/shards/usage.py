"""Which shards are in use: those that a manifest below some folders lists. Reads manifests, changes nothing."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.errors import PipelineError
from pipeline.shards.manifest import MANIFEST_FILE, Key, Manifest, ShardMismatch, key_hash
from pipeline.shards.store import ShardStore


def makers_of(key: Key) -> list[str]:
    """The hashes of the models that made what lies under a key: a teacher, a masked language model, or both."""
    proposing = key.get("masked_lm")
    found = [key.get("teacher"), proposing.get("model") if isinstance(proposing, dict) else None]
    return [str(name) for name in found if name is not None]


@dataclass(frozen=True)
class Uses:
    """What the manifests below some folders list."""

    folders: Mapping[str, set[Path]]
    """By the hash of a shard's key."""
    makers: Mapping[str, set[Path]]
    """The same by the hash of each model with which notes and other by-products of a pass stay."""
    unreadable: tuple[str, ...]
    """One sentence for each manifest or folder that cannot be read."""
    without: tuple[Path, ...]
    """Those of the given folders below which there is no manifest."""


def look_for_uses(folders: Iterable[Path], store: ShardStore) -> Uses:
    """Read every manifest below these folders, the store itself and hidden folders left out."""
    faults: list[str] = []
    places = {folder: folders_with(MANIFEST_FILE, folder, store.folder, faults) for folder in folders}
    manifests = {place: _manifest(place, faults) for found in places.values() for place in found}
    used: dict[str, set[Path]] = {}
    makers: dict[str, set[Path]] = {}
    for place, manifest in manifests.items():
        for key in [entry.receipt.key for entry in manifest.shards] if manifest else ():
            used.setdefault(key_hash(key), set()).add(place)
            for maker in makers_of(key):
                makers.setdefault(maker, set()).add(place)
    without = tuple(folder for folder, found in places.items() if not found)
    return Uses(used, makers, tuple(faults), without)


def check_known(uses: Uses, everything: bool) -> None:
    """Refuse to call anything unused where what is in use is not known.

    Raises:
        PipelineError: a manifest cannot be read, or a folder has none and ``everything`` does not say that this is meant.
    """
    if uses.unreadable:
        raise PipelineError("\n  - ".join(["what is in use is not known, so nothing is deleted:", *uses.unreadable]))
    if uses.without and not everything:
        folders = ", ".join(map(str, uses.without))
        raise PipelineError(
            f"no manifest.json below {folders}, so everything would count as unused; name the folder of the products with "
            "--data, or give --everything if there are none on purpose"
        )


def folders_with(file: str, data: Path, store: Path, faults: list[str]) -> list[Path]:
    """Folders below ``data`` with a file of this name, those of the store left out.

    What cannot be looked into is added to the faults.
    """
    found, seen, errors = [], {store.resolve()}, list[OSError]()
    for folder, below, files in os.walk(data, onerror=errors.append, followlinks=True) if data.is_dir() else ():
        here = Path(folder).resolve()
        below[:] = [] if here in seen else sorted(name for name in below if not name.startswith("."))
        if here not in seen and file in files:
            found.append(Path(folder))
        seen.add(here)
    faults += [f"{error.filename} cannot be looked into ({error.strerror})" for error in errors]
    return found


def _manifest(folder: Path, faults: list[str]) -> Manifest | None:
    try:
        return Manifest.read(folder)
    except (ShardMismatch, OSError) as fault:
        faults.append(str(fault))
        return None
