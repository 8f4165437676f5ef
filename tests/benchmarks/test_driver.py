from pathlib import Path
from typing import Any

import pytest

from benchmarks import driver


def test_figures_are_what_was_done_over_the_time_it_took(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that says two seconds for everything; the work itself is done and counted."""
    done: dict[str, Any] = {}

    def two_seconds(work: Any, rounds: int) -> dict[str, float]:
        done.update({name: piece() for name, piece in work.items()})
        return dict.fromkeys(work, 2.0)

    monkeypatch.setattr(driver, "medians", two_seconds)
    monkeypatch.setattr(driver, "ROWS_PER_SHARD", 100)
    figures = {figure.key: figure.value for figure in driver.driver_figures(prepared, 1000, 1, file_bytes=4_000_000)}
    assert figures == {"cut_rows_per_s": 500.0, "hash_us": pytest.approx(2e6 / driver.IDS), "verify_gb_per_s": 0.002}
    assert 5 <= done["cut"] <= 20, "partitions of about a hundred rows"
    assert len(set(done["hash"])) == driver.IDS
