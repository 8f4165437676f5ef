from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.training.callbacks import Progress
from pipeline.training.order import EpochOrder, StepSharding


def test_progress_restored_within_an_epoch_ends_as_if_it_had_run_through() -> None:
    losses = [0.5, 0.25, 4.0, 1.0, 2.0, 8.0]
    order = EpochOrder(np.ones(6, np.int64), 2, 2, 0, StepSharding(gradient_accumulation_steps=2))
    whole, first, second = (Progress("toy", order) for _ in range(3))
    ended: tuple[Any, ...] = (None, None, None)
    for number, loss in enumerate(losses * 2):
        whole.add(torch.tensor(loss))
        (first if number < 8 else second).add(torch.tensor(loss))
        if number == 5:
            first.on_epoch_end(*ended)
            whole.on_epoch_end(*ended)
        if number == 7:
            second.restore(first.state())
    for progress in (whole, second):
        progress.on_epoch_end(*ended)
    assert whole.losses == second.losses == [sum(losses) / 6] * 2
    assert second.seconds() >= first.seconds()


def test_a_long_epoch_prints_a_line_every_30_seconds_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = SimpleNamespace(global_step=40, max_steps=100, is_world_process_zero=True)
    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    progress = Progress("toy", EpochOrder(np.ones(100, np.int64), 1, 1, 0, StepSharding()))
    progress.on_train_begin(None, state, None)
    for seconds, step, first in ((10.0, 45, True), (31.0, 50, True), (50.0, 60, True), (62.0, 70, True), (500.0, 71, False)):
        monkeypatch.setattr("time.monotonic", lambda seconds=seconds: seconds)
        state.global_step, state.is_world_process_zero = step, first
        progress.on_step_end(None, state, None)
    assert capsys.readouterr().out.splitlines() == [
        "toy: resumes after step 40 of 100",
        "toy: step 50/100, 31 s, 155 s left",
        "toy: step 70/100, 62 s, 62 s left",
    ]
