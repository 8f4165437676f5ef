from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.config.params import Places
from pipeline.models import precision
from pipeline.models.precision import asking_for, note_slow_precision

PARAMS = """
teach: {precision: bfloat16}
score: {precision: float32}
augment: {precision: bfloat16}
tasks: {a: {augment: {precision: float32}}, b: {augment: {variants: 2}}, c: {augment: {precision: bfloat16}}}
distill: {optimiser: {precision: float32}}
students: {half: {layers: 3}, tiny: {optimiser: {precision: bfloat16}}}
"""
STUDENTS: list[Places] = [("distill", f"students.{student}") for student in ("half", "tiny")]


@pytest.mark.parametrize(
    ("sections", "asking"),
    [
        (["teach", "score"], ["teach.precision"]),
        ([("augment", f"tasks.{task}.augment") for task in "abc"], ["augment.precision", "tasks.c.augment.precision"]),
        ([("augment", "tasks.a.augment"), "absent", ("distill", "students.absent")], []),
        (STUDENTS, ["students.tiny.optimiser.precision"]),
    ],
)  # fmt: skip
def test_the_last_of_merged_places_decides_the_precision(
    write: Callable[[str, str], Path], sections: list[str | Places], asking: list[str]
) -> None:
    assert asking_for("bfloat16", write("params.yaml", PARAMS), *sections) == asking


@pytest.mark.parametrize(("seconds", "gpu", "note"), [(18.04, False, "18.0 times"), (1.5, False, None), (18.04, True, None)])
def test_a_processor_that_is_slow_at_bfloat16_is_noted_once_with_the_ratio(
    seconds: float, gpu: bool, note: str | None, write: Callable[[str, str], Path],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(precision, "_product_seconds", lambda dtype: seconds if dtype == torch.bfloat16 else 1.0)
    note_slow_precision(write("params.yaml", PARAMS), "teach", "score", *STUDENTS)
    said = capsys.readouterr().out
    assert (said == "") == (note is None)
    assert note is None or ("teach.precision, students.tiny.optimiser.precision" in said and note in said)
