"""Seeds from what a thing is (task, example, variant, epoch), never from who computes it or when, and samples by such seeds."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from pipeline.store.keys import canonical_json, hash_of

SEED_BITS = 63

NAMES_AT_ONCE = 2**16
"""Names whose seeds are in memory at a time."""


def seed_of(*names: str | int) -> int:
    """A seed in [0, 2⁶³) that depends on every name and on their order."""
    return int(hash_of(list(names)), 16) >> (256 - SEED_BITS)


def seeds_of(names: Sequence[str], *first: str | int) -> npt.NDArray[np.int64]:
    """``seed_of(*first, name)`` of each name, several times faster."""
    if not names:
        return np.empty(0, dtype=np.int64)
    # No line break is left in JSON, so it can separate the names.
    texts = json.dumps(names, ensure_ascii=False, separators=("\n", ":")).encode()[1:-1].split(b"\n")
    start = canonical_json([*first, ""])[: -len('""]')]
    digests = b"".join(hashlib.sha256(start + text + b"]").digest()[:8] for text in texts)
    return (np.frombuffer(digests, dtype=">u8") >> (64 - SEED_BITS)).astype(np.int64)


def parts_of(names: Iterable[str]) -> Iterator[list[str]]:
    """Names in lists of ``NAMES_AT_ONCE``."""
    remaining = iter(names)
    while part := list(islice(remaining, NAMES_AT_ONCE)):
        yield part


def sample(names: Iterable[str], size: int, *seed: str | int) -> list[int]:
    """Positions of the ``size`` names with the smallest seeds, in ascending order.

    Adding, removing or reordering other names rarely changes whether a name is drawn.
    """
    seeds, positions, seen = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), 0
    for part in parts_of(names):
        seeds = np.concatenate([seeds, seeds_of(part, *seed)])
        positions = np.concatenate([positions, np.arange(seen, seen + len(part))])
        smallest = np.argsort(seeds, kind="stable")[:size]
        seeds, positions, seen = seeds[smallest], positions[smallest], seen + len(part)
    return sorted(positions.tolist())
