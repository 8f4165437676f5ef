"""One student as a piece of work: its key, its place in the store, training it there, and taking it from there.

A finished student is kept under the hash of everything that decides it, so that a run that was killed goes on, and students
that were trained elsewhere, several at once, need only be fetched. Knows files and settings; how to fit is training.py's.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch.distributed as dist

from pipeline.config.runtime import RuntimeSettings
from pipeline.corpus import encoding
from pipeline.corpus import task as tasks
from pipeline.distill import adversary, examples, narrowing, objective, settings, shares, step, student, training, uses
from pipeline.distill.card import write_card
from pipeline.distill.settings import StudentSettings
from pipeline.distill.shares import effective
from pipeline.distill.student import Checkpoint
from pipeline.distill.training import Outcome, Sources, check_made_from, train, write_lineage, write_student
from pipeline.models import architectures, folder, forward, loading, scale
from pipeline.models.folder import source_hash
from pipeline.perturbation import inputs as views
from pipeline.perturbation import search as perturbation
from pipeline.perturbation import surrogate as scouting
from pipeline.shards import batches, codec, manifest, reader
from pipeline.shards.lineage import lineage
from pipeline.shards.manifest import Key, Manifest, key_hash, training_hash
from pipeline.store import seeding
from pipeline.store.files import folder_written_whole, hash_of, sha256_of, write_json
from pipeline.store.sources import BUILD, TRAINING_LIBRARIES
from pipeline.training import callbacks as conduct
from pipeline.training import checkpoints, order
from pipeline.training import trainer as finetuning
from pipeline.training.callbacks import RunOptions

CODE: tuple[ModuleType, ...] = (
    adversary, architectures, batches, checkpoints, codec, conduct, encoding, examples, finetuning, folder, forward, loading,
    manifest, narrowing, objective, order, perturbation, reader, scale, scouting, seeding, settings, shares, step, student,
    tasks, training, uses, views,
)  # fmt: skip
"""Modules whose source decides a student's weights."""

CONTENTS_FILE = "contents.json"
"""In the store beside a student's files: its key, for whom it was trained, and the hashes of the files; written last."""

OUTCOME_FILE = "outcome.json"
"""In the store what came of a training; a student's lineage holds it wherever else the student lies."""

STATES = "-training"
"""What follows the key's hash in the name of the folder with the states of an unfinished training."""

COST_FILE = "cost.json"
"""What a training took; varies from run to run, so it is no part of the student."""

KEPT_AS = "kept_as"
"""In a student's lineage: its name in the store, the hash of its key."""

NOT_COPIED = (CONTENTS_FILE, OUTCOME_FILE, COST_FILE)
"""Of a student's files in the store those that are the store's."""

Described = TypeVar("Described")


@dataclass(frozen=True)
class Called:
    """What persons call a student. It decides nothing: who asks for the same student by another name gets this one."""

    student: str
    task: str

    @property
    def title(self) -> str:
        """What progress lines call it."""
        return f"distill {self.task} {self.student}"


@dataclass(frozen=True)
class StudentJob:
    """One student of one task."""

    name: str
    scores: Path
    shards: Path
    teacher: Path
    settings: StudentSettings

    @cached_property
    def called(self) -> Called:
        """By its name in params.yaml and its task's."""
        return Called(self.name, Manifest.read(self.scores).task.name)

    @property
    def wanted_shards(self) -> Path | None:
        """The variants' folder, where this student sees them."""
        return self.shards if self.settings.adversary.shards else None

    def sources(self) -> Sources:
        """What it learns from, verified."""
        return Sources.open(self.teacher, self.scores, self.wanted_shards)

    def key(self) -> Key:
        """Everything that decides the student, but where it is trained; test rows and its name do not.

        Several processes take the same steps; but they drop other neurons than one process does, where the model has dropout,
        and a GPU has other last digits than a processor.
        """
        start, shards = self.settings.start, self.wanted_shards
        return lineage(self.teacher) | {
            "content": "student",
            "scores": training_hash(self.scores),
            "shards": training_hash(shards) if shards else None,
            "checkpoint": source_hash(start.checkpoint) if isinstance(start, Checkpoint) else None,
            "settings": self._deciding(),
            "computed_by": BUILD.naming(*CODE, libraries=TRAINING_LIBRARIES),
        }

    def _deciding(self) -> dict[str, Any]:
        """Its settings without those that mean nothing for it; another checkpoint is named by its bytes, not by its place."""
        settings = effective(self.settings.model_dump(mode="json"))
        return settings | ({"start": "checkpoint"} if isinstance(self.settings.start, Checkpoint) else {})

    def describe(self, folder: Path, outcome: Outcome) -> dict[str, Any]:
        """Write lineage and card of the finished student in ``folder``; returns the lineage."""
        scores, shards = Manifest.read(self.scores), self.wanted_shards
        if shards is not None:
            check_made_from(shards, self.scores)
        facts = write_lineage(folder, self.name, self.scores, shards, self.settings, outcome)
        write_card(folder, scores.task, facts, scores, Manifest.read(shards) if shards else None)
        return facts


@dataclass(frozen=True)
class StudentStore:
    """Finished students by key, and the states of unfinished ones."""

    folder: Path

    @classmethod
    def of(cls, runtime: RuntimeSettings) -> "StudentStore":
        """Beside the shards."""
        return cls.below(runtime.store_folder)

    @classmethod
    def below(cls, folder: Path) -> "StudentStore":
        """Of a store's folder."""
        return cls(folder / "students")

    def place_of(self, key: Key) -> Path:
        """Where a finished student lies."""
        return self.folder / key_hash(key)

    def states_of(self, key: Key) -> Path:
        """Where the states of its training are kept until it is finished."""
        return self.folder / f"{key_hash(key)}{STATES}"

    def has(self, key: Key) -> bool:
        """Whether the student is there, every byte as it was written.

        Its list of contents gets the time of this call, so that whoever clears the store sees that the student is in use.
        """
        place = self.place_of(key)
        with suppress(OSError):
            os.utime(place / CONTENTS_FILE)
        try:
            contents = json.loads((place / CONTENTS_FILE).read_text(encoding="utf-8"))
            whole = all(sha256_of(place / name) == sha256 for name, sha256 in contents["files"].items())
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return False
        return whole and hash_of(contents["key"]) == hash_of(key)

    @contextmanager
    def kept(self, key: Key, called: Called) -> Iterator[Path]:
        """A folder to write a student to; it is there for all only if the block ends without an error."""
        with folder_written_whole(self.place_of(key)) as folder:
            yield folder
            files = {str(file.relative_to(folder)): sha256_of(file) for file in sorted(folder.rglob("*")) if file.is_file()}
            write_json(folder / CONTENTS_FILE, {"key": key, "called": asdict(called), "files": files})
        shutil.rmtree(self.states_of(key), ignore_errors=True)

    @contextmanager
    def alone(self, key: Key, called: Called) -> Iterator[None]:
        """Keep other processes of this machine from training the same student; who comes second waits.

        The lock holds the key, so that whoever looks into the store sees whose states lie beside it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock(key_hash(key)).open("a", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"{called.title}: another process trains this student; waiting for it", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            file.truncate(0)
            json.dump({"key": key, "called": asdict(called)}, file)
            file.flush()
            yield

    @contextmanager
    def unless_trained(self, name: str) -> Iterator[bool]:
        """Whether no process of this machine trains the student under a key's hash; none begins to within the block."""
        with ExitStack() as held:
            try:
                file = held.enter_context(self._lock(name).open("r+", encoding="utf-8"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                free = True
            except FileNotFoundError:
                free = True
            except OSError:  # it is held, or what it says cannot be known
                free = False
            yield free

    def known_of(self, name: str) -> tuple[Key | None, Called | None]:
        """What is noted under the hash of a key, of a finished student or of one whose training was begun."""
        for path in (self.folder / name / CONTENTS_FILE, self._lock(name)):
            with suppress(OSError, ValueError, KeyError, TypeError):
                noted = json.loads(path.read_text(encoding="utf-8"))
                if key_hash(noted["key"]) == name:
                    return noted["key"], Called(**noted["called"]) if "called" in noted else None
        return None, None

    def _lock(self, name: str) -> Path:
        return self.folder / f"{name}.lock"

    def take(self, key: Key, out: Path, cost: Path, describe: Callable[[Path, Outcome], Described]) -> Described:
        """Put a finished student at ``out``, described there, and what it took at ``cost``; returns what describing does."""
        place = self.place_of(key)
        outcome, took = (json.loads((place / name).read_text(encoding="utf-8")) for name in (OUTCOME_FILE, COST_FILE))
        with folder_written_whole(out) as folder:
            shutil.copytree(place, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*NOT_COPIED))
            described = describe(folder, outcome | {KEPT_AS: place.name})
        write_json(cost, took)
        return described


def train_into(store: StudentStore, job: StudentJob, runtime: RuntimeSettings) -> None:
    """Train a student and keep it; where several processes do so together, each calls this and the first one writes."""
    sources, key = job.sources(), job.key()
    options = RunOptions(store.states_of(key), runtime.save_steps, runtime.dataloader_num_workers, tuple(runtime.report_to))
    made, fit = train(job.called.title, sources, job.settings, options)
    if dist.is_initialized() and dist.get_rank():
        return
    with store.kept(key, job.called) as folder:
        write_json(folder / OUTCOME_FILE, write_student(folder, sources, made, fit.history))
        write_json(folder / COST_FILE, {"seconds": round(fit.seconds, 1), "steps": fit.history[-1]["step"]})
