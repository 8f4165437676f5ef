import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from benchmarks import driver, manifests
from benchmarks.driver import Clock, Run, costs
from pipeline.augment import passes


def test_a_run_prints_and_writes_every_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(manifests, "dvc", lambda folder, *arguments: commands.append(arguments))
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    target = tmp_path / "driver.json"
    tiny = ["--rows", "200", "--rows-per-shard", "40", "--workers", "0", "--shards", "12"]
    result = CliRunner().invoke(driver.main, [*tiny, "--json", str(target)])
    assert result.exit_code == 0, result.output
    figures = json.loads(target.read_text())
    assert all(key in result.output for key in figures)
    assert all(part in result.output for part in driver.PARTS.values())
    assert {"driver_us_per_row", "hours_1e9", "manifest_read_s", "dvc_status_shards_s"} <= figures.keys()
    assert [command[0] for command in commands] == 2 * ["init", "config", "add", "status", "commit"]


def test_the_parts_of_a_pass_and_its_rest_add_up_and_nothing_is_watched_later(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def work(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(driver, "time", SimpleNamespace(perf_counter=lambda: now[0], process_time=lambda: now[0] / 2))
    monkeypatch.setattr(passes, "take_stock", work)
    clock = Clock()
    for seconds in (4.0, 2.0):
        with clock.watching("pass"):
            passes.take_stock(seconds)  # type: ignore[arg-type, call-arg]
            work(1.0)
    assert passes.take_stock is work  # type: ignore[comparison-overlap]
    assert clock.wall == {"pass: look up the store": 6.0, "pass: the rest": 2.0}
    assert clock.processor == {"pass: look up the store": 3.0, "pass: the rest": 1.0}


def test_costs_are_those_from_which_the_seconds_were_made() -> None:
    sizes = [(1_000, 3), (5_000, 100), (100_000, 12)]
    runs = []
    for rows, shards in sizes:
        clock = Clock({"linear": 0.5 + rows * 1e-5 + shards * 2e-3, "constant": 2.0, "unused": 0.0})
        runs.append(Run(rows, shards, clock, 0.0, None, None))  # type: ignore[arg-type]
    found = costs(runs, lambda clock: clock.processor)
    assert found["linear"].of(1e9, 5e4) == pytest.approx(0.5 + 1e4 + 1e2)
    assert found["constant"].of(1e9, 5e4) == pytest.approx(2.0)
    assert found["unused"].of(1e9, 5e4) == 0
