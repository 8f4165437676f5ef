"""Upkeep of the students in a store: which there are, which folders use them, what is damaged, what may go. Prints nothing.

A student goes list of contents first: without it the student is not there, so a crash in between costs nothing but the space
until the next clearing. Locks stay: one that is deleted while a process waits for it would let two train the same student.
"""

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.distill.jobs import CONTENTS_FILE, KEPT_AS, STATES, Called, StudentStore
from pipeline.shards.lineage import LINEAGE_FILE
from pipeline.shards.manifest import Key, key_hash
from pipeline.shards.upkeep import SECONDS_UNFINISHED
from pipeline.shards.usage import folders_with
from pipeline.store.files import PARTIAL, sha256_of

FOLDER = re.compile(rf"({re.escape(PARTIAL)}[0-9a-f]+-)?([0-9a-f]{{32}})({re.escape(STATES)})?")
"""Names of the folders of the store; nothing here sees others."""

State = Literal["finished", "damaged", "in training", "unfinished"]
"""As far as can be seen without hashing anything; in training where a process of this machine is at it."""


@dataclass(frozen=True)
class StudentUses:
    """The students below some folders."""

    folders: Mapping[str, tuple[Path, ...]]
    """By the student's name in the store."""
    unreadable: tuple[str, ...]
    """One sentence for each folder or file that cannot be read."""


@dataclass(frozen=True)
class KeptStudent:
    """A folder of the store: a finished student, or what there is of one that is not."""

    folder: Path
    name: str
    """The hash of its key."""
    state: State
    key: Key | None
    """None where it is not known."""
    called: Called | None
    """As what it was trained first; None where it is not known."""
    bytes: int
    changed_ns: int
    """When anything of it was last written, or a finished one asked for."""
    used_by: tuple[Path, ...]

    @property
    def student(self) -> str:
        """Its name in params.yaml, where it was trained first."""
        return self.called.student if self.called else "unknown"

    @property
    def task(self) -> str | None:
        """The task's there; None where it is not known."""
        return self.called.task if self.called else None

    @property
    def teacher(self) -> str:
        """The beginning of its teacher's hash."""
        return str((self.key or {}).get("teacher", "unknown"))[:12]


def look_for_students(folders: Iterable[Path], store: StudentStore) -> StudentUses:
    """Find every student below these folders, the store itself and hidden folders left out."""
    faults: list[str] = []
    places = [place for folder in folders for place in folders_with(LINEAGE_FILE, folder, store.folder, faults)]
    found: dict[str, tuple[Path, ...]] = {}
    for place in places:
        try:
            name = json.loads((place / LINEAGE_FILE).read_text(encoding="utf-8")).get(KEPT_AS)
        except OSError as error:
            faults.append(f"{error.filename} cannot be read ({error.strerror})")
        except (ValueError, AttributeError):
            faults.append(f"{place / LINEAGE_FILE} is damaged")
        else:  # a student that was made by hand is kept nowhere
            found |= {name: (*found.get(name, ()), place)} if name else {}
    return StudentUses(found, tuple(faults))


def take_stock(store: StudentStore, uses: StudentUses) -> list[KeptStudent]:
    """Everything in the store that is the store's, by the name of the student; no weights are read."""
    names = sorted(store.folder.iterdir()) if store.folder.is_dir() else []
    found = [_kept(store, path, match, uses) for path in names if (match := FOLDER.fullmatch(path.name))]
    return sorted(found, key=lambda one: (one.student, one.task or "", one.state, one.name))


def fault_of(student: KeptStudent) -> str | None:
    """Hash the files of a finished student and compare them with its contents; what is wrong with it, if anything is."""
    if student.state in ("in training", "unfinished"):
        return None
    contents = _contents(student.folder)
    if contents is None:
        return f"{student.folder.name} has no {CONTENTS_FILE} that can be read"
    if key_hash(contents["key"]) != student.name:
        return f"{student.folder.name} holds the key of another student"
    for file, sha256 in contents["files"].items():
        try:
            if sha256_of(student.folder / file) != sha256:
                return f"{student.folder.name}/{file} has other bytes than when it was written"
        except OSError as cause:
            return f"{student.folder.name}/{file} cannot be read ({cause.strerror or cause})"
    return None


def spare(students: Iterable[KeptStudent], least_age: float, now: float) -> tuple[list[KeptStudent], int]:
    """What may go: what no folder uses and nobody has written or asked for in the last ``least_age`` seconds.

    The second value counts what is not used but too young to be sure. What was made from one teacher is as young as the
    youngest of it, as shards are; what looks unfinished is kept for ``SECONDS_UNFINISHED`` however small the least age.
    """
    everything = list(students)
    touched: dict[str, int] = {}
    for one in everything:
        touched[_maker(one)] = max(touched.get(_maker(one), 0), one.changed_ns)
    unused = [one for one in everything if not one.used_by]
    doomed = [one for one in unused if _may_go(one, touched[_maker(one)], least_age, now)]
    return doomed, len(unused) - len(doomed)


def delete(store: StudentStore, student: KeptStudent) -> bool:
    """Delete what there is of a student, unless it has changed since it was looked at, or is trained; whether it was done."""
    with store.unless_trained(student.name) as free:
        if not free or _size_and_time(student.folder) != (student.bytes, student.changed_ns):
            return False
        (student.folder / CONTENTS_FILE).unlink(missing_ok=True)
        shutil.rmtree(student.folder)
    return True


def _kept(store: StudentStore, folder: Path, match: re.Match[str], uses: StudentUses) -> KeptStudent:
    partial, name, states = match.groups()
    contents = None if partial or states else _contents(folder)
    size, changed = _size_and_time(folder)
    key, called = store.known_of(name)
    return KeptStudent(
        folder=folder,
        name=name,
        state=_state_of_training(store, name) if partial or states else "finished" if contents else "damaged",
        key=key,
        called=called,
        bytes=size,
        changed_ns=changed,
        used_by=uses.folders.get(name, ()) if contents else (),
    )


def _state_of_training(store: StudentStore, name: str) -> State:
    with store.unless_trained(name) as free:
        return "unfinished" if free else "in training"


def _contents(folder: Path) -> dict[str, Any] | None:
    """The key and the hashes of a finished student."""
    try:
        contents: dict[str, Any] = json.loads((folder / CONTENTS_FILE).read_text(encoding="utf-8"))
        return contents if isinstance(contents["key"], dict) and isinstance(contents["files"], dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _size_and_time(folder: Path) -> tuple[int, int]:
    """Bytes of the files in a folder, and when the last of them was written; files may go while they are counted."""
    size, changed = 0, 0
    for path in [folder, *folder.rglob("*")]:
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        size += found.st_size if path.is_file() else 0
        changed = max(changed, found.st_mtime_ns)
    return size, changed


def _maker(student: KeptStudent) -> str:
    """The teacher of a student; one of an unknown key stands for itself."""
    return str(student.key.get("teacher")) if student.key else student.folder.name


def _may_go(student: KeptStudent, touched_ns: int, least_age: float, now: float) -> bool:
    patience = max(least_age, SECONDS_UNFINISHED) if student.state == "unfinished" else least_age
    return student.state != "in training" and touched_ns / 1e9 + patience <= now
