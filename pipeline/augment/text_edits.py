"""Mask, delete, swap, sample an n-gram, disorder a span: text edits on token ids. Knows ids and seeds, not models or shards.

A run is a text of a row: the longest stretch of ordinary tokens between special ones. A pair has two. Every run is edited by
itself, so special tokens stay where they are and no token moves from one text to the other.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, get_args

import numpy as np
import numpy.typing as npt
from pydantic import Field
from transformers import PreTrainedTokenizerBase

from pipeline.config.errors import PipelineError
from pipeline.config.params import Settings
from pipeline.corpus.encoding import Ids, Types

Operation = Literal["mask", "delete", "swap", "ngram", "span"]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)

Positions = npt.NDArray[np.int64]

Share = Annotated[float, Field(gt=0, le=1)]


class TextEditSettings(Settings):
    """How much of every run an operation acts on: a share is rounded to whole tokens, at least one."""

    mask: Share
    """Share of tokens that become the mask token."""
    delete: Share
    """Share of tokens left out; one always stays."""
    swap: Share
    """Share of tokens that trade places, two and two; at least two."""
    ngram: Annotated[int, Field(ge=1)]
    """The longest n-gram that is kept of a run; n is drawn from 1 to it."""
    span: Share
    """Share of tokens, neighbours of one another, that are put into another order; at least two."""


def edit(
    operations: Sequence[Operation],
    input_ids: Ids,
    token_type_ids: Types | None,
    special: frozenset[int],
    mask_id: int | None,
    settings: TextEditSettings,
    seed: int,
) -> tuple[Ids, Types | None]:
    """One row after these operations, in their order; a function of its arguments alone and never longer than the row.

    Masking and n-gram sampling are those of Tang et al. (2019, arXiv 1903.12136, §4.3), who mask a tenth of the words and
    draw n from 1 to 5. A token masked by one operation is an ordinary token to the next.

    Args:
        operations: what is done to every run, one after the other.
        input_ids: the row.
        token_type_ids: types follow their tokens; None where the model has none.
        special: ids that are never touched; an unknown word is ordinary.
        mask_id: of the mask token; None where the tokenizer has none.
        settings: how much.
        seed: in [0, 2⁶³).

    Raises:
        PipelineError: masking is asked for and the tokenizer has no mask token.
    """
    if "mask" in operations and mask_id is None:
        raise PipelineError("the text edit 'mask' needs a mask token, and the teacher's tokenizer has none; leave 'mask' out")
    generator = np.random.Generator(np.random.Philox(key=seed))
    ids, order, behind = input_ids.copy(), [], 0
    for start, stop in runs(input_ids, special):
        edited = _edit_run(operations, np.arange(start, stop), ids, mask_id, settings, generator)
        order += [np.arange(behind, start), edited]
        behind = stop
    kept = np.concatenate([*order, np.arange(behind, len(ids))])
    return ids[kept], None if token_type_ids is None else token_type_ids[kept]


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of special tokens; the unknown word is an ordinary one."""
    return frozenset(tokenizer.all_special_ids) - {tokenizer.unk_token_id}


def runs(input_ids: Ids, special: frozenset[int]) -> list[tuple[int, int]]:
    """First position of every run and the one behind its last; a row without special tokens is one run."""
    ordinary = ~np.isin(input_ids, list(special))
    edges = np.flatnonzero(np.diff(ordinary, prepend=False, append=False))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def _edit_run(
    operations: Sequence[Operation],
    order: Positions,
    ids: Ids,
    mask_id: int | None,
    settings: TextEditSettings,
    generator: np.random.Generator,
) -> Positions:
    """The positions of a run that are left, in their new order; ``ids`` of the row are masked in place."""
    for operation in operations:
        match operation:
            case "mask":
                assert mask_id is not None
                ids[generator.choice(order, _rounded(settings.mask, len(order)), replace=False)] = mask_id
            case "delete":
                order = _without(order, settings.delete, generator)
            case "swap":
                order = _swapped(order, settings.swap, generator)
            case "ngram":
                order = _ngram(order, settings.ngram, generator)
            case "span":
                order = order[_disorder(ids[order], settings.span, generator)]
    return order


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


def _ngram(order: Positions, longest: int, generator: np.random.Generator) -> Positions:
    length = int(generator.integers(1, min(longest, len(order)), endpoint=True))
    start = int(generator.integers(0, len(order) - length, endpoint=True))
    return order[start : start + length]


def _disorder(tokens: Ids, share: float, generator: np.random.Generator) -> Positions:
    """An order [tokens] that reads differently within one span; the same order where all tokens of the run are equal."""
    order = np.arange(len(tokens))
    if len(set(tokens.tolist())) < 2:
        return order
    length = max(2, _rounded(share, len(tokens)))
    windows = np.lib.stride_tricks.sliding_window_view(tokens, length)
    start = generator.choice(np.flatnonzero((windows != windows[:, :1]).any(axis=1)))
    while np.array_equal(tokens[order], tokens):
        order[start : start + length] = generator.permutation(np.arange(start, start + length))
    return order
