"""The manifest, which completes a set of shards; receipts of single shards; the lineage, which both halves compare."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.config.corpus import Split
from pipeline.config.errors import PipelineError
from pipeline.config.params import Settings
from pipeline.config.settings import CodecName
from pipeline.corpus.task import Task
from pipeline.models.folder import ModelFolder
from pipeline.shards.schema import FORMAT_VERSION, Content
from pipeline.store.files import written_whole
from pipeline.store.keys import Key, differences, hash_of, sha256_of
from pipeline.store.store import Entry, Store, add_files

MANIFEST_FILE = "manifest.json"

LINEAGE_FILE = "lineage.json"
"""In a student's folder: its inputs, settings and results."""

SHARD_FILE = "shard.arrow"
"""The file of a shard's entry in the store."""

NOT_COMPLETE = "{} does not exist, so the shards are not complete; make them with dvc repro"


class ShardMismatch(PipelineError):
    """Shards that do not match each other or the models used with them; the message names the differences."""


class Coding(Settings):
    """Codec of the perturbations of a set of shards."""

    codec: CodecName
    width: int
    """Width of the teacher's word embeddings."""


class Receipt(Settings):
    """Key, size, hash and statistics of one finished shard."""

    key: Key
    rows: int
    tokens: int
    bytes: int
    sha256: str
    statistics: dict[str, float]

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        """The shard's file, as ``Store.fetch`` takes it."""
        return {SHARD_FILE: {"sha256": self.sha256, "bytes": self.bytes}}

    @classmethod
    def of(cls, entry: Entry) -> "Receipt":
        """The receipt of a shard in the store."""
        return cls(key=entry.key, **entry.files[SHARD_FILE], **entry.facts)

    def facts(self) -> dict[str, Any]:
        """The facts that the store keeps beside key, size and hash."""
        return self.model_dump(include={"rows", "tokens", "statistics"})


class ShardEntry(Settings):
    """One shard of a set."""

    file: str
    split: Split
    variant: int
    partition: int
    receipt: Receipt


class Manifest(Settings):
    """A complete set of shards, named by the hash of the manifest's file."""

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
    """Facts for reports, such as epsilon or the number of truncated texts."""
    shards: tuple[ShardEntry, ...]
    stored_as: tuple[str, ...] = ()
    """Names of all store entries of the set, by-products included; garbage collection reads them."""

    @property
    def recipes(self) -> list[list[str]]:
        """The recipes that the variants use in turn."""
        return list(self.details.get("recipes", [])[: self.variants])

    @property
    def perturbed(self) -> bool:
        """Whether any variant has a δ."""
        return any("perturb" in recipe for recipe in self.recipes)

    def save(self, folder: Path) -> None:
        """Write the manifest, as the last file of its folder: one line for each shard, with what only its key has."""
        shared = _shared_keys(self.shards)
        head = self.model_dump(exclude={"shards"}) | {"shared_keys": shared}
        encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
        lines = (encode(_shortened(entry, shared[entry.variant])) for entry in self.shards)
        text = json.dumps(head, indent=2, ensure_ascii=False, allow_nan=False).removesuffix("\n}")
        with written_whole(folder / MANIFEST_FILE) as partial:
            partial.write_text(text + ',\n  "shards": [\n' + ",\n".join(lines) + "\n  ]\n}\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read and validate ``manifest.json``; raises ``ShardMismatch`` if it is absent, damaged or of another version."""
        path = folder / MANIFEST_FILE
        try:
            text = path.read_text(encoding="utf-8")
            content = json.loads(text)
            found = content.get("format_version") if isinstance(content, dict) else None
            if found == FORMAT_VERSION:
                return _ManifestFile.model_validate_json(text).manifest()
        except FileNotFoundError as cause:
            raise ShardMismatch(NOT_COMPLETE.format(path)) from cause
        except ValidationError as cause:
            raise ShardMismatch(f"{path} is damaged: {cause.errors()[0]['loc']}; make it again with dvc repro") from cause
        except (ValueError, KeyError) as cause:
            raise ShardMismatch(f"{path} is damaged ({cause}); delete the folder and make it again with dvc repro") from cause
        raise ShardMismatch(
            f"{path}: format_version is {found}, this version reads {FORMAT_VERSION}; make the shards again with dvc repro"
        )

    def of_split(self, split: Split) -> tuple[ShardEntry, ...]:
        """The entries of one split, variant by variant, in partition order."""
        chosen = [entry for entry in self.shards if entry.split == split]
        return tuple(sorted(chosen, key=lambda entry: (entry.variant, entry.partition)))


class _ManifestFile(Manifest):
    """``manifest.json``: the key of a shard lacks the fields that all shards of its variant share."""

    shared_keys: dict[int, Key]
    """Those fields, by variant."""

    def manifest(self) -> Manifest:
        """With whole keys; those of this object are completed in place."""
        for entry in self.shards:
            own = entry.receipt.key
            own.update(self.shared_keys[entry.variant] | own)
        return Manifest(**{name: value for name, value in self if name != "shared_keys"})


def _shared_keys(shards: Sequence[ShardEntry]) -> dict[int, Key]:
    """The fields that the keys of all shards of a variant share."""
    shared: dict[int, Key] = {}
    for entry in shards:
        key = entry.receipt.key
        known = shared.setdefault(entry.variant, key)
        shared[entry.variant] = {name: value for name, value in known.items() if name in key and key[name] == value}
    return shared


def _shortened(entry: ShardEntry, shared: Key) -> dict[str, Any]:
    """The entry without the shared fields of its key."""
    receipt = entry.receipt
    key = {name: value for name, value in receipt.key.items() if name not in shared}
    return dict(entry) | {"receipt": dict(receipt) | {"key": key}}


def manifest_hash(folder: Path) -> str:
    """The hash that names a complete set of shards; raises ``ShardMismatch`` if there is no manifest."""
    try:
        return sha256_of(folder / MANIFEST_FILE)
    except FileNotFoundError as cause:
        raise ShardMismatch(NOT_COMPLETE.format(folder / MANIFEST_FILE)) from cause


def put_shards(store: Store, folder: Path, shards: Sequence[ShardEntry]) -> None:
    """Put shards of a published folder into the store if it lacks them, as it does after ``dvc pull``.

    Raises:
        ShardMismatch: a file differs from its receipt.
    """
    shards = [entry for entry in shards if not store.remote or (folder / entry.file).exists()]  # a bucket has the others
    held = store.find([entry.receipt.key for entry in shards])
    for entry in (entry for entry, there in zip(shards, held, strict=True) if there is None):
        path = folder / entry.file
        if not path.exists() or sha256_of(path) != entry.receipt.sha256:
            raise ShardMismatch(f"{path} is missing or damaged, and the store {store} lacks it; make it again with dvc repro")
        add_files(store, entry.receipt.key, {SHARD_FILE: path}, entry.receipt.facts())


def training_hash(folder: Path) -> str:
    """The hash of everything that a training reads of a complete set, so not of its test rows."""
    manifest = Manifest.read(folder)
    read = [(e.split, e.variant, e.partition, e.receipt.sha256) for e in manifest.shards if e.split != "test"]
    facts = manifest.model_dump(mode="json", include={"format_version", "content", "token_types", "pad_token_id", "coding"})
    task = manifest.task.model_dump(mode="json", exclude={"name"})
    made = {"variants": manifest.variants, "recipes": manifest.recipes, "checkpoints": manifest.details.get("checkpoints")}
    return hash_of(facts | made | {"task": task, "shards": sorted(read)})


def check_agreement(subject: str, wanted: Key, found: Key, way_out: str) -> None:
    """Raise a ``ShardMismatch`` that names every field of ``wanted`` whose value differs, with both values."""
    lines = differences(wanted, {name: found.get(name) for name in wanted})
    if lines:
        raise ShardMismatch(f"{subject} do not fit: " + "; ".join(lines) + f". {way_out}")


def lineage(teacher: ModelFolder) -> Key:
    """The part of a key that every shard made with this teacher shares."""
    return {
        "format_version": FORMAT_VERSION,
        "teacher": teacher.hash,
        "tokenizer": teacher.tokenizer_hash,
        "kind": teacher.task.kind,
        "labels": list(teacher.labels) if teacher.task.kind == "classification" else [],
        "max_length": int(teacher.tokenizer.model_max_length),
    }


def check_trained_from(student: Path, soft_labels: Path) -> None:
    """Reject a student that was trained from other soft labels, since it may have seen these test rows."""
    try:
        origin = json.loads((student / LINEAGE_FILE).read_text(encoding="utf-8"))["soft_labels"]
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise PipelineError(f"{student} has no readable {LINEAGE_FILE}, so it is no student of this pipeline") from cause
    if origin != manifest_hash(soft_labels):
        raise PipelineError(
            f"{student} was trained from other soft labels than {soft_labels}, so it may have seen their test rows; "
            "make it again: dvc repro"
        )
