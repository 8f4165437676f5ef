"""Seeds from what a thing is (task, example, variant, epoch), never from who computes it or when, and samples by such seeds."""

import heapq
from collections.abc import Iterable

from pipeline.store.keys import hash_of

SEED_BITS = 63


def seed_of(*names: str | int) -> int:
    """A seed in [0, 2⁶³) that depends on every name and on their order."""
    return int(hash_of(list(names)), 16) >> (256 - SEED_BITS)


def sample(names: Iterable[str], size: int, *seed: str | int) -> list[int]:
    """Positions of the ``size`` names with the smallest seeds, in ascending order.

    Adding, removing or reordering other names rarely changes whether a name is drawn.
    """
    seeds = ((seed_of(*seed, name), position) for position, name in enumerate(names))
    return sorted(position for _, position in heapq.nsmallest(size, seeds))
