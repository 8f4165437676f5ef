"""A student as a job: its key, its training into the store on any node, its publication; the key of a surrogate."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch.distributed as dist

from pipeline.config.errors import naming
from pipeline.config.settings import Checkpoint, RuntimeSettings, StudentSettings, SurrogateSettings
from pipeline.distill.card import write_card
from pipeline.distill.training import Outcome, Sources, check_made_from, train, write_student
from pipeline.models.folder import ModelFolder
from pipeline.shards.manifest import (
    LINEAGE_FILE,
    MANIFEST_FILE,
    SHARD_FILE,
    Manifest,
    lineage,
    manifest_hash,
    put_shards,
    training_hash,
)
from pipeline.store.collect import STORED_AS
from pipeline.store.files import folder_written_whole, write_json
from pipeline.store.keys import TRAINING_LIBRARIES, Key, computed_by
from pipeline.store.store import Entry, Facts, Store, add_files, add_folder, needed
from pipeline.training.resuming import run_options, training_key

TRAINING = "pipeline.distill.training"
"""The module whose code is in the key."""


@dataclass(frozen=True)
class StudentJob:
    """One student of one task."""

    name: str
    """In params.yaml; not part of the key, so an identical student with another name is found."""
    soft_labels: Path
    shards: Path
    teacher: Path
    settings: StudentSettings

    @cached_property
    def title(self) -> str:
        """For progress lines."""
        return f"distill {Manifest.read(self.soft_labels).task.name} {self.name}"

    @property
    def wanted_shards(self) -> Path | None:
        """The folder of the variants; None if the student sees none."""
        return None if self.settings.variant_policy == "none" else self.shards

    def sources(self, store: Store) -> Sources:
        """Its data."""
        return Sources.open(ModelFolder(self.teacher), self.soft_labels, self.wanted_shards, store)

    def key(self) -> Key:
        """Everything that decides the student; its name, test rows, devices and the number of processes do not count."""
        start, shards = self.settings.initial_weights, self.wanted_shards
        return lineage(ModelFolder(self.teacher)) | {
            "content": "student",
            "soft_labels": training_hash(self.soft_labels),
            "shards": training_hash(shards) if shards else None,
            "checkpoint": ModelFolder(start.checkpoint).identity if isinstance(start, Checkpoint) else None,
            "settings": self._deciding(),
            "computed_by": computed_by(TRAINING, TRAINING_LIBRARIES),
        }

    def _deciding(self) -> dict[str, Any]:
        """The settings that have an effect; another checkpoint is named by its bytes, not by its path."""
        settings = self.settings.model_dump(mode="json", exclude={"tasks"})
        if settings["variant_policy"] == "none":
            del settings["loss"]["variants"]
        return settings | ({"initial_weights": "checkpoint"} if isinstance(self.settings.initial_weights, Checkpoint) else {})

    def publish(self, store: Store, entry: Entry, out: Path, cost: Path) -> dict[str, Any]:
        """Place a finished student at ``out`` with lineage and card, and its cost at ``cost``; returns the lineage."""
        with folder_written_whole(out) as folder:
            store.place(entry, folder)
            described = self.describe(folder, entry.facts["outcome"] | {STORED_AS: entry.name})
        write_json(cost, entry.facts["cost"])
        return described

    def describe(self, folder: Path, outcome: Outcome) -> dict[str, Any]:
        """Write lineage and card of the finished student in ``folder``; returns the lineage."""
        soft_labels, shards = Manifest.read(self.soft_labels), self.wanted_shards
        if shards is not None:
            check_made_from(shards, self.soft_labels)
        facts = {
            "task": soft_labels.task.name,
            "student": self.name,
            "settings": self.settings.model_dump(mode="json", exclude_none=True),
            "teacher": soft_labels.key["teacher"],
            "soft_labels": manifest_hash(self.soft_labels),
            "shards": None if shards is None else manifest_hash(shards),
        } | outcome
        write_json(folder / LINEAGE_FILE, facts)
        write_card(folder, soft_labels.task, facts, soft_labels, Manifest.read(shards) if shards else None)
        return facts


def surrogate_key(soft_labels: Path, teacher: ModelFolder, settings: SurrogateSettings) -> Key:
    """Everything that decides a surrogate; another checkpoint is named by its bytes, not by its path."""
    start = settings.initial_weights
    decided = settings.model_dump(mode="json", exclude={"tasks", "variant_policy", "sizes"})
    if isinstance(start, Checkpoint):
        decided["initial_weights"] = ModelFolder(start.checkpoint).identity
    key = training_key("surrogate", "pipeline.distill.surrogate", [], teacher, decided)
    return key | {"lineage": lineage(teacher), "soft_labels": training_hash(soft_labels)}


def train_into(store: Store, job: StudentJob, runtime: RuntimeSettings) -> None:
    """Train a student and put it into the store; of several processes that train together, rank 0 does so."""
    sources, key = job.sources(store), job.key()
    made, fit = train(job.title, sources, job.settings, run_options(store, key, runtime))
    if dist.is_initialized() and dist.get_rank():
        return
    facts: Facts = {"title": job.title, "cost": {"seconds": round(fit.seconds, 1), "steps": fit.history[-1]["step"]}}
    with store.put(key, facts) as folder:
        facts["outcome"] = write_student(folder, sources, made, fit.history)


@dataclass(frozen=True)
class StoredJob:
    """A job for any node that sees the store: models, manifests and shards are entries there."""

    job: StudentJob
    """With the driver's folders, which errors name."""
    keys: Mapping[str, Key]
    """The entry of each of these folders: the files of a model, or the manifest of a set of shards."""

    @classmethod
    def put(cls, job: StudentJob, store: Store, known: Mapping[str, Key] | None = None) -> "StoredJob":
        """Put into the store what it lacks of models, manifests and shards; ``known`` are the keys of folders put before."""
        start, keys = job.settings.initial_weights, dict(known or {})
        named = [Path(start.checkpoint)] if isinstance(start, Checkpoint) else []
        models = [job.teacher, *(path for path in named if path.is_dir())]  # another one is on the hub
        sets = list(filter(None, (job.soft_labels, job.wanted_shards)))
        for folder in (folder for folder in models if str(folder) not in keys):
            keys[str(folder)] = add_folder(store, "model", folder)
        for folder in (folder for folder in sets if str(folder) not in keys):
            put_shards(store, folder, Manifest.read(folder).shards)
            keys[str(folder)] = {"content": "manifest", "sha256": manifest_hash(folder)}
            add_files(store, keys[str(folder)], {MANIFEST_FILE: folder / MANIFEST_FILE})
        return cls(job, {str(folder): keys[str(folder)] for folder in (*models, *sets)})

    @contextmanager
    def opened(self, store: Store) -> Iterator[StudentJob]:
        """The same job on folders of this node."""
        with tempfile.TemporaryDirectory(prefix="student-") as place:
            copies = {}
            for number, (folder, key) in enumerate(self.keys.items()):
                entry = needed(store, key, folder)
                shards = key["content"] == "manifest" and not store.remote
                copies[folder] = _with_shards(store, entry.folder, Path(place) / str(number)) if shards else entry.folder
            here = replace(
                self.job,
                soft_labels=copies[str(self.job.soft_labels)],
                shards=copies.get(str(self.job.shards), self.job.shards),
                teacher=copies[str(self.job.teacher)],
            )
            start = here.settings.initial_weights
            if isinstance(start, Checkpoint) and (copy := copies.get(str(Path(start.checkpoint)))):
                moved = {"initial_weights": Checkpoint(checkpoint=str(copy))}
                here = replace(here, settings=here.settings.model_copy(update=moved))
            with naming({str(copy): folder for folder, copy in copies.items()}):
                yield here


def _with_shards(store: Store, manifest: Path, folder: Path) -> Path:
    """A folder with a manifest and links to its shards in the store, like a published one."""
    folder.mkdir()
    (folder / MANIFEST_FILE).symlink_to(manifest / MANIFEST_FILE)
    for entry in Manifest.read(manifest).shards:
        stored = store.peek(entry.receipt.key) or store.fetch(entry.receipt.key, entry.receipt.files)
        (folder / entry.file).symlink_to(stored.folder / SHARD_FILE)
    return folder
