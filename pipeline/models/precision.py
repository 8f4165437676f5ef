"""Which settings ask for bfloat16 or float16, and how much slower than float32 this processor multiplies in bfloat16."""

import itertools
import time
from pathlib import Path

import torch

from pipeline.config.params import Places, as_places, lookup, read_params

SLOW = 1.5
"""A ratio of times above which a note is printed."""

SETTINGS = ("precision", "optimiser.precision")
"""Settings of a section that name a precision."""

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


def asking_for(precision: str, params: Path, *sections: str | Places) -> list[str]:
    """The settings of these sections that ask for a precision, each once, by their place in the parameter file.

    Args:
        precision: such as ``bfloat16``.
        params: the parameter file.
        sections: as ``config.load`` reads them; of several merged places the last one that has the setting decides.
    """
    content = read_params(params)
    asking = dict[str, None]()
    for section, name in itertools.product(sections, SETTINGS):
        places = [f"{place}.{name}" for place in as_places(section)]
        deciding = [place for place in places if lookup(content, place) is not None][-1:]
        asking |= {place: None for place in deciding if lookup(content, place) == precision}
    return list(asking)


def note_slow_precision(params: Path, *sections: str | Places) -> None:
    """Print which settings of these sections ask for bfloat16, if this processor is slow at it."""
    if (asking := asking_for("bfloat16", params, *sections)) and (ratio := bfloat16_slowdown()):
        print(
            f"note: {', '.join(asking)}: on this processor a product in bfloat16 takes {ratio:.1f} times as long as in float32",
            flush=True,
        )
