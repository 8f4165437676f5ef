"""Upkeep of the shard store: what lies in it, what uses it, what is damaged, what may go. Prints nothing.

A receipt is deleted before its shard, the other way round than they are written: a receipt never stands without its shard,
and a shard whose receipt is gone is not there, so a crash in between costs nothing but the space until the next clearing.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa

from pipeline.config.errors import PipelineError
from pipeline.shards.manifest import Key, differences
from pipeline.shards.schema import Content, description_of
from pipeline.shards.store import RECEIPT, SHARD, Contents, Entry, StoredFile, stored_file
from pipeline.shards.usage import Uses, makers_of
from pipeline.store.files import hash_of, sha256_of

SECONDS_UNFINISHED = 3600.0
"""As long may a shard stand without its receipt, or a partial file, and still belong to a run in progress."""

OF_ONE_SHARD = {"examples", "variant"}
"""Names of a key in which the shards of one set differ."""

NO_SETTING = {
    "content", "teacher", "tokenizer", "kind", "labels", "max_length", "format_version", "computed_by", "score_computed_by",
    *OF_ONE_SHARD,
}  # fmt: skip
"""Names of a key that are lineage or hashes and tell a person nothing of the settings."""


@dataclass(frozen=True)
class ShardSet:
    """Shards whose keys differ in nothing but examples and variant: those of one pass of a teacher."""

    name: str
    content: str
    teacher: str
    settings: str
    shards: int
    rows: int
    bytes: int
    used_by: tuple[Path, ...]
    """Folders whose manifests list any of the shards, or for by-products any of their teacher's."""


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be with an entry."""

    entry: Entry
    text: str
    damaged: bool
    """False where it may be a run in progress, or another version of this package, that left it so."""


@dataclass(frozen=True)
class Garbage:
    """Files that go together, in the order in which they are deleted."""

    noun: Literal["shard", "note", "partial file"]
    label: str
    files: tuple[StoredFile, ...]

    @property
    def bytes(self) -> int:
        """Size of the files."""
        return sum(file.bytes for file in self.files)

    @property
    def linked(self) -> tuple[StoredFile, ...]:
        """Those of the files that lie in an output folder too, so that deleting them here frees nothing."""
        return tuple(file for file in self.files if file.links > 1)

    @property
    def freed(self) -> int:
        """The bytes that the disk gets back."""
        return self.bytes - sum(file.bytes for file in self.linked)


@dataclass(frozen=True)
class Plan:
    """What nothing uses any more, and how much is not used but too young to be sure."""

    garbage: tuple[Garbage, ...]
    young: int


def sets_of(contents: Contents, uses: Uses) -> list[ShardSet]:
    """The sets of shards that are whole as far as their sizes tell, teacher by teacher, the scores first."""
    members: dict[str, list[Entry]] = {}
    for entry in contents.entries:
        if visible_fault(entry) is None:
            members.setdefault(_set_of(entry), []).append(entry)
    sets = [_shard_set(name, entries, uses) for name, entries in members.items()]
    return sorted(sets, key=lambda one: (one.teacher, one.content != "scores", one.settings, one.name))


def examine(entry: Entry, now: float) -> Finding | None:
    """Hash a shard and read its key; what is wrong with it, if anything is."""
    fault = visible_fault(entry)
    if fault is None:
        hidden = _hidden_fault(entry)
        return Finding(entry, hidden, damaged=True) if hidden else None
    return Finding(entry, fault, damaged=not (_perhaps_unfinished(entry, now) or _of_another_version(entry)))


def visible_fault(entry: Entry) -> str | None:
    """What is wrong with an entry as far as names, sizes and the receipt tell."""
    if entry.shard is None:
        return f"{entry.name}{RECEIPT} is a receipt without a shard"
    if entry.receipt_file is None:
        return f"{entry.name}{SHARD} is a shard without a receipt"
    if entry.receipt is None:
        problem = "is of another version of this package" if _of_another_version(entry) else "is damaged"
        return f"{entry.name}{RECEIPT} {problem}, so nothing is known of the shard beside it"
    if entry.shard.bytes != entry.receipt.bytes:
        return f"{entry.name}{SHARD} has {entry.shard.bytes} bytes, its receipt says {entry.receipt.bytes}"
    return None


def plan(contents: Contents, uses: Uses, least_age: float, now: float) -> Plan:
    """What may go: what no manifest lists and nobody has written or asked for in the last ``least_age`` seconds.

    What was made with one model is as young as the youngest of it: a run of many days keeps what it computed, or found here, on
    the first, words of a masked language model among it. What looks unfinished is kept for ``SECONDS_UNFINISHED`` however small
    the least age.
    """
    spare = list(_spare(contents, uses, least_age))
    doomed = [garbage for garbage, may_go in spare if may_go <= now]
    return Plan(tuple(doomed), len(spare) - len(doomed))


def delete(files: Sequence[StoredFile]) -> bool:
    """Delete files in this order, unless one of them has changed since it was looked at; whether it was done."""
    if any(stored_file(file.path) != file for file in files):
        return False
    for file in files:
        file.path.unlink(missing_ok=True)
    return True


def describe(entry: Entry) -> str:
    """What a person recognises a shard by, from its receipt or else from itself."""
    key = _key_of(entry)
    variant = f", variant {key['variant']}" if key and "variant" in key else ""
    return _describe_set(key) + variant


def settings_of(key: Key) -> str:
    """The settings in a key, in short: the steps of a recipe and what is set for them, or every value that is no lineage."""
    if "recipe" not in key and "perturbation" not in key:
        names = [name for name in sorted(key) if name not in NO_SETTING]
        return ", ".join(f"{name} {_short(key[name])}" for name in names) or "–"
    recipe = "+".join(map(str, key.get("recipe", ())))
    others = [(name, value) for name, value in sorted(key.items()) if name not in {"perturbation", *NO_SETTING}]
    edits = [_short(value) for _, value in others if isinstance(value, dict)]
    return ", ".join([*([recipe] if recipe else []), *edits, *_search(key)])


def _search(key: Key) -> list[str]:
    """Objective, norm, radius and codec, as far as the key has them."""
    search = key.get("perturbation", {})
    if not isinstance(search, dict):
        return [_short(search)]
    radius = f"radius {_short(search['radius'])}" if search.get("radius") is not None else None
    aim = f"scout {_short(key['scout'])}" if "scout" in key else None
    named = (search.get("objective"), aim, search.get("norm"), radius, key.get("codec"))
    return [str(value) for value in named if value is not None]


def _describe_set(key: Key | None) -> str:
    if key is None:
        return "of an unknown key"
    model = "teacher" if "teacher" in key else "masked language model"
    return f"{key.get('content', 'shard')} of {model} {_teacher(key)}, {settings_of(key)}"


def _short(value: Any) -> str:
    if isinstance(value, str):
        return value if len(value) <= 40 else value[:12]
    text = f"{value:g}" if isinstance(value, float) else json.dumps(value, sort_keys=True)
    return text if len(text) <= 60 else text[:59] + "…"


def _teacher(key: Key) -> str:
    """The beginning of its hash; that of the masked language model for words, which no teacher has a part in."""
    return next(iter(makers_of(key)), "unknown")[:12]


def _key_of(entry: Entry) -> Key | None:
    """The key of an entry, of which the receipt may be missing or damaged."""
    if entry.key or not entry.shard:
        return entry.key
    try:
        return _key_inside(entry.shard.path)
    except (OSError, ValueError, KeyError, TypeError, PipelineError):
        return None


def _set_of(entry: Entry) -> str:
    """The hash that the shards of one set share; an entry of an unknown key is a set of its own."""
    if entry.key is None:
        return entry.name
    return hash_of({name: value for name, value in entry.key.items() if name not in OF_ONE_SHARD})


def _key_inside(path: Path) -> Key:
    """The key in the metadata of an Arrow file; pyarrow's errors are ValueErrors and OSErrors."""
    with pa.OSFile(str(path)) as file:
        key: Key = description_of(pa.ipc.open_file(file).schema, path.name)["key"]
    return key


def _hidden_fault(entry: Entry) -> str | None:
    """What is wrong with a shard beyond its size; takes as long as reading it."""
    assert entry.shard is not None
    assert entry.receipt is not None
    try:
        if sha256_of(entry.shard.path) != entry.receipt.sha256:
            return f"{entry.name}{SHARD} has other bytes than when it was written (its sha256 differs from its receipt's)"
        different = differences(entry.receipt.key, _key_inside(entry.shard.path))
    except OSError as cause:
        return f"{entry.name}{SHARD} cannot be read ({cause.strerror or cause})"
    except (ValueError, KeyError, TypeError, PipelineError) as cause:
        return f"{entry.name}{SHARD} is no shard of this package ({cause})"
    return f"{entry.name}{SHARD} holds another key than its receipt: {'; '.join(different)}" if different else None


def _perhaps_unfinished(entry: Entry, now: float) -> bool:
    """A shard without a receipt may be about to get it."""
    return len(entry.files) < 2 and now - max(map(_changed, entry.files)) < SECONDS_UNFINISHED


def _of_another_version(entry: Entry) -> bool:
    """A receipt that names the right key but is not of the form this version reads; another clone may live by it."""
    return entry.receipt is None and entry.key is not None


def _shard_set(name: str, entries: Sequence[Entry], uses: Uses) -> ShardSet:
    key = entries[0].key or {}
    return ShardSet(
        name=name,
        content=str(key.get("content")),
        teacher=_teacher(key),
        settings=settings_of(key),
        shards=len(entries),
        rows=sum(entry.receipt.rows for entry in entries if entry.receipt),
        bytes=sum(entry.shard.bytes for entry in entries if entry.shard),
        used_by=tuple(sorted({folder for entry in entries for folder in _users(entry, uses)})),
    )


def _spare(contents: Contents, uses: Uses, least_age: float) -> Iterator[tuple[Garbage, float]]:
    """What nothing uses, each with the moment from which it may go."""
    touched = _last_touched(contents.entries)
    patience = max(least_age, SECONDS_UNFINISHED)
    for entry in contents.entries:
        if not _users(entry, uses):
            label = f"set {_set_of(entry)[:8]}, {_describe_set(_key_of(entry))}"
            age = least_age if len(entry.files) == 2 else patience
            yield Garbage("shard", label, entry.files), max(touched[maker] for maker in _makers(entry)) + age
    for note in contents.notes:
        if not note.key or not set(makers_of(note.key)) <= uses.makers.keys():
            label = f"remembered of teacher {_teacher(note.key)}" if note.key else "damaged"
            yield Garbage("note", label, (note.file,)), _changed(note.file) + least_age
    for file in contents.partials:
        yield Garbage("partial file", "abandoned while it was written", (file,)), _changed(file) + patience


def _users(entry: Entry, uses: Uses) -> set[Path]:
    """The folders that use an entry; of what no manifest ever lists, those that use what made it."""
    by_product = entry.key is not None and entry.key.get("content") not in get_args(Content)
    with_makers = [uses.makers.get(maker, set()) for maker in makers_of(entry.key)] if entry.key and by_product else []
    return uses.folders.get(entry.name, set()).union(set[Path].intersection(*with_makers) if with_makers else set())


def _last_touched(entries: Iterable[Entry]) -> dict[str, float]:
    """When anything of each model was last written or asked for."""
    found: dict[str, float] = {}
    for entry in entries:
        latest = max(map(_changed, entry.files))
        found |= {maker: max(found.get(maker, 0.0), latest) for maker in _makers(entry)}
    return found


def _makers(entry: Entry) -> Sequence[str]:
    """The models that made a shard; one of an unknown key stands for itself."""
    return (entry.key and makers_of(entry.key)) or [entry.name]


def _changed(file: StoredFile) -> float:
    return file.changed_ns / 1e9
