"""The shard store: finished shards by key, outside DVC's outs, so that nothing computed is lost or mixed.

A shard is written whole, its receipt after it. A shard without a receipt, or whose bytes are not those of its receipt, is
not there: it is computed again and replaces itself.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.files import hash_of, sha256_of, write_json, written_whole
from pipeline.shards.manifest import Key, Receipt, key_hash


@dataclass(frozen=True)
class ShardStore:
    """A folder of ``<key hash>.arrow`` with ``<key hash>.json`` beside each."""

    folder: Path

    def shard_path(self, key: Key) -> Path:
        """Where the shard of a key lies once it is finished."""
        return self.folder / f"{key_hash(key)}.arrow"

    def receipt_path(self, key: Key) -> Path:
        """Where the receipt of a key lies; it is written after the shard."""
        return self.folder / f"{key_hash(key)}.json"

    def find(self, key: Key) -> Receipt | None:
        """The receipt of a finished shard whose bytes are as they were written, else None."""
        receipt = self._receipt(key)
        shard = self.shard_path(key)
        if receipt is None or not shard.exists() or shard.stat().st_size != receipt.bytes:
            return None
        return receipt if sha256_of(shard) == receipt.sha256 else None

    def has_receipt(self, key: Key) -> bool:
        """Whether the shard was finished once; with nothing to ``find`` it was damaged since."""
        return self.receipt_path(key).exists()

    def finish(self, receipt: Receipt) -> None:
        """Write the receipt: from now on the shard counts as finished."""
        write_json(self.receipt_path(receipt.key), receipt.model_dump())

    def place(self, key: Key, target: Path) -> None:
        """Put the shard of a key at ``target``: a hard link where the file system has them, else a copy."""
        try:
            os.link(self.shard_path(key), target)
        except OSError:
            with written_whole(target) as partial:
                shutil.copyfile(self.shard_path(key), partial)

    def remember(self, key: Key, value: dict[str, Any]) -> None:
        """Keep a small result that is no shard, such as a radius found, under its key."""
        write_json(self.folder / f"{key_hash(key)}.note.json", {"key": key, "value": value})

    def recall(self, key: Key) -> dict[str, Any] | None:
        """What was remembered under a key, else None."""
        try:
            note = json.loads((self.folder / f"{key_hash(key)}.note.json").read_text(encoding="utf-8"))
            value: dict[str, Any] = note["value"]
            return value if hash_of(note["key"]) == hash_of(key) else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def _receipt(self, key: Key) -> Receipt | None:
        try:
            receipt = Receipt.model_validate_json(self.receipt_path(key).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        return receipt if hash_of(receipt.key) == hash_of(key) else None
