"""A stored variant as model input: word embeddings, mixed with a partner's, plus δ; teacher and student use the same code."""

from collections.abc import Callable, Sequence

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
    """Pad rows to at least ``tokens`` and, if any row has a partner, the partners; a row without one is its own.

    ``partner_ids`` are as long as the row's own ids; ``own_weights`` are λ, the weights of the row's own embeddings.
    """
    batch = collate(input_ids, token_type_ids, pad_token_id, tokens)
    if any(ids is not None for ids in partner_ids):
        partners = [own if ids is None else ids for own, ids in zip(input_ids, partner_ids, strict=True)]
        batch[PARTNER_IDS] = collate(partners, None, pad_token_id, tokens)["input_ids"]
        batch[OWN_WEIGHT] = torch.tensor([1.0 if weight is None else weight for weight in own_weights])
    return batch


def variant_embeddings(words: Words, batch: Batch) -> Tensor:
    """Word embeddings [rows, tokens, width] of a batch without δ; of mixed rows λ · own + (1 − λ) · partner's (MixKD)."""
    own = words(batch["input_ids"])
    if PARTNER_IDS not in batch:
        return own
    weight = batch[OWN_WEIGHT].to(own.dtype)[:, None, None]
    return weight * own + (1 - weight) * words(batch[PARTNER_IDS])


def mapped(delta: Tensor, linear: Tensor | None) -> Tensor:
    """δ [..., teacher's width] in a model's embedding space [..., its width]; ``linear`` is None if they share one."""
    return delta if linear is None else delta @ linear.to(delta.device)
