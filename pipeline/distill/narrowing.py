"""A narrower layer from a wider one: what each axis of a weight runs along, and how each kind of axis is cut.

A transformer adds every layer to one residual stream, whose basis is that of the word embeddings, so the linear map of the
embeddings also maps the stream. Axes along attention heads or inner neurons keep some of them.
"""

import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Axis = Literal["stream", "heads", "inner", "other"]
"""What an axis of a weight runs along."""

NARROWABLE = ("albert", "bert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta", "xlm-roberta")
"""Model types whose widths may be cut: one residual stream, and as many key and value heads as query heads."""

ROLES: tuple[tuple[str, Axis, Axis], ...] = (
    (r"\.(pos_)?(query|key|value)(_proj)?\.|\.[qkv]_lin\.|\.attn\.[qkv]\.", "heads", "stream"),
    (r"\.attention\.(output\.)?dense\.|\.out_lin\.|\.attn\.o\.", "stream", "heads"),
    (r"\.intermediate\.dense\.|\.ffn\.lin1\.|\.ffn\.(weight|bias)$", "inner", "stream"),
    (r"\.output\.dense\.|\.ffn\.lin2\.|\.ffn_output\.", "stream", "inner"),
    (r"pooler\.(dense\.)?|pre_classifier\.|^classifier\.dense\.|^head\.dense\.", "stream", "stream"),
    (r"^classifier\.(out_proj\.)?(weight|bias)$", "other", "stream"),
    (r"embeddings\.weight$", "other", "stream"),
)
"""By a pattern of parameter names: what output and input axis run along; the first match counts."""

NORM = re.compile(r"layer_?norm\.", re.IGNORECASE)


@dataclass(frozen=True)
class Narrowing:
    """How each kind of axis is cut."""

    stream: Tensor
    """[teacher's width, student's width], orthonormal columns."""
    heads: Tensor
    """Positions along the heads' axis that are kept: whole heads, spread evenly."""
    inner: Tensor
    """Positions of the inner neurons that are kept, spread evenly."""

    def parameter(self, name: str, held: Tensor) -> Tensor | None:
        """The student's parameter from the teacher's of that name; None if its axes are unknown."""
        if NORM.search(name):
            return self._norm(name, held)
        roles = next(((out, into) for pattern, out, into in ROLES if re.search(pattern, name)), None)
        if roles is None:
            return None
        narrowed = self._along(held, 0, roles[0])
        return self._along(narrowed, 1, roles[1]) if held.dim() == 2 else narrowed

    def _along(self, held: Tensor, axis: int, role: Axis) -> Tensor:
        match role:
            case "stream":
                return torch.movedim(torch.movedim(held, axis, -1) @ self.stream, -1, axis)
            case "heads":
                return held.index_select(axis, self.heads)
            case "inner":
                return held.index_select(axis, self.inner)
            case "other":
                return held

    def _norm(self, name: str, held: Tensor) -> Tensor:
        """Scales act on directions of the old basis; of the scale in the new basis the diagonal is kept."""
        return held @ self.stream if name.endswith("bias") else held @ self.stream.square()


def spread(wanted: int, available: int) -> Tensor:
    """``wanted`` of the positions 0..available-1, spread evenly."""
    return torch.arange(wanted) * available // wanted


def head_positions(wanted: int, available: int, head_size: int) -> Tensor:
    """Positions along the heads' axis of some whole heads, spread evenly."""
    return (spread(wanted, available).unsqueeze(1) * head_size + torch.arange(head_size)).flatten()
