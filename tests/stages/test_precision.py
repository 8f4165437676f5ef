from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stages import precision
from stages.precision import asking_for, note_slow_precision

PARAMS = """
teach: {precision: bfloat16, num_train_epochs: 3}
inference: {precision: float32}
tasks: {a: {inference: {precision: float16}}, b: {inference: {batch_size: 2}}}
students: {tiny: {training: {precision: bfloat16}}}
"""


def test_settings_that_ask_for_a_precision_are_named_by_their_place(write: Callable[[str, str], Path]) -> None:
    params = write("params.yaml", PARAMS)
    assert asking_for("bfloat16", params) == ["teach.precision", "students.tiny.training.precision"]
    assert asking_for("float16", params) == ["tasks.a.inference.precision"]


@pytest.mark.parametrize(("seconds", "gpu", "note"), [(18.04, False, "18.0 times"), (1.5, False, None), (18.04, True, None)])
def test_a_cpu_that_is_slow_at_bfloat16_is_noted_once_with_the_ratio(
    seconds: float, gpu: bool, note: str | None, write: Callable[[str, str], Path],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(precision, "_product_seconds", lambda dtype: seconds if dtype == torch.bfloat16 else 1.0)
    note_slow_precision(write("params.yaml", PARAMS))
    printed = capsys.readouterr().out
    assert (printed == "") == (note is None)
    assert note is None or ("teach.precision, students.tiny.training.precision" in printed and note in printed)
