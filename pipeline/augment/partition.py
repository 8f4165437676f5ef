"""Which examples become one shard. Decides the bytes; knows ids, texts and labels, not who computes them or where."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.files import hash_of
from pipeline.seeding import seed_of
from pipeline.tasks import Split


@dataclass(frozen=True)
class Partition:
    """The examples of one shard."""

    split: Split
    number: int
    example_ids: list[str]
    first: list[str]
    second: list[str] | None
    labels: list[float | int | None]

    def examples_hash(self) -> str:
        """Names the examples by all that is given of them."""
        return hash_of([self.example_ids, self.first, self.second, self.labels])


def cut(example_ids: Sequence[str], rows: int) -> Iterator[range]:
    """Cut a split into runs of about ``rows`` examples, at places that the examples themselves decide.

    A run ends after an example whose hash says so (one in ``rows``/2), not before ``rows``/2 and at the latest at
    2 × ``rows``. So a row that is added, changed or removed alters its own run, and the cuts after it fall where they fell
    before: only the shards that changed are computed again (content-defined chunking, as in rsync and its successors).
    """
    start = 0
    for position, example_id in enumerate(example_ids):
        length = position + 1 - start
        chosen = length >= rows / 2 and seed_of(example_id) % max(rows // 2, 1) == 0
        if chosen or length >= 2 * rows:
            yield range(start, position + 1)
            start = position + 1
    if start < len(example_ids):
        yield range(start, len(example_ids))
