from types import SimpleNamespace

import pytest
import torch

from pipeline.training import callbacks
from pipeline.training.callbacks import Progress, ProgressLines
from pipeline.training.order import StepSharding


def test_progress_restored_in_the_middle_of_an_epoch_ends_as_if_it_had_run_through() -> None:
    losses, sharding = [0.5, 0.25, 4.0, 1.0, 2.0, 8.0], StepSharding(gradient_accumulation_steps=2)
    whole, first, second = (Progress(sharding, 3) for _ in range(3))
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


def test_a_long_epoch_prints_a_line_now_and_then_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = SimpleNamespace(global_step=40, max_steps=100, is_world_process_zero=True)
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: 0.0)
    lines = ProgressLines("toy", Progress(StepSharding(), 100))
    lines.on_train_begin(None, state, None)
    for seconds, step, first in ((10.0, 45, True), (31.0, 50, True), (50.0, 60, True), (62.0, 70, True), (500.0, 71, False)):
        monkeypatch.setattr(callbacks.time, "monotonic", lambda seconds=seconds: seconds)
        state.global_step, state.is_world_process_zero = step, first
        lines.on_step_end(None, state, None)
    assert capsys.readouterr().out.splitlines() == [
        "toy: resumes after step 40 of 100",
        "toy: step 50/100, 31 s, 155 s left",
        "toy: step 70/100, 62 s, 62 s left",
    ]
