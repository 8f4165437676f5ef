"""Which settings ask for bfloat16 or float16, and how much slower than float32 this CPU multiplies in bfloat16."""

import timeit
from pathlib import Path
from typing import Any

import torch

from pipeline.config.params import read_params

SLOW = 1.5
"""A ratio of times above which a note is printed."""


def bfloat16_slowdown() -> float | None:
    """How many times as long a matrix product takes in bfloat16 as in float32; None with a GPU or if it is not slow."""
    if torch.cuda.is_available():
        return None
    ratio = _product_seconds(torch.bfloat16) / _product_seconds(torch.float32)
    return ratio if ratio > SLOW else None


def _product_seconds(dtype: torch.dtype) -> float:
    """The shortest time of a few products of two matrices."""
    left, right = torch.ones(2, 384, 384, dtype=dtype)
    left[:8] @ right  # the first product initialises the library
    return min(timeit.repeat(lambda: left @ right, number=1, repeat=3))


def asking_for(precision: str, params: Path) -> list[str]:
    """Dotted names of the settings in a parameter file that ask for a precision, such as ``bfloat16``."""

    def below(section: Any, place: str) -> list[str]:
        if isinstance(section, dict):
            return [found for name, value in section.items() for found in below(value, f"{place}.{name}")]
        return [place.removeprefix(".")] if place.endswith("precision") and section == precision else []

    return below(read_params(params), "")


def note_slow_precision(params: Path) -> None:
    """Print which settings ask for bfloat16, if this CPU is slow at it."""
    if (asking := asking_for("bfloat16", params)) and (ratio := bfloat16_slowdown()):
        print(
            f"note: {', '.join(asking)}: on this processor a product in bfloat16 takes {ratio:.1f} times as long as in float32",
            flush=True,
        )
