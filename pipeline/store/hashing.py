"""SHA-256 of files and plain values, and keys: named hashes and settings that decide a result."""

import hashlib
import json
from pathlib import Path
from typing import Any

Key = dict[str, Any]
"""Named hashes and settings that decide a result's bytes; printed, compared and diffed by name."""


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spare space, so that equal values give equal bytes; NaN raises ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def hash_of(value: Any) -> str:
    """The SHA-256 of a plain value's canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def key_hash(key: Key) -> str:
    """The name under which the store keeps the result of a key."""
    return hash_of(key)[:32]


def differences(wanted: Key, found: Key) -> list[str]:
    """One line for each name whose value differs between two keys."""
    names = sorted(wanted.keys() | found.keys())
    return [
        f"{name}: {_short(wanted.get(name))} wanted, {_short(found.get(name))} found"
        for name in names
        if wanted.get(name) != found.get(name)
    ]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text[:12] + "…" if isinstance(value, str) and len(text) > 24 else text
