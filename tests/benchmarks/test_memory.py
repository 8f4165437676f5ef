from pathlib import Path

import pytest

from benchmarks import memory
from benchmarks.timing import Figure


def by_key(figures: list[Figure]) -> dict[str, float]:
    return {figure.key: figure.value for figure in figures}


def test_memory_is_measured_in_processes_of_their_own(prepared: Path, teacher: Path) -> None:
    found = by_key(memory.memory_figures(prepared, teacher, 40))
    assert found["memory_10x"] == pytest.approx(found["memory_peak_10x_mb"] / found["memory_peak_mb"])
    assert found["memory_peak_mb"] >= found["memory_start_mb"] > 50
