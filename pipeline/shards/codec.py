"""How a perturbation is coded: float16, int8 or one sign bit an element, with one float32 scale a token.

A codec turns δ into codes and scales, and back by one multiplication, so that the teacher, which labels the decoded δ, and
the student, which reads it from disk, see the same numbers. Codes travel as bytes, tokens × width, row by row, little-endian.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config.settings import CodecName


@dataclass(frozen=True)
class Codec:
    """One way of coding; ``width`` below is the width of the word embeddings."""

    name: CodecName
    dtype: type[np.generic]
    """Of the codes."""
    bits: int
    """Stored bits an element, the scale of each token apart."""
    quantise: Callable[[Tensor], tuple[Tensor, Tensor]]
    """δ [..., tokens, width] → codes of the same shape, scales [..., tokens]."""
    pack: Callable[[npt.NDArray[np.generic]], bytes]
    """Codes [tokens, width] → bytes."""
    unpack: Callable[[bytes | memoryview, int], npt.NDArray[np.generic]]
    """Bytes and width → codes [tokens, width]."""


def dequantise(codes: Tensor, scales: Tensor) -> Tensor:
    """The δ that everybody sees: codes [..., tokens, width] × scales [..., tokens], in float32."""
    return codes.float() * scales.unsqueeze(-1)


def _scaled(delta: Tensor, levels: float, to_codes: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Code δ relative to each token's largest element.

    Rounding may lengthen a token's vector a little; its scale is then shortened by as much, so that a perturbation on
    the edge of its L2 ball stays inside it.
    """
    largest = delta.abs().amax(dim=-1)
    scales = largest / levels
    codes = to_codes(delta / torch.where(scales > 0, scales, 1.0).unsqueeze(-1))
    before = torch.linalg.vector_norm(delta, dim=-1)
    after = torch.linalg.vector_norm(dequantise(codes, scales), dim=-1)
    return codes, scales * torch.where(after > before, before / after, 1.0)


def _quantise_float16(delta: Tensor) -> tuple[Tensor, Tensor]:
    return _scaled(delta, 1.0, lambda x: x.half())


def _quantise_int8(delta: Tensor) -> tuple[Tensor, Tensor]:
    return _scaled(delta, 127.0, lambda x: x.round().clamp(-127, 127).to(torch.int8))


def _quantise_sign(delta: Tensor) -> tuple[Tensor, Tensor]:
    """±1 with each token's mean magnitude: the nearest such vector, never longer than δ, and exact where |δ| is constant."""
    signs = torch.where(delta > 0, 1, -1).to(torch.int8)
    return signs, delta.abs().mean(dim=-1)


def _unpack_signs(held: bytes | memoryview, width: int) -> npt.NDArray[np.generic]:
    row_bytes = (width + 7) // 8
    bits = np.unpackbits(np.frombuffer(held, np.uint8).reshape(-1, row_bytes), axis=1, count=width)
    return (bits.astype(np.int8) * 2 - 1).astype(np.int8)


CODECS: dict[CodecName, Codec] = {
    codec.name: codec
    for codec in (
        Codec(
            name="float16",
            dtype=np.float16,
            bits=16,
            quantise=_quantise_float16,
            pack=lambda codes: codes.astype("<f2").tobytes(),
            unpack=lambda held, width: np.frombuffer(held, "<f2").reshape(-1, width),
        ),
        Codec(
            name="int8",
            dtype=np.int8,
            bits=8,
            quantise=_quantise_int8,
            pack=lambda codes: codes.astype(np.int8).tobytes(),
            unpack=lambda held, width: np.frombuffer(held, np.int8).reshape(-1, width),
        ),
        Codec(
            name="sign",
            dtype=np.int8,
            bits=1,
            quantise=_quantise_sign,
            pack=lambda codes: np.packbits(codes > 0, axis=1).tobytes(),  # type: ignore[operator]
            unpack=_unpack_signs,
        ),
    )
}
