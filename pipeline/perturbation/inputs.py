"""A stored variant as a model's input: the words of its tokens, mixed with a partner's, plus δ. One way for both halves.

The teacher labels exactly what a student later sees. Knows embeddings and batches; not models, shards or settings.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.corpus.encoding import PARTNER_IDS, Batch, Integers, collate

Words = Callable[[Tensor], Tensor]
"""From token ids [rows, tokens] to word embeddings [rows, tokens, width]."""

OWN_WEIGHT = "own_weight"


def mixing_batch(
    input_ids: Sequence[Integers],
    token_type_ids: Sequence[Integers] | None,
    partner_ids: Sequence[Integers | None],
    own_weights: Sequence[float | None],
    pad_token_id: int,
    tokens: int = 0,
) -> Batch:
    """Pad rows, and their partners where any has one; a row without counts as its own partner.

    Args:
        input_ids: of the rows.
        token_type_ids: of the rows, where the model has them.
        partner_ids: as long as the row's own ids, or None.
        own_weights: share of the row's own embeddings, or None.
        pad_token_id: fills the rows.
        tokens: pads at least to this length.
    """
    batch = collate(input_ids, token_type_ids, pad_token_id, tokens)
    if any(ids is not None for ids in partner_ids):
        partners = [own if ids is None else ids for own, ids in zip(input_ids, partner_ids, strict=True)]
        batch[PARTNER_IDS] = collate(partners, None, pad_token_id, tokens)["input_ids"]
        batch[OWN_WEIGHT] = torch.tensor([1.0 if weight is None else weight for weight in own_weights])
    return batch


def variant_embeddings(words: Words, batch: Batch) -> Tensor:
    """Word embeddings [rows, tokens, width] of a batch before δ: own ones, or λ · own + (1 − λ) · partner's (MixKD)."""
    own = words(batch["input_ids"])
    if PARTNER_IDS not in batch:
        return own
    weight = batch[OWN_WEIGHT].to(own.dtype)[:, None, None]
    return weight * own + (1 - weight) * words(batch[PARTNER_IDS])


def mapped(delta: Tensor, linear: Tensor | None) -> Tensor:
    """δ [..., teacher's width] in another model's word-embedding space [..., its width]; None where both share one."""
    return delta if linear is None else delta @ linear.to(delta.device)


def filled(ids: Integers, length: int, pad_token_id: int) -> npt.NDArray[np.int32]:
    """Token ids lengthened with padding tokens, whose embedding then takes part in a mixture."""
    return np.concatenate([ids, np.full(length - len(ids), pad_token_id)]).astype(np.int32)
