from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.training import callbacks
from pipeline.training.callbacks import Checkpoints, Progress, ProgressLines, RunOptions, snapshot_steps
from pipeline.training.order import EpochOrder, StepSharding
from tests.pipeline.training.test_order import realistic_lengths


class Counter:
    """State of a loss."""

    count = 0.0

    def state(self) -> dict[str, float]:
        return {"count": self.count}

    def restore(self, state: dict[str, float]) -> None:
        self.count = state["count"]


def test_progress_restored_in_the_middle_of_an_epoch_ends_as_if_it_had_run_through() -> None:
    losses, sharding = [0.5, 0.25, 4.0, 1.0, 2.0, 8.0], StepSharding(gradient_accumulation_steps=2)
    whole, first, second = (Progress(sharding, 3, Counter()) for _ in range(3))
    for number, loss in enumerate(losses * 2):
        whole.add(torch.tensor(loss))
        (first if number < 8 else second).add(torch.tensor(loss))
        if number == 5:
            first.close_epoch()
            whole.close_epoch()
        if number == 7:
            second.restore(first.state())
    for progress in (whole, second):
        progress.close_epoch()
    assert whole.losses == second.losses == [sum(losses) / 6] * 2
    assert second.seconds() >= first.seconds()


def test_what_a_loss_remembers_is_restored_and_no_process_but_the_first_counts_the_sum_again() -> None:
    first, memory = Progress(StepSharding(), 1, Counter()), Counter()
    first._memory.count = 3.0  # type: ignore[union-attr]
    first.add(torch.tensor(5.0))
    second = Progress(StepSharding(), 1, memory)
    second.restore(first.state())
    assert memory.count == 3.0
    other = Progress(StepSharding(world_size=2, rank=1), 1)
    other.restore(first.state())
    assert (second._sum, other._sum) == (5.0, 0.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the time of the callbacks' clock."""
    now = [0.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, seconds)


def test_a_long_epoch_prints_a_line_now_and_then_with_the_time_left(
    clock: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ProgressLines("toy", Progress(StepSharding(), 100))
    state = SimpleNamespace(global_step=40, max_steps=100, is_world_process_zero=True)
    lines.on_train_begin(None, state, None)
    for seconds, step in ((10.0, 45), (31.0, 50), (50.0, 60), (62.0, 70)):
        clock(seconds)
        state.global_step = step
        lines.on_step_end(None, state, None)
    state.is_world_process_zero = False
    clock(500.0)
    lines.on_step_end(None, state, None)
    assert capsys.readouterr().out.splitlines() == [
        "toy: resumes after step 40 of 100",
        "toy: step 50/100, 31 s, 155 s left",
        "toy: step 70/100, 62 s, 62 s left",
    ]


@pytest.mark.parametrize(("every", "saved"), [(0, []), (3, [3, 6, 9, 12, 15]), (7, []), (1, [1, 2, 3, 4, 5, 6, 8])])
def test_checkpoints_come_every_so_many_steps_but_for_the_end_of_an_epoch(every: int, saved: list[int]) -> None:
    order = EpochOrder(realistic_lengths(70), 10, 2, 0, StepSharding())
    found = list[int]()
    for folder in (Path("checkpoints"), None):
        callback = Checkpoints(RunOptions(folder, save_steps=every), order, Progress(StepSharding(), order.steps))
        for step in range(1, 16 if every != 1 else 9):
            control: Any = SimpleNamespace(should_save=False)
            callback.on_step_end(None, SimpleNamespace(global_step=step), control)
            found += [step] if control.should_save else []
    assert found == saved


@pytest.mark.parametrize(("total", "wanted"), [(24, [8, 16, 24]), (25, [8, 17, 25]), (3, [1, 2, 3])])
def test_snapshots_are_evenly_spaced_and_the_last_is_at_the_end(total: int, wanted: list[int]) -> None:
    assert snapshot_steps(total, 3) == wanted
