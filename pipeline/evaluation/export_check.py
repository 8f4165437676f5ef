"""Whether a file answers as torch does, in batches that mix lengths and differ in size.

Knows rows of shards and logits; must not know what computes them.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.config.errors import PipelineError
from pipeline.corpus.encoding import Batch, Integers
from pipeline.corpus.seeding import seed_of
from pipeline.corpus.task import Floats
from pipeline.shards.batches import inputs_at
from pipeline.shards.reader import Rows

LARGEST_DIFFERENCE = 1e-4
"""How far a logit of the float file may lie from torch's, as a share of the largest logit."""

CHECKED_ROWS = (1, 2, 3, 5, 8, 13, 21, 32)
"""Rows of the batches in which a file is checked, in turn."""


def logits_in_mixed_batches(answer: Callable[[Batch], Floats], rows: Rows, pad_token_id: int, outputs: int) -> Floats:
    """The logits [rows, outputs] in the order of ``rows``, computed in batches that mix lengths and differ in size."""
    found = np.empty((len(rows), outputs), dtype=np.float32)
    for group in mixed_groups(len(rows)):
        found[group] = answer(inputs_at(rows, group, pad_token_id))
    return found


def mixed_groups(rows: int) -> list[Integers]:
    """Positions 0..rows-1 in no order, in groups of ``CHECKED_ROWS`` in turn."""
    order = np.random.default_rng(seed_of("export", "order")).permutation(rows)
    ends = np.cumsum(np.resize(CHECKED_ROWS, rows))
    return np.split(order, ends[ends < rows])


def check_difference(student: Path, found: Floats, wanted: Floats) -> None:
    """Refuse logits that lie too far from torch's, or are no numbers; both are [rows, outputs]."""
    difference, allowed = largest_difference(found, wanted), allowed_difference(wanted)
    if not difference <= allowed:
        raise PipelineError(
            f"{student} as ONNX answers otherwise than by torch: a logit differs by {difference:.1e} and may differ by "
            f"{allowed:.1e}; nothing was written. Another version of torch or onnxruntime may do better"
        )


def largest_difference(found: Floats, wanted: Floats) -> float:
    """The largest absolute difference of two logits."""
    return float(np.abs(found - wanted).max())


def allowed_difference(wanted: Floats) -> float:
    """The largest difference that the float file is allowed where torch's logits are these."""
    return LARGEST_DIFFERENCE * float(np.abs(wanted).max())
