"""Callbacks of transformers.Trainer, which change no weight: losses, progress lines and checkpoints."""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from pipeline.store.files import sync_tree, write_json
from pipeline.training.order import EpochOrder

SECONDS_BETWEEN_LINES = 30.0

BESIDE_FILE = "beside.json"
"""The last file written to a checkpoint; one without it is incomplete."""


@dataclass(frozen=True)
class RunOptions:
    """Options of a run that do not affect the weights, up to floating-point summation order."""

    checkpoints: Path | None = None
    """Folder of the checkpoints from which a killed training resumes; None keeps none."""
    save_steps: int = 0
    """Steps between two checkpoints within an epoch; 0 saves at the end of epochs only."""
    dataloader_num_workers: int = 0
    report_to: Sequence[str] = ()
    """Integrations of transformers.Trainer, such as dvclive."""
    surrogate_checkpoints: Sequence[Path] = ()
    """Folders for the weights at evenly spaced steps, the last one at the end."""


NO_CHECKPOINTS = RunOptions()


class Progress(TrainerCallback):
    """Sets the epoch of the order, sums losses and seconds, and prints lines: one per epoch, and every 30 seconds within one.

    A resumed training needs its state in addition to the Trainer's own checkpoint.
    """

    def __init__(self, name: str, order: EpochOrder) -> None:
        self._name, self._order, self._sharding = name, order, order.sharding
        self.losses: list[float] = []
        """Mean loss of each finished epoch."""
        self._sum: Tensor | float = 0.0  # stays on the device until an epoch or a checkpoint needs it
        self._began = self._first_time = self._last_line = time.monotonic()
        self._before, self._first_step = 0.0, 0

    def add(self, loss: Tensor) -> None:
        """Count the weighted mean loss of one micro-batch."""
        self._sum = self._sum + loss.detach().double() / self._sharding.micro_batches

    def seconds(self) -> float:
        """Duration of the training until now, including the runs that it resumes."""
        return self._before + time.monotonic() - self._began

    def state(self) -> dict[str, Any]:
        """As plain values; all ranks must call this."""
        return {"losses": self.losses, "sum": self._total(), "seconds": self.seconds()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from the result of ``state``."""
        self.losses, self._before = list(state["losses"]), state["seconds"]
        self._sum = 0.0 if self._sharding.rank else state["sum"]

    def _total(self) -> float:
        """The sum of this epoch's losses over all ranks."""
        total = torch.as_tensor(self._sum, dtype=torch.float64).clone()
        if self._sharding.world_size > 1:
            total = total.to("cuda" if dist.get_backend() == "nccl" else "cpu")
            dist.all_reduce(total)
        return float(total)

    def on_train_begin(self, args: Any, state: Any, control: Any, **facts: Any) -> None:
        self._first_time = self._last_line = time.monotonic()
        self._first_step = state.global_step
        if state.global_step and state.is_world_process_zero:
            print(f"{self._name}: resumes after step {state.global_step} of {state.max_steps}", flush=True)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **facts: Any) -> None:
        self._order.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args: Any, state: Any, control: Any, **facts: Any) -> None:
        if state.is_world_process_zero and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._print(state, f"step {state.global_step}/{state.max_steps}")

    def on_epoch_end(self, args: Any, state: Any, control: Any, **facts: Any) -> None:
        self.losses.append(self._total() / self._order.steps)
        self._sum = 0.0

    def on_evaluate(self, args: Any, state: Any, control: Any, **facts: Any) -> None:
        if state.is_world_process_zero:
            known = f"loss {self.losses[-1]:.4f}, dev {facts['metrics']['eval_dev']:.4f}"
            self._print(state, f"epoch {round(state.epoch)}/{round(args.num_train_epochs)}, {known}")

    def _print(self, state: Any, known: str) -> None:
        self._last_line = time.monotonic()
        seconds = self._last_line - self._first_time
        left = seconds / (state.global_step - self._first_step) * (state.max_steps - state.global_step)
        print(f"{self._name}: {known}, {seconds:.0f} s, {left:.0f} s left", flush=True)


class Checkpoints(TrainerCallback):
    """Saves between the ends of epochs, completes every checkpoint, and saves the surrogate's checkpoints."""

    def __init__(self, options: RunOptions, order: EpochOrder, progress: Progress) -> None:
        self._options, self._order, self._progress = options, order, progress

    def on_step_end(self, args: Any, state: Any, control: Any, **facts: Any) -> None:
        """Ask for a checkpoint, except at the end of an epoch, which the Trainer saves after evaluating on dev."""
        every, folders = self._options.save_steps, self._options.surrogate_checkpoints
        if self._options.checkpoints and every and state.global_step % every == 0 and state.global_step % self._order.steps:
            control.should_save = True
        for number, folder in enumerate(folders, 1):
            if state.global_step == round(state.max_steps * number / len(folders)):
                facts["model"].save_pretrained(folder)

    def on_save(self, args: Any, state: Any, control: Any, **facts: Any) -> None:
        if self._options.checkpoints:
            beside = self._progress.state()
            if state.is_world_process_zero:
                mark_whole(self._options.checkpoints, state.global_step, beside)


def mark_whole(folder: Path, step: int, beside: dict[str, Any]) -> None:
    """Complete the checkpoint after ``step`` with the state of ``Progress``, then delete all others."""
    kept = folder / f"{PREFIX_CHECKPOINT_DIR}-{step}"
    sync_tree(kept)
    write_json(kept / BESIDE_FILE, beside)
    for checkpoint in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if checkpoint != kept:
            shutil.rmtree(checkpoint)


def newest_whole(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The latest complete checkpoint and its state of ``Progress``; deletes incomplete ones."""
    whole = []
    for checkpoint in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if (checkpoint / BESIDE_FILE).exists():
            whole.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    if not whole:
        return None
    newest = max(whole, key=lambda path: int(path.name.rsplit("-", 1)[1]))
    return newest, json.loads((newest / BESIDE_FILE).read_text(encoding="utf-8"))
