"""A scout's folder: snapshots of a small student along its training, at which perturbations are aimed.

The distill half writes it, the augment half reads it. Knows files and hashes; not how a scout is trained or used.
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
from pipeline.store.files import hash_of, sha256_of, write_json

SCOUT_FILE = "scout.json"
MAP_FILE = "map.safetensors"


class ScoutFacts(Settings):
    """``scout.json``, written last."""

    key: dict[str, Any]
    """Of the scores it learnt from: teacher, tokenizer, label names."""
    scores: str
    """Hash of the manifest of these scores."""
    snapshots: int
    start: dict[str, Any]
    """How its first weights came about."""
    dev: float
    """The task's metric on dev at the end of its training."""
    settings: dict[str, Any]


@dataclass(frozen=True)
class ScoutFolder:
    """Snapshots 1..S, each a Hugging Face folder, and the map of embeddings where the scout's are narrower."""

    folder: Path

    def snapshot(self, number: int) -> Path:
        """Where snapshot ``number`` lies, counted from 1."""
        return self.folder / f"snapshot-{number}"

    def facts(self) -> ScoutFacts:
        """Read ``scout.json``.

        Raises:
            PipelineError: there is none, or it is damaged.
        """
        missing = f"{self.folder} is no scout: it has no {SCOUT_FILE}; give the task aim: scout and run the stage scout"
        return read_facts(ScoutFacts, self.folder / SCOUT_FILE, missing)

    def map(self) -> Tensor | None:
        """[teacher's embedding width, scout's], or None where both share the teacher's space."""
        path = self.folder / MAP_FILE
        return safetensors.torch.load_file(path)["map"] if path.exists() else None

    def save(self, facts: ScoutFacts, linear: Tensor | None) -> None:
        """Write the map and, last, the facts; the snapshots lie there already."""
        if linear is not None:
            safetensors.torch.save_file({"map": linear.contiguous()}, self.folder / MAP_FILE)
        write_json(self.folder / SCOUT_FILE, facts.model_dump())

    def hash_of(self, snapshot: int) -> str:
        """What names a snapshot: its weights, and the map."""
        path = self.folder / MAP_FILE
        return hash_of([model_hash(self.snapshot(snapshot)), sha256_of(path) if path.exists() else None])

    def hashes(self) -> tuple[str, ...]:
        """What names each snapshot."""
        return tuple(self.hash_of(number) for number in range(1, self.facts().snapshots + 1))


Aims = Sequence[int | None]
"""Of each variant the number of the snapshot that it is aimed at; None for one that follows no scout's gradient."""


def aims_of(perturbed: Iterable[bool], snapshots: int) -> Aims:
    """At which snapshot each variant is aimed: those that are perturbed take 1..S in turn; all None without snapshots."""
    turns = cycle(range(1, snapshots + 1)) if snapshots else repeat(None)
    return [next(turns) if moved else None for moved in perturbed]
