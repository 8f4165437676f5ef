"""A stored variant as model input: word embeddings, mixed with a partner's, plus δ; teacher and student use the same code."""

from collections.abc import Callable

from torch import Tensor

from pipeline.corpus.encoding import PARTNER_IDS, Batch

Words = Callable[[Tensor], Tensor]
"""From token ids [rows, tokens] to word embeddings [rows, tokens, width]."""

OWN_WEIGHT = "own_weight"


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
