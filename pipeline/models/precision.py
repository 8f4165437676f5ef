"""Which settings ask for bfloat16 or float16, and how much slower than float32 this processor multiplies in bfloat16."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pipeline.config.params import read_params

SLOW = 1.5
"""A ratio of times above which a note is printed."""

PRODUCT, TIMINGS, ENOUGH_SECONDS = (512, 384, 512), 5, 0.02
"""The matrix product that is timed, how often at most, and after how many seconds no more."""


def bfloat16_slowdown() -> float | None:
    """How many times as long a matrix product takes in bfloat16 as in float32; None if a GPU computes or it is not slow."""
    if torch.cuda.is_available():
        return None
    ratio = _product_seconds(torch.bfloat16) / _product_seconds(torch.float32)
    return ratio if ratio > SLOW else None


def _product_seconds(dtype: torch.dtype) -> float:
    """The shortest time of a few products of two matrices."""
    rows, inner, columns = PRODUCT
    left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, columns, dtype=dtype)
    left[:8, :8] @ right[:8, :8]  # the first product initialises the library
    seconds = list[float]()
    while len(seconds) < TIMINGS and sum(seconds) < ENOUGH_SECONDS:
        began = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def asking_for(precision: str, params: Path) -> list[str]:
    """Places of the settings in a parameter file that ask for a precision, such as ``bfloat16``."""
    return [place for place, value in _settings(read_params(params)) if place.endswith("precision") and value == precision]


def _settings(section: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting below a section with its dotted place."""
    if isinstance(section, dict):
        for name, below in section.items():
            yield f"{above}{name}", below
            yield from _settings(below, f"{above}{name}.")


def note_slow_precision(params: Path) -> None:
    """Print which settings ask for bfloat16, if this processor is slow at it."""
    if (asking := asking_for("bfloat16", params)) and (ratio := bfloat16_slowdown()):
        print(
            f"note: {', '.join(asking)}: on this processor a product in bfloat16 takes {ratio:.1f} times as long as in float32",
            flush=True,
        )
