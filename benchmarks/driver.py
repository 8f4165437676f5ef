"""What the driver of soft_label and augment costs per row and per shard, and what that is for a billion rows.

A random tiny teacher runs on Ray workers, which are other processes, so the driver's processor time is its own.

python -m benchmarks.driver [--rows N] [--json FILE]
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.optimize import nnls

from benchmarks.manifests import manifest_figures
from benchmarks.memory import peak_kilobytes
from benchmarks.timing import Figure, print_table
from benchmarks.worlds import random_corpus, runtime_of, settings_of, tiny_teacher
from pipeline.augment import passes
from pipeline.augment.passes import augment, soft_label
from pipeline.augment.plans import Augmentation
from pipeline.config.settings import AugmentSettings
from pipeline.shards.manifest import Manifest
from stages.command import stage

ROWS_PER_SHARD = 20_000
BILLION = 1e9

PARTS = {
    "soft_label_jobs": "cut and hash the table",
    "take_stock": "look up the store",
    "epsilon_found": "calibrate, sample apart",
    "finish": "assign the shards",
    "manifest_of": "build the manifest",
    "publish": "link shards, write the manifest",
}
"""Functions of the passes that the driver calls, in their order."""

Seconds = dict[str, float]


@dataclass
class Clock:
    """Processor and wall-clock seconds of this process, by name."""

    processor: Seconds = field(default_factory=dict)
    wall: Seconds = field(default_factory=dict)

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Add what the block takes."""
        clocks = ((self.processor, time.process_time), (self.wall, time.perf_counter))
        began = [now() for _, now in clocks]
        try:
            yield
        finally:
            for (seconds, now), start in zip(clocks, began, strict=True):
                seconds[name] = seconds.get(name, 0.0) + now() - start

    @contextmanager
    def watching(self, title: str) -> Iterator[None]:
        """Time the parts of a pass that runs in the block, and the rest of it."""

        def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def run(*arguments: Any, **named: Any) -> Any:
                with self.timing(f"{title}: {name}"):
                    return function(*arguments, **named)

            return run

        def parts(seconds: Seconds) -> float:
            return sum(taken for name, taken in seconds.items() if name.startswith(f"{title}: ") and name != rest)

        both, rest = (self.processor, self.wall), f"{title}: the rest"
        before = [parts(seconds) for seconds in both]
        with ExitStack() as stack:
            for function, name in PARTS.items():
                stack.enter_context(mock.patch.object(passes, function, timed(name, getattr(passes, function))))
            with self.timing(rest):
                yield
        for seconds, earlier in zip(both, before, strict=True):
            seconds[rest] -= parts(seconds) - earlier


@dataclass(frozen=True)
class Run:
    """Both passes over a number of rows, with an empty store and again with a full one."""

    rows: int
    shards: int
    clock: Clock
    megabytes: float
    """Peak memory above that before the passes."""
    soft_labels: Manifest
    variants: Manifest


def run(folder: Path, teacher: Path, rows: int, rows_per_shard: int, workers: int) -> Run:
    """Run soft_label and augment with one perturbed variant."""
    clock, settings = Clock(), settings_for(rows_per_shard)
    prepared, runtime = random_corpus(folder / "prepared", rows), runtime_of(folder / "store", workers)
    labels, shards = folder / "soft_labels", folder / "shards"
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = peak_kilobytes()
    for store in ("", ", full store"):
        with clock.watching(f"soft_label{store}"):
            soft_labels = soft_label(prepared, teacher, settings.inference, runtime, labels)
        with clock.timing(f"augment{store}: open the soft labels"):
            plan = Augmentation.of(labels, teacher, settings)
        with clock.timing(f"augment{store}: sample for calibration"):
            plan.calibration  # noqa: B018 - computed once and kept
        with clock.watching(f"augment{store}"):
            variants = augment(plan, runtime, shards)
    entries = [*soft_labels.shards, *variants.shards]
    assert sum(entry.receipt.rows for entry in variants.shards) == rows, "every row was perturbed"
    return Run(rows, len(entries), clock, (peak_kilobytes() - before) / 1000, soft_labels, variants)


def settings_for(rows_per_shard: int) -> AugmentSettings:
    """Large batches, since the teacher is tiny."""
    return settings_of(inference={"rows_per_shard": rows_per_shard, "batch_size": 256}, calibration_rows=512)


@dataclass(frozen=True)
class Cost:
    """What a part of the driver's work takes: so much at once, for each row, and for each shard."""

    seconds: float
    per_row: float
    per_shard: float

    def of(self, rows: float, shards: float) -> float:
        """Seconds for so many rows in so many shards."""
        return self.seconds + self.per_row * rows + self.per_shard * shards


def costs(runs: list[Run], seconds_of: Callable[[Clock], Mapping[str, float]]) -> dict[str, Cost]:
    """The costs, none negative, that fit the seconds of runs with different numbers of rows and shards."""
    sizes = np.array([[1.0, run.rows, run.shards] for run in runs])
    scale = sizes.max(axis=0)
    found = {}
    for name in seconds_of(runs[-1].clock):
        seconds = np.array([seconds_of(run.clock)[name] for run in runs])
        weights = 1 / np.maximum(seconds, 1e-3)  # each run to the same relative error
        fitted, _ = nnls(sizes / scale * weights[:, None], seconds * weights)
        found[name] = Cost(*(fitted / scale).tolist())
    return found


def print_costs(title: str, found: Mapping[str, Cost], shards: float) -> None:
    """One line for each part, with its time for a billion rows in so many shards."""
    table = Table(title=title, title_justify="left")
    for name in ("part", "s", "µs a row", "ms a shard", "h for 10⁹ rows"):
        table.add_column(name, justify="left" if name == "part" else "right")
    for name, cost in found.items():
        hours = cost.of(BILLION, shards) / 3600
        table.add_row(name, f"{cost.seconds:.2f}", f"{cost.per_row * 1e6:.2f}", f"{cost.per_shard * 1e3:.2f}", f"{hours:.2f}")
    Console(width=150).print(table)


def driver_figures(folder: Path, rows: int, rows_per_shard: int, workers: int) -> tuple[list[Figure], Run]:
    """Run three sizes, print what each part costs, and give the sums and the largest run."""
    teacher = tiny_teacher(folder / "teacher")
    small, many = (max(rows // 100, 20), rows_per_shard), (max(rows // 20, 100), max(rows_per_shard // 400, 4))
    run(folder / "first", teacher, *small, workers)  # imports what later runs find imported
    sizes = {"small": small, "many": many, "large": (rows, rows_per_shard)}
    runs = [run(folder / name, teacher, *size, workers) for name, size in sizes.items()]
    large = runs[-1]
    shards = BILLION / rows * large.shards
    found = costs(runs, lambda clock: clock.processor)
    title = f"the driver's processor time, {rows:,} rows in {large.shards} shards, extrapolated to {shards:,.0f} shards"
    print_costs(title, found, shards)
    cold = {name: seconds for name, seconds in large.clock.processor.items() if "full store" not in name}
    with_workers = (PARTS["epsilon_found"], PARTS["finish"])
    serial = sum(s for name, s in large.clock.wall.items() if name in cold and not name.endswith(with_workers))
    hours = {name: cost.of(BILLION, shards) / 3600 for name, cost in found.items()}
    return [
        Figure("driver_us_per_row", sum(cold.values()) / rows * 1e6, "processor time, both passes and start-up", ("≤", 100)),
        Figure("serial_us_per_row", serial / rows * 1e6, "wall-clock time in which no worker computes"),
        Figure("hours_1e9", sum(h for name, h in hours.items() if name in cold), "processor time for 10⁹ rows"),
        Figure("hours_1e9_full", sum(h for name, h in hours.items() if name not in cold), "again, everything in the store"),
        Figure("memory_mb", large.megabytes, f"peak memory over that before, {rows:,} rows"),
        Figure("memory_small_mb", runs[0].megabytes, f"the same, {runs[0].rows:,} rows"),
    ], large


@stage
@click.option("--rows", default=1_000_000, show_default=True, help="Training rows.")
@click.option("--rows-per-shard", default=ROWS_PER_SHARD, show_default=True, help="As in the section inference.")
@click.option("--workers", default=1, show_default=True, help="Ray workers.")
@click.option("--shards", default=50_000, show_default=True, help="Shards of the manifest that is measured apart.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="Also write the figures to this file.")
def main(rows: int, rows_per_shard: int, workers: int, shards: int, target: Path | None) -> None:
    """Measure what the driver does, and what a large manifest costs; close other programs first."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures, large = driver_figures(Path(folder), rows, rows_per_shard, workers)
        print_table(f"driver, {rows:,} rows, {workers} workers", figures)
        manifest = manifest_figures(Path(folder) / "manifest", large.variants, shards)
    print_table(f"a manifest of {shards:,} shards", manifest)
    if target is not None:
        written = {figure.key: round(figure.value, 4) for figure in figures + manifest}
        target.write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    main()
