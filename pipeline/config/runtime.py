"""Settings that change speed and never a byte, but for the dropout of several trainers; no stage tracks them.

Also what this machine is slow at.
"""

import itertools
import time
from pathlib import Path
from typing import Annotated, Any

import joblib
from pydantic import AfterValidator, Field

from pipeline.config.params import Places, Settings, as_places, lookup, read_params

SLOW = 1.5
"""A product in bfloat16 that takes more than so many times as long as in float32 is worth a note."""

PRECISIONS = ("precision", "optimiser.precision")
"""Where in a section the precision of its products stands."""

PRODUCT, TIMINGS, ENOUGH_SECONDS = (512, 384, 512), 5, 0.02
"""The product that is timed, how often at most, and after how long no further time."""


def cores() -> int:
    """How many this process may use; a container's or a batch job's share may be less than the machine has."""
    return int(joblib.cpu_count())


def _folder(store: str) -> str:
    if "://" in store:
        raise ValueError(
            "the store is a folder, not an address; mount the bucket and name its folder, or leave the store here and let DVC "
            "keep elsewhere what the stages write"
        )
    return store


class RuntimeSettings(Settings):
    """Section ``runtime`` of params.yaml."""

    ray_address: str | None
    """Of a running cluster; null starts Ray on this machine. The environment's RAY_ADDRESS comes first."""
    workers: Annotated[int, Field(ge=0)] | None
    """Most worker processes; null and more than there is room for are one a GPU, or one a core where there is no GPU.

    0 does the work in this process, without Ray.
    """
    store: Annotated[str, Field(min_length=1), AfterValidator(_folder)]
    """Folder of the shard store. Nodes that share it write there themselves; others hand their shards back."""
    max_bytes: Annotated[int, Field(ge=1)] | None
    """Most bytes that one run of augment may add to the store; more is refused before it starts."""
    trainers: Annotated[int, Field(ge=1)]
    """Processes that train one student together, each with its share of every step and dropout of its own."""
    readers: Annotated[int, Field(ge=0)]
    """Processes of each trainer that read ahead; 0 reads between the steps."""
    checkpoint_steps: Annotated[int, Field(ge=0)]
    """Steps between two states from which a killed training goes on; 0 keeps them at the end of epochs alone."""
    log_to: list[str]
    """Services that are told of a training's progress, by the names that transformers.Trainer has for them: dvclive, …"""

    @property
    def store_folder(self) -> Path:
        """Where finished shards and students are kept."""
        return Path(self.store)


def bfloat16_slowdown() -> float | None:
    """How many times as long a matrix product takes in bfloat16 as in float32 on this processor; None where a GPU computes.

    It is a few milliseconds' work, or one slow product, on as many threads as torch uses.
    """
    import torch  # here, since most that read these settings do without it

    if torch.cuda.is_available():
        return None
    return _product_seconds(torch.bfloat16) / _product_seconds(torch.float32)


def _product_seconds(kind: Any) -> float:
    """The shortest time of a few products of two matrices of this dtype."""
    import torch

    rows, inner, columns = PRODUCT
    left, right = torch.ones(rows, inner, dtype=kind), torch.ones(inner, columns, dtype=kind)
    left[:8, :8] @ right[:8, :8]  # the first product of all sets the library up
    seconds = list[float]()
    while len(seconds) < TIMINGS and sum(seconds) < ENOUGH_SECONDS:
        began = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def slow_bfloat16() -> float | None:
    """How many times slower than float32 bfloat16 is here, where that is worth a note."""
    found = bfloat16_slowdown()
    return found if found is not None and found > SLOW else None


def asking_for(precision: str, params: Path, *sections: str | Places) -> list[str]:
    """The settings of these sections that ask for a precision, once, as they stand in the parameter file.

    Args:
        precision: such as ``bfloat16``.
        params: the file.
        sections: as ``config.load`` reads them; of several merged places the last one that has the setting decides.
    """
    content = read_params(params)
    asking = dict[str, None]()
    for section, name in itertools.product(sections, PRECISIONS):
        places = [f"{place}.{name}" for place in as_places(section)]
        deciding = [place for place in places if lookup(content, place) is not None][-1:]
        asking |= {place: None for place in deciding if lookup(content, place) == precision}
    return list(asking)


def note_slow_precision(params: Path, *sections: str | Places) -> None:
    """Print which settings of these sections ask for bfloat16, where this processor is slow at it; one line, or none."""
    if (asking := asking_for("bfloat16", params, *sections)) and (ratio := slow_bfloat16()):
        print(
            f"note: {', '.join(asking)}: on this processor a product in bfloat16 takes {ratio:.1f} times as long as in float32",
            flush=True,
        )
