"""Codes of a perturbation: float16, int8 or one sign bit per element, with one float32 scale per token.

Decoding is one multiplication, so the teacher, which labels the decoded δ, and the student, which reads it from disk, use the
same numbers. Codes are stored as bytes, tokens × width, row by row, little-endian.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config.settings import CodecName

Codes = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Codec:
    """One coding; ``width`` is the width of the word embeddings."""

    dtype: type[np.generic]
    """Of the codes."""
    bits: int
    """Stored bits per element, without the scales."""
    quantise: Callable[[Tensor], tuple[Tensor, Tensor]]
    """δ [..., tokens, width] → codes of the same shape, scales [..., tokens]."""
    pack: Callable[[Codes], bytes]
    """Codes [tokens, width] → bytes."""
    unpack: Callable[[bytes | memoryview, int], Codes]
    """Bytes and width → codes [tokens, width]."""


def dequantise(codes: Tensor, scales: Tensor) -> Tensor:
    """The decoded δ: codes [..., tokens, width] × scales [..., tokens], in float32."""
    return codes.float() * scales.unsqueeze(-1)


def _scaled(delta: Tensor, levels: float, to_codes: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Code δ relative to each token's largest element.

    Rounding may lengthen a token's vector slightly. Its scale is then reduced so that the vector stays inside its L2 ball.
    """
    scales = delta.abs().amax(dim=-1) / levels
    codes = to_codes(delta / torch.where(scales > 0, scales, 1.0).unsqueeze(-1))
    before = torch.linalg.vector_norm(delta, dim=-1)
    after = torch.linalg.vector_norm(dequantise(codes, scales), dim=-1)
    return codes, scales * torch.where(after > before, before / after, 1.0)


def _signs(delta: Tensor) -> tuple[Tensor, Tensor]:
    """±1 with each token's mean magnitude: the nearest such vector, never longer than δ, and exact if |δ| is constant."""
    return torch.where(delta > 0, 1, -1).to(torch.int8), delta.abs().mean(dim=-1)


def _unpack_signs(packed: bytes | memoryview, width: int) -> Codes:
    rows = np.frombuffer(packed, np.uint8).reshape(-1, (width + 7) // 8)
    return np.unpackbits(rows, axis=1, count=width).astype(np.int8) * 2 - 1


CODECS: dict[CodecName, Codec] = {
    "float16": Codec(
        dtype=np.float16,
        bits=16,
        quantise=lambda delta: _scaled(delta, 1.0, lambda x: x.half()),
        pack=lambda codes: codes.astype("<f2").tobytes(),
        unpack=lambda packed, width: np.frombuffer(packed, "<f2").reshape(-1, width),
    ),
    "int8": Codec(
        dtype=np.int8,
        bits=8,
        quantise=lambda delta: _scaled(delta, 127.0, lambda x: x.round().clamp(-127, 127).to(torch.int8)),
        pack=lambda codes: codes.astype(np.int8).tobytes(),
        unpack=lambda packed, width: np.frombuffer(packed, np.int8).reshape(-1, width),
    ),
    "sign": Codec(
        dtype=np.int8,
        bits=1,
        quantise=_signs,
        pack=lambda codes: np.packbits(codes > 0, axis=1).tobytes(),  # type: ignore[operator]
        unpack=_unpack_signs,
    ),
}
