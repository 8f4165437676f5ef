"""Text edits on token ids: mask, delete, swap, disorder a span.

A run is the longest stretch of ordinary tokens between special ones, that is one text of a row; a pair has two. Every run is
edited by itself, so special tokens keep their places and no token moves from one text to the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from pipeline.config.errors import PipelineError
from pipeline.config.settings import Operation, TextEditSettings
from pipeline.corpus.encoding import Ids, Types

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TextEdits:
    """Operations applied to every run of a row, one after the other."""

    operations: Sequence[Operation]
    settings: TextEditSettings
    special: frozenset[int]
    """Ids that are never changed; an unknown word is ordinary."""
    mask_id: int | None
    """None where the tokenizer has no mask token."""

    def row(self, input_ids: Ids, token_type_ids: Types | None, seed: int) -> tuple[Ids, Types | None]:
        """One edited row with the types of its tokens; a function of its arguments alone and never longer than the row.

        A token masked by one operation is an ordinary token to the next. ``seed`` is in [0, 2⁶³).

        Raises:
            PipelineError: masking is asked for and the tokenizer has no mask token.
        """
        if "mask" in self.operations and self.mask_id is None:
            raise PipelineError(
                "the text edit 'mask' needs a mask token, and the teacher's tokenizer has none; leave 'mask' out"
            )
        generator = np.random.Generator(np.random.Philox(key=seed))
        ids, order, behind = input_ids.copy(), [], 0
        for start, stop in runs(input_ids, self.special):
            order += [np.arange(behind, start), self._run(np.arange(start, stop), ids, generator)]
            behind = stop
        kept = np.concatenate([*order, np.arange(behind, len(ids))])
        return ids[kept], None if token_type_ids is None else token_type_ids[kept]

    def _run(self, order: Positions, ids: Ids, generator: np.random.Generator) -> Positions:
        """The remaining positions of a run in their new order; ``ids`` of the row are masked in place."""
        for operation in self.operations:
            match operation:
                case "mask":
                    assert self.mask_id is not None
                    ids[generator.choice(order, _rounded(self.settings.mask, len(order)), replace=False)] = self.mask_id
                case "delete":
                    order = _without(order, self.settings.delete, generator)
                case "swap":
                    order = _swapped(order, self.settings.swap, generator)
                case "span":
                    order = order[_disorder(ids[order], self.settings.span, generator)]
        return order


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of special tokens; the unknown word is an ordinary one."""
    return frozenset(tokenizer.all_special_ids) - {tokenizer.unk_token_id}


def runs(input_ids: Ids, special: frozenset[int]) -> list[tuple[int, int]]:
    """First position of every run and the one behind its last; a row without special tokens is one run."""
    ordinary = ~np.isin(input_ids, list(special))
    edges = np.flatnonzero(np.diff(ordinary, prepend=False, append=False))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def _rounded(share: float, tokens: int) -> int:
    """A share of a run in whole tokens, at least one."""
    return max(1, round(share * tokens))


def _without(order: Positions, share: float, generator: np.random.Generator) -> Positions:
    kept = max(1, len(order) - _rounded(share, len(order)))
    return order[np.sort(generator.choice(len(order), kept, replace=False))]


def _swapped(order: Positions, share: float, generator: np.random.Generator) -> Positions:
    if len(order) < 2:
        return order
    pairs = max(1, _rounded(share, len(order)) // 2)
    first, second = generator.choice(len(order), (2, pairs), replace=False)
    swapped = order.copy()
    swapped[first], swapped[second] = order[second], order[first]
    return swapped


def _disorder(tokens: Ids, share: float, generator: np.random.Generator) -> Positions:
    """An order [tokens] that changes the tokens within one span; the identity if all tokens of the run are equal."""
    order = np.arange(len(tokens))
    if len(set(tokens.tolist())) < 2:
        return order
    length = max(2, _rounded(share, len(tokens)))
    windows = np.lib.stride_tricks.sliding_window_view(tokens, length)
    start = generator.choice(np.flatnonzero((windows != windows[:, :1]).any(axis=1)))
    while np.array_equal(tokens[order], tokens):
        order[start : start + length] = generator.permutation(np.arange(start, start + length))
    return order
