import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import runtime
from pipeline.config.params import Places
from pipeline.config.runtime import RuntimeSettings
from pipeline.models.precision import asking_for, bfloat16_slowdown, note_slow_precision
from tests.world import RUNTIME


@pytest.mark.parametrize(
    "fault",
    [
        {"workers": -1}, {"max_bytes": 0}, {"store": None}, {"ray_address": 1}, {"trainers": 0}, {"dataloader_num_workers": -1},
        {"save_steps": -1}, {"report_to": "dvclive"}, {"store": "s3://bucket/store"},
    ],
)  # fmt: skip
def test_runtime_settings_out_of_range_are_refused(fault: dict[str, Any]) -> None:
    assert RuntimeSettings.model_validate(RUNTIME)
    with pytest.raises(ValueError, match=next(iter(fault))):
        RuntimeSettings.model_validate(RUNTIME | fault)


def test_cores_are_those_that_the_process_may_use() -> None:
    """On a batch system's node they are fewer than there are."""
    one = min(os.sched_getaffinity(0))
    said = f"import os; os.sched_setaffinity(0, {{{one}}}); from pipeline.config.runtime import cores; print(cores())"
    found = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "1"


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


@pytest.mark.parametrize(("slowdown", "told"), [(18.04, True), (1.6, True), (1.5, False), (0.6, False), (None, False)])
def test_a_processor_that_is_slow_at_bfloat16_is_noted_once_with_the_ratio(
    write: Callable[[str, str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    slowdown: float | None,
    told: bool,
) -> None:
    monkeypatch.setattr(runtime, "bfloat16_slowdown", lambda: slowdown)
    note_slow_precision(write("params.yaml", PARAMS), "teach", "score", *STUDENTS)
    asking = "teach.precision, students.tiny.optimiser.precision"
    said = f"note: {asking}: on this processor a product in bfloat16 takes {slowdown or 0:.1f} times as long as in float32\n"
    assert capsys.readouterr().out == (said if told else "")


def test_nothing_is_measured_where_nothing_asks_for_bfloat16(
    write: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "bfloat16_slowdown", lambda: pytest.fail("a product was timed"))
    note_slow_precision(write("params.yaml", PARAMS), "score", ("distill", "students.half"))


def test_on_a_gpu_there_is_nothing_to_say_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert bfloat16_slowdown() is None


def test_the_slowdown_is_the_ratio_of_the_times_of_two_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(runtime, "_product_seconds", lambda kind: {torch.bfloat16: 0.06, torch.float32: 0.02}[kind])
    assert bfloat16_slowdown() == pytest.approx(3)


def test_a_slow_product_is_timed_once_and_a_fast_one_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for step, asked in ((1.0, 2), (0.001, 2 * runtime.TIMINGS)):
        ticks = [0.0]

        def tick(step: float = step, ticks: list[float] = ticks) -> float:
            ticks.append(ticks[-1] + step)
            return ticks[-1]

        monkeypatch.setattr("time.perf_counter", tick)
        assert bfloat16_slowdown() == pytest.approx(1)
        assert len(ticks) - 1 == 2 * asked
