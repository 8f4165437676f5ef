"""A surrogate's folder: checkpoints of a small student along its training, at which perturbations are aimed.

The distill half writes it, the augment half reads it. Knows files and hashes; not how a surrogate is trained or used.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, repeat
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from pipeline.config.params import Settings, read_facts
from pipeline.models.folder import model_hash
from pipeline.store.files import write_json
from pipeline.store.keys import hash_of, sha256_of

SURROGATE_FILE = "surrogate.json"
MAP_FILE = "map.safetensors"


class SurrogateFacts(Settings):
    """``surrogate.json``, written last."""

    key: dict[str, Any]
    """Lineage of the soft_labels it learnt from: teacher, tokenizer, label names."""
    soft_labels: str
    """Hash of what it read of these soft_labels."""
    checkpoints: int
    start: dict[str, Any]
    """How its first weights came about."""
    dev: float
    """The task's metric on dev at the end of its training."""
    settings: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """For the store's receipt and the terminal."""
        return self.model_dump(include={"checkpoints", "dev"})


@dataclass(frozen=True)
class SurrogateFolder:
    """Snapshots 1..S, each a Hugging Face folder, and the map of embeddings where the surrogate's are narrower."""

    folder: Path

    def checkpoint(self, number: int) -> Path:
        """Where checkpoint ``number`` lies, counted from 1."""
        return self.folder / f"surrogate-{number}"

    def facts(self) -> SurrogateFacts:
        """Read ``surrogate.json``.

        Raises:
            PipelineError: there is none, or it is damaged.
        """
        missing = f"{self.folder} has no {SURROGATE_FILE}; the stage surrogate writes it"
        return read_facts(SurrogateFacts, self.folder / SURROGATE_FILE, missing)

    def map(self) -> Tensor | None:
        """[teacher's embedding width, surrogate's], or None where both share the teacher's space."""
        path = self.folder / MAP_FILE
        return safetensors.torch.load_file(path)["map"] if path.exists() else None

    def save(self, facts: SurrogateFacts, linear: Tensor | None) -> None:
        """Write the map and, last, the facts; the checkpoints lie there already."""
        if linear is not None:
            safetensors.torch.save_file({"map": linear.contiguous()}, self.folder / MAP_FILE)
        write_json(self.folder / SURROGATE_FILE, facts.model_dump())

    def hash_of(self, checkpoint: int) -> str:
        """What names a checkpoint: its weights, and the map."""
        path = self.folder / MAP_FILE
        return hash_of([model_hash(self.checkpoint(checkpoint)), sha256_of(path) if path.exists() else None])

    def hashes(self) -> tuple[str, ...]:
        """What names each checkpoint."""
        return tuple(self.hash_of(number) for number in range(1, self.facts().checkpoints + 1))


CheckpointsFollowed = Sequence[int | None]
"""For each variant the number of the surrogate's checkpoint whose gradient it follows; None for one that follows none."""


def checkpoints_followed(perturbed: Iterable[bool], checkpoints: int) -> CheckpointsFollowed:
    """Perturbed variants follow checkpoints 1..n in turn; none follows any if there are no checkpoints."""
    turns = cycle(range(1, checkpoints + 1)) if checkpoints else repeat(None)
    return [next(turns) if moved else None for moved in perturbed]
