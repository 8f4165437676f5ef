from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.config.params import Places
from pipeline.models import precision
from pipeline.models.precision import asking_for, bfloat16_slowdown, note_slow_precision

PARAMS = """
teach: {precision: bfloat16}
score: {precision: float32}
augment: {precision: bfloat16}
tasks: {a: {augment: {precision: float32}}, b: {augment: {variants: 2}}, c: {augment: {precision: bfloat16}}}
distill: {optimiser: {precision: float32}}
students: {half: {layers: 3}, tiny: {optimiser: {precision: bfloat16}}}
"""
AUGMENTS: list[Places] = [("augment", f"tasks.{task}.augment") for task in "abc"]
STUDENTS: list[Places] = [("distill", f"students.{student}") for student in ("half", "tiny")]


@pytest.mark.parametrize(
    ("sections", "asking"),
    [
        (["teach"], ["teach.precision"]),
        (["score"], []),
        (AUGMENTS[:1], []),
        (AUGMENTS, ["augment.precision", "tasks.c.augment.precision"]),
        (["augment", *AUGMENTS[:2]], ["augment.precision"]),
        (STUDENTS, ["students.tiny.optimiser.precision"]),
        (["absent", ("distill", "students.absent")], []),
    ],
)
def test_of_merged_places_that_which_decides_asks_for_a_precision(
    write: Callable[[str, str], Path], sections: list[str | Places], asking: list[str]
) -> None:
    assert asking_for("bfloat16", write("params.yaml", PARAMS), *sections) == asking


@pytest.mark.parametrize(
    ("seconds", "gpu", "ratio"), [(18.04, False, 18.04), (1.6, False, 1.6), (1.5, False, None), (18.04, True, None)]
)
def test_a_processor_that_is_slow_at_bfloat16_is_noted_once_with_the_ratio(
    write: Callable[[str, str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seconds: float,
    gpu: bool,
    ratio: float | None,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(precision, "_product_seconds", lambda dtype: seconds if dtype == torch.bfloat16 else 1.0)
    assert bfloat16_slowdown() == ratio
    note_slow_precision(write("params.yaml", PARAMS), "teach", "score", *STUDENTS)
    asking = "teach.precision, students.tiny.optimiser.precision"
    note = f"note: {asking}: on this processor a product in bfloat16 takes {seconds:.1f} times as long as in float32\n"
    assert capsys.readouterr().out == (note if ratio else "")


def test_nothing_is_measured_where_nothing_asks_for_bfloat16(
    write: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "bfloat16_slowdown", lambda: pytest.fail("a product was timed"))
    note_slow_precision(write("params.yaml", PARAMS), "score", ("distill", "students.half"))


def test_a_slow_product_is_timed_once_and_a_fast_one_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for step, timings in ((1.0, 1), (0.001, precision.TIMINGS)):
        ticks = [0.0]

        def tick(step: float = step, ticks: list[float] = ticks) -> float:
            ticks.append(ticks[-1] + step)
            return ticks[-1]

        monkeypatch.setattr("time.perf_counter", tick)
        assert bfloat16_slowdown() is None, "both take equally long"
        assert len(ticks) - 1 == 2 * 2 * timings
