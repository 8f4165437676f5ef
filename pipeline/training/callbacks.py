"""How a training is run and watched: its states, losses and lines on the way. No weight depends on what stands here.

Knows transformers.Trainer's callbacks and the order of rows; not what is learnt.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import TrainerCallback

from pipeline.training.checkpoints import mark_whole
from pipeline.training.order import EpochOrder, Sharing

SECONDS_BETWEEN_LINES = 30.0


@dataclass(frozen=True)
class Conduct:
    """How a training is run: what of it no weight depends on, but for the order in which numbers are added up."""

    checkpoints: Path | None = None
    """Where states are kept from which a killed training goes on; None keeps none."""
    checkpoint_steps: int = 0
    """Steps between two states within an epoch; 0 keeps them at the end of epochs alone."""
    readers: int = 0
    """Processes that read ahead; 0 reads between the steps."""
    log_to: Sequence[str] = ()
    """Names by which transformers.Trainer knows services, such as dvclive."""
    snapshots: Sequence[Path] = field(default=())
    """Folders for the weights on the way, evenly along the steps, the last at the end."""


NO_STATES = Conduct()
"""A training that is begun again when it is killed."""


class EpochLosses:
    """The mean loss of each epoch; sums stay on the device until one is asked for."""

    def __init__(self, sharing: Sharing, steps: int) -> None:
        self._sharing, self._steps = sharing, steps
        self.closed: list[float] = []
        self._sum: Tensor | float = 0.0

    def add(self, loss: Tensor) -> None:
        """Count the weighted mean loss of one piece."""
        self._sum = self._sum + loss.detach().double() / self._sharing.pieces

    def close(self) -> None:
        """End an epoch."""
        self.closed.append(self.sum_of_all() / self._steps)
        self._sum = 0.0

    def sum_of_all(self) -> float:
        """Over the epoch's steps so far, of all processes, which must all ask."""
        total = torch.as_tensor(self._sum, dtype=torch.float64).clone()
        if self._sharing.processes > 1:
            total = total.to("cuda" if dist.get_backend() == "nccl" else "cpu")
            dist.all_reduce(total)
        return float(total)

    def restore(self, closed: list[float], total: float) -> None:
        """Go on from such a state."""
        self.closed, self._sum = list(closed), total if self._sharing.process == 0 else 0.0


class Clock:
    """Seconds of a training, also over several processes one after the other."""

    def __init__(self) -> None:
        self._began, self._before = time.monotonic(), 0.0

    def seconds(self) -> float:
        """Until now."""
        return self._before + time.monotonic() - self._began

    def restore(self, seconds: float) -> None:
        """Count what was spent before."""
        self._before = seconds


class EpochLines(TrainerCallback):
    """One line an epoch, and one now and then within a long one: loss, dev metric, time left."""

    def __init__(self, name: str, losses: EpochLosses) -> None:
        self._name, self._losses = name, losses
        self._began = self._last = time.monotonic()
        self._first_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **facts: Any) -> None:
        """Say where a training goes on."""
        self._began = self._last = time.monotonic()
        self._first_step = state.global_step
        if state.global_step and state.is_world_process_zero:
            print(f"{self._name}: goes on after step {state.global_step} of {state.max_steps}", flush=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **facts: Any) -> None:
        """Print a line if there was none for long."""
        if state.is_world_process_zero and time.monotonic() - self._last > SECONDS_BETWEEN_LINES:
            self._print(state, f"step {state.global_step}/{state.max_steps}")

    def on_evaluate(self, args: Any, state: Any, control: Any, **facts: Any) -> None:
        """Print what is known after an epoch's measurement."""
        if state.is_world_process_zero:
            known = f"loss {self._losses.closed[-1]:.4f}, dev {facts['metrics']['eval_dev']:.4f}"
            self._print(state, f"epoch {round(state.epoch)}/{round(args.num_train_epochs)}, {known}")

    def _print(self, state: Any, known: str) -> None:
        self._last = time.monotonic()
        seconds = self._last - self._began
        left = seconds / (state.global_step - self._first_step) * (state.max_steps - state.global_step)
        print(f"{self._name}: {known}, {seconds:.0f} s, {left:.0f} s left", flush=True)


class EpochTurns(TrainerCallback):
    """Tells the order which epoch it is, and the losses when it ends."""

    def __init__(self, order: EpochOrder, losses: EpochLosses) -> None:
        self._order, self._losses = order, losses

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **facts: Any) -> None:
        """An epoch begins, or goes on."""
        self._order.set_epoch(int(state.epoch or 0))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **facts: Any) -> None:
        """All its steps are done."""
        self._losses.close()


class Checkpoints(TrainerCallback):
    """Asks for states between the ends of epochs, and completes every state with what the Trainer does not keep."""

    def __init__(self, conduct: Conduct, order: EpochOrder, losses: EpochLosses, clock: Clock) -> None:
        self._conduct, self._order, self._losses, self._clock = conduct, order, losses, clock

    def on_step_end(self, args: Any, state: Any, control: Any, **facts: Any) -> None:
        """Ask for a state; the end of an epoch keeps one anyway, after dev was measured."""
        every = self._conduct.checkpoint_steps
        if self._conduct.checkpoints and every and state.global_step % every == 0 and state.global_step % self._order.steps:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **facts: Any) -> None:
        """Complete the state that was just kept."""
        if self._conduct.checkpoints:
            total = self._losses.sum_of_all()
            beside = {"closed": self._losses.closed, "sum": total, "seconds": self._clock.seconds()}
            if state.is_world_process_zero:
                mark_whole(self._conduct.checkpoints, state.global_step, state.best_global_step, beside)


class Snapshots(TrainerCallback):
    """Saves the model as it is after some of the steps."""

    def __init__(self, steps: int, folders: Sequence[Path]) -> None:
        self._folders = dict(zip(snapshot_steps(steps, len(folders)), folders, strict=True))

    def on_step_end(self, args: Any, state: Any, control: Any, **facts: Any) -> None:
        """Save after a step that has a folder."""
        if state.global_step in self._folders:
            facts["model"].save_pretrained(self._folders[state.global_step])


def snapshot_steps(total: int, snapshots: int) -> Sequence[int]:
    """After which of ``total`` steps a snapshot is taken: evenly, the last at the end."""
    return [round(total * number / snapshots) for number in range(1, snapshots + 1)]
