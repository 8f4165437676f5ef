"""The manifest: the list that makes a set of shards complete, and the key that says what they were made from."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.config.errors import PipelineError
from pipeline.config.params import Settings
from pipeline.corpus.task import Split, Task
from pipeline.shards.codec import CodecName
from pipeline.shards.schema import FORMAT_VERSION, Content
from pipeline.store.files import hash_of, sha256_of, write_json

MANIFEST_FILE = "manifest.json"

NOT_COMPLETE = "{} does not exist, so the shards are not complete; make them with dvc repro"

Key = dict[str, Any]
"""Named hashes and settings that decide a shard's bytes; printed, compared and diffed by name."""


class ShardMismatch(PipelineError):
    """Shards that do not belong together, or to what they are used with; the text names what differs."""


class Coding(Settings):
    """How the perturbations of a set of shards are stored."""

    codec: CodecName
    width: int
    """Width of the teacher's word embeddings."""


class Receipt(Settings):
    """What is known of one finished shard; written to the store after the shard itself."""

    key: Key
    rows: int
    tokens: int
    bytes: int
    sha256: str
    statistics: dict[str, float]


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
    """What was found on the way and helps to read the figures: the radius, truncated texts."""
    shards: tuple[ShardEntry, ...]

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


def key_hash(key: Key) -> str:
    """The name under which the store keeps the shard of a key."""
    return hash_of(key)[:32]


def differences(wanted: Key, found: Key) -> list[str]:
    """One line for each name whose value differs between two keys."""
    names = sorted(wanted.keys() | found.keys())
    return [
        f"{name}: {_short(wanted.get(name))} wanted, {_short(found.get(name))} found"
        for name in names
        if wanted.get(name) != found.get(name)
    ]


def check_agreement(subject: str, wanted: Key, found: Key, way_out: str) -> None:
    """Refuse ``found`` where a name that ``wanted`` holds has another value.

    Raises:
        ShardMismatch: names every field that differs, with both values.
    """
    lines = differences(wanted, {name: found.get(name) for name in wanted})
    if lines:
        raise ShardMismatch(f"{subject} do not fit: " + "; ".join(lines) + f". {way_out}")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text[:12] + "…" if isinstance(value, str) and len(text) > 24 else text
