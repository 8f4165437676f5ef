"""Settings that change speed and never a byte, but for the dropout of several trainers; no stage tracks them."""

from pathlib import Path
from typing import Annotated

import joblib
from pydantic import AfterValidator, Field

from pipeline.config import Settings


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
