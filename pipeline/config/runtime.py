"""Settings that change speed and, except for the dropout of several trainers, no byte of any result; no stage tracks them."""

from pathlib import Path
from typing import Annotated

import joblib
from pydantic import AfterValidator, Field

from pipeline.config.params import Settings


def cores() -> int:
    """How many cores this process may use; a container's or a batch job's share may be less than the machine has."""
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
    """Address of a running cluster; null starts Ray on this machine. The environment's RAY_ADDRESS takes precedence."""
    workers: Annotated[int, Field(ge=0)] | None
    """Greatest number of worker processes; null starts one per GPU, or one per core without a GPU.

    0 does the work in this process, without Ray.
    """
    store: Annotated[str, Field(min_length=1), AfterValidator(_folder)]
    """Folder of the shard store. Nodes that share it write there themselves; others hand their shards back."""
    max_bytes: Annotated[int, Field(ge=1)] | None
    """Greatest number of bytes that one run of augment may add to the store; more is an error before it starts."""
    trainers: Annotated[int, Field(ge=1)]
    """Processes that train one student together, each with its share of every step and its own dropout."""
    dataloader_num_workers: Annotated[int, Field(ge=0)]
    """Processes per trainer that read ahead; 0 reads between the steps."""
    save_steps: Annotated[int, Field(ge=0)]
    """Steps between two checkpoints from which a killed training resumes; 0 saves at the end of epochs only."""
    report_to: list[str]
    """Integrations of transformers.Trainer that receive the training's progress, such as dvclive."""

    @property
    def store_folder(self) -> Path:
        """Where finished shards and students are kept."""
        return Path(self.store)
