"""The folders of surrogates: checkpoints of small students along their training. ``distill`` writes, ``augment`` reads them.

Also the map of δ into the word embeddings of a surrogate or student.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, repeat
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from pipeline.config.errors import PipelineError
from pipeline.config.params import Settings, read_facts
from pipeline.models.folder import ModelFolder
from pipeline.store.files import write_json
from pipeline.store.keys import hash_of, sha256_of

SURROGATE_FILE = "surrogate.json"
"""In the folder of each surrogate; also in that of all, with the number of their checkpoints, 0 if there is none."""
MAP_FILE = "map.safetensors"


class SurrogateFacts(Settings):
    """``surrogate.json``, written last."""

    key: dict[str, Any]
    """``lineage`` of the teacher."""
    soft_labels: str
    """``training_hash`` of its soft labels."""
    checkpoints: int
    start: dict[str, Any]
    """Origin of its initial weights."""
    dev: float
    """The task's metric on dev at the end of the training."""
    settings: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """For the store's receipt and the terminal."""
        return self.model_dump(include={"checkpoints", "dev"})


@dataclass(frozen=True)
class SurrogateFolder:
    """Checkpoints 1..n, each a Hugging Face folder, and the map of δ if the surrogate's embeddings are narrower."""

    folder: Path

    def checkpoint(self, number: int) -> Path:
        """The folder of a checkpoint, counted from 1."""
        return self.folder / f"surrogate-{number}"

    def facts(self) -> SurrogateFacts:
        """Read ``surrogate.json``; raises ``PipelineError`` if it is absent or damaged."""
        missing = f"{self.folder} has no {SURROGATE_FILE}; the stage surrogate writes it"
        return read_facts(SurrogateFacts, self.folder / SURROGATE_FILE, missing)

    def map(self) -> Tensor | None:
        """[teacher's embedding width, surrogate's], or None if the surrogate uses the teacher's embedding space."""
        path = self.folder / MAP_FILE
        return safetensors.torch.load_file(path)["map"] if path.exists() else None

    def save(self, facts: SurrogateFacts, linear: Tensor | None) -> None:
        """Write the map and, last, the facts; the checkpoints must exist already."""
        if linear is not None:
            safetensors.torch.save_file({"map": linear.contiguous()}, self.folder / MAP_FILE)
        write_json(self.folder / SURROGATE_FILE, facts.model_dump())

    def hash_of(self, checkpoint: int) -> str:
        """Hash of a checkpoint and the map."""
        path = self.folder / MAP_FILE
        return hash_of([ModelFolder(self.checkpoint(checkpoint)).hash, sha256_of(path) if path.exists() else None])

    def hashes(self) -> tuple[str, ...]:
        """``hash_of`` each checkpoint."""
        return tuple(self.hash_of(number) for number in range(1, self.facts().checkpoints + 1))


def surrogates_in(folder: Path) -> list[SurrogateFolder]:
    """The surrogates of a task, each in a folder of its own, ``1``, ``2``, …; raises ``PipelineError`` if there is none."""
    places = sorted((place for place in folder.glob("[0-9]*") if place.name.isdecimal()), key=lambda place: int(place.name))
    if not places:
        raise PipelineError(f"{folder} holds no surrogate; the stage surrogate trains them")
    return [SurrogateFolder(place) for place in places]


def hashes_in(folder: Path) -> tuple[str, ...]:
    """A hash for each number of a checkpoint, which all surrogates of a task have."""
    return tuple(hash_of(list(same)) for same in zip(*(one.hashes() for one in surrogates_in(folder)), strict=True))


CheckpointsFollowed = Sequence[int | None]
"""For each variant the number of the surrogate checkpoint whose gradient it follows, or None."""


def checkpoints_followed(perturbed: Iterable[bool], checkpoints: int) -> CheckpointsFollowed:
    """Perturbed variants follow checkpoints 1..n in turn; without checkpoints they follow none."""
    numbers = cycle(range(1, checkpoints + 1)) if checkpoints else repeat(None)
    return [next(numbers) if moved else None for moved in perturbed]


def mapped(delta: Tensor, linear: Tensor | None) -> Tensor:
    """δ [..., teacher's width] in a model's embedding space [..., its width]; ``linear`` is None if they share one."""
    return delta if linear is None else delta @ linear.to(delta.device)
