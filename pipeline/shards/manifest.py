"""The manifest, which makes a set of shards complete; the lineage, which both halves compare; receipts of single shards."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.config.corpus import Split
from pipeline.config.errors import PipelineError
from pipeline.config.params import Settings
from pipeline.config.settings import CodecName
from pipeline.corpus.task import Task
from pipeline.models.folder import load_tokenizer, model_hash, saved_labels, tokenizer_hash
from pipeline.shards.schema import FORMAT_VERSION, Content
from pipeline.store.files import write_json
from pipeline.store.keys import Key, differences, hash_of, sha256_of
from pipeline.store.store import Entry

MANIFEST_FILE = "manifest.json"

LINEAGE_FILE = "lineage.json"

SKIPPED_FILE = "skipped.json"
"""The only file of a student's folder for a task that ``students.<name>.tasks`` leaves out."""
"""In a student's folder: what it was made from, and how."""

SHARD_FILE = "shard.arrow"
"""The file of a shard's entry in the store."""

NOT_COMPLETE = "{} does not exist, so the shards are not complete; make them with dvc repro"


class ShardMismatch(PipelineError):
    """Shards that do not belong together, or to what they are used with; the text names what differs."""


class Coding(Settings):
    """How the perturbations of a set of shards are stored."""

    codec: CodecName
    width: int
    """Width of the teacher's word embeddings."""


class Receipt(Settings):
    """What is known of one finished shard."""

    key: Key
    rows: int
    tokens: int
    bytes: int
    sha256: str
    statistics: dict[str, float]

    @classmethod
    def of(cls, entry: Entry) -> "Receipt":
        """The receipt of a shard in the store."""
        return cls(key=entry.key, **entry.files[SHARD_FILE], **entry.facts)

    def facts(self) -> dict[str, Any]:
        """What the store keeps beside the key, size and hash."""
        return self.model_dump(include={"rows", "tokens", "statistics"})


class ShardEntry(Settings):
    """One shard of a set."""

    file: str
    split: Split
    variant: int
    partition: int
    receipt: Receipt


class Manifest(Settings):
    """A complete set of shards. Its hash, that of the file, names the whole set."""

    format_version: int
    content: Content
    task: Task
    key: Key
    """The part of the key that all shards share."""
    token_types: bool
    pad_token_id: int
    coding: Coding | None
    variants: int
    details: dict[str, Any]
    """What was found on the way and helps to read the figures: the epsilon, truncated texts."""
    shards: tuple[ShardEntry, ...]
    stored_as: tuple[str, ...] = ()
    """Names of all entries of the store behind the set, those of by-products included; garbage collection reads it."""

    @property
    def recipes(self) -> list[list[str]]:
        """The steps of the variants, in turn; a recipe that no variant has got to is left out."""
        return list(self.details.get("recipes", [])[: self.variants])

    @property
    def perturbed(self) -> bool:
        """Whether any variant has a δ."""
        return any("perturb" in recipe for recipe in self.recipes)

    def save(self, folder: Path) -> None:
        """Write the manifest; it is the last file of its folder to be written."""
        write_json(folder / MANIFEST_FILE, self.model_dump())

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read and check ``manifest.json`` of a folder of shards.

        Raises:
            ShardMismatch: there is none, it is of another format version, or it is damaged.
        """
        path = folder / MANIFEST_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as cause:
            raise ShardMismatch(NOT_COMPLETE.format(path)) from cause
        except ValueError as cause:
            raise ShardMismatch(f"{path} is damaged ({cause}); delete the folder and make it again with dvc repro") from cause
        found = content.get("format_version") if isinstance(content, dict) else None
        if found != FORMAT_VERSION:
            raise ShardMismatch(
                f"{path}: format_version is {found}, this version reads {FORMAT_VERSION}; make the shards again with dvc repro"
            )
        try:
            return cls.model_validate_json(json.dumps(content))
        except ValidationError as cause:
            raise ShardMismatch(f"{path} is damaged: {cause.errors()[0]['loc']}; make it again with dvc repro") from cause

    def of_split(self, split: Split) -> tuple[ShardEntry, ...]:
        """The entries of one split, variant by variant, in partition order."""
        chosen = [entry for entry in self.shards if entry.split == split]
        return tuple(sorted(chosen, key=lambda entry: (entry.variant, entry.partition)))


def manifest_hash(folder: Path) -> str:
    """The hash that names a complete set of shards.

    Raises:
        ShardMismatch: there is no manifest.
    """
    try:
        return sha256_of(folder / MANIFEST_FILE)
    except FileNotFoundError as cause:
        raise ShardMismatch(NOT_COMPLETE.format(folder / MANIFEST_FILE)) from cause


def training_hash(folder: Path) -> str:
    """The hash that names what a training reads of a complete set: all but its test rows and what led to them.

    Raises:
        ShardMismatch: there is no manifest, or it cannot be read.
    """
    manifest = Manifest.read(folder)
    read = [(e.split, e.variant, e.partition, e.receipt.sha256) for e in manifest.shards if e.split != "test"]
    facts = manifest.model_dump(mode="json", include={"format_version", "content", "token_types", "pad_token_id", "coding"})
    task = manifest.task.model_dump(mode="json", exclude={"name"})
    made = {"variants": manifest.variants, "recipes": manifest.recipes, "snapshots": manifest.details.get("snapshots")}
    return hash_of(facts | made | {"task": task, "shards": sorted(read)})


def check_agreement(subject: str, wanted: Key, found: Key, way_out: str) -> None:
    """Reject ``found`` where a name that ``wanted`` holds has another value.

    Raises:
        ShardMismatch: names every field that differs, with both values.
    """
    lines = differences(wanted, {name: found.get(name) for name in wanted})
    if lines:
        raise ShardMismatch(f"{subject} do not fit: " + "; ".join(lines) + f". {way_out}")


def lineage(teacher: Path) -> Key:
    """What decides every shard made with this teacher: named hashes of weights and tokenizer, label names, lengths."""
    tokenizer = load_tokenizer(teacher)
    task = Task.read(teacher)
    return {
        "format_version": FORMAT_VERSION,
        "teacher": model_hash(teacher),
        "tokenizer": tokenizer_hash(tokenizer),
        "kind": task.kind,
        "labels": list(saved_labels(teacher)) if task.kind == "classification" else [],
        "max_length": int(tokenizer.model_max_length),
    }


def check_trained_from(student: Path, soft_labels: Path) -> None:
    """Reject a student of other soft_labels than these, since it may have learnt from their test rows.

    Raises:
        PipelineError: it was trained from others, or is no student of this pipeline.
    """
    try:
        origin = json.loads((student / LINEAGE_FILE).read_text(encoding="utf-8"))["soft_labels"]
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise PipelineError(f"{student} has no readable {LINEAGE_FILE}, so it is no student of this pipeline") from cause
    if origin != manifest_hash(soft_labels):
        raise PipelineError(
            f"{student} was trained from other soft labels than {soft_labels}, so it may have seen their test rows; "
            "make it again: dvc repro"
        )
