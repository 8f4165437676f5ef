"""Some rows of many, each drawn or not by the hash of its own name. Knows names, not what they name."""

import heapq
from collections.abc import Iterable

from pipeline.store.seeding import seed_of


def sample(names: Iterable[str], size: int, *seed: str | int) -> list[int]:
    """Positions of ``size`` of the names, in their order: of those whose seeds are the smallest.

    So a name is drawn or not with little regard to what else there is, and in whatever order.
    """
    seeds = ((seed_of(*seed, name), position) for position, name in enumerate(names))
    return sorted(position for _, position in heapq.nsmallest(size, seeds))
