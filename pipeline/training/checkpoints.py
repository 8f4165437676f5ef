"""Checkpoints of transformers.Trainer that survive a killed process: which are complete, and from which to resume."""

import json
import shutil
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from pipeline.store.files import sync_tree, write_json

BESIDE_FILE = "beside.json"
"""Written last: a checkpoint without it is incomplete."""


def mark_whole(folder: Path, step: int, best_step: int | None, beside: dict[str, Any]) -> None:
    """Complete the checkpoint after ``step`` with what the Trainer does not save, then delete all but it and the best one."""
    checkpoint = _checkpoint(folder, step)
    sync_tree(checkpoint)
    write_json(checkpoint / BESIDE_FILE, beside)
    for other in _checkpoints(folder):
        if _step(other) not in (step, best_step):
            shutil.rmtree(other)


def newest_whole(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The latest checkpoint from which a training can resume, with what was saved beside it; deletes later and incomplete ones.

    A checkpoint whose best predecessor is missing or incomplete does not count: the training would end with other weights.
    """
    found = sorted(_checkpoints(folder), key=_step, reverse=True)
    whole = [checkpoint for checkpoint in found if (checkpoint / BESIDE_FILE).exists()]
    for checkpoint in found:
        if checkpoint not in whole:
            shutil.rmtree(checkpoint)
    for checkpoint in whole:
        state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        best = state["best_global_step"]
        if not best or _checkpoint(folder, best) in whole:
            # The Trainer refers to the best checkpoint by its path, and would not find it if the folder was moved.
            path = str(_checkpoint(folder, best)) if best else None
            write_json(checkpoint / TRAINER_STATE_NAME, state | {"best_model_checkpoint": path})
            return checkpoint, json.loads((checkpoint / BESIDE_FILE).read_text(encoding="utf-8"))
        shutil.rmtree(checkpoint)
    return None


def _checkpoints(folder: Path) -> list[Path]:
    return list(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"))


def _checkpoint(folder: Path, step: int) -> Path:
    return folder / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])
