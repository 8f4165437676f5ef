"""Seeds from what a thing is (task, example, variant, epoch), never from who computes it or when."""

from pipeline.store.files import hash_of

SEED_BITS = 63


def seed_of(*names: str | int) -> int:
    """A seed in [0, 2⁶³) that depends on every name and on their order."""
    return int(hash_of(list(names)), 16) >> (256 - SEED_BITS)
