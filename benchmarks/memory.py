"""Peak memory of whole runs of soft_label and augment, each in a process of its own.

python -m benchmarks.memory ROWS prints the peak and the memory before the first row, in kilobytes.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import click

from benchmarks.timing import Figure
from benchmarks.worlds import first_rows, inference_of, runtime_of, settings_of, small_teacher
from pipeline.augment.passes import augment, soft_label
from pipeline.augment.plans import Augmentation
from pipeline.corpus.task import Task
from pipeline.shards.reader import Shards
from stages.command import stage

ROOT = Path(__file__).parent.parent


def memory_figures(prepared: Path, teacher: Path, rows: int) -> list[Figure]:
    """Peak memory of whole runs of soft_label and augment over ``rows`` and 10 × ``rows``, each a process of its own."""
    (small, before), (large, _) = (peak_memory(prepared, teacher, count) for count in (rows, 10 * rows))
    meaning = f"peak memory at {10 * rows:,} rows ÷ at {rows:,}, soft_label and augment"
    return [
        Figure("memory_10x", large / small, meaning, ("≤", 1.2)),
        Figure("memory_start_mb", before / 1000, "of the loaded program and a small teacher, before the first row"),
        Figure("memory_peak_mb", small / 1000, f"peak at {rows:,} rows"),
        Figure("memory_peak_10x_mb", large / 1000, f"peak at {10 * rows:,} rows"),
    ]


def peak_memory(prepared: Path, teacher: Path, rows: int) -> tuple[int, int]:
    """Peak and memory before the first row, in kilobytes."""
    program = [sys.executable, "-m", "benchmarks.memory", str(rows)]
    command = [*program, "--prepared", str(prepared.resolve()), "--teacher", str(teacher.resolve())]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    peak, before = map(int, said.split())
    return peak, before


def run_for_memory(prepared: Path, tokenizer_of: Path, rows: int) -> None:
    """Run soft_label and augment with a small teacher in this process; print peak memory and that at the start."""
    task = Task.read(prepared)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        teacher = small_teacher(folder / "teacher", tokenizer_of, task)
        subset = first_rows(prepared, folder / "prepared", rows)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = peak_kilobytes()
        runtime = runtime_of(folder / "store")
        soft_label(subset, teacher, inference_of(), runtime, folder / "soft_labels")
        augment(Augmentation.of(folder / "soft_labels", teacher, settings_of()), runtime, folder / "shards")
        rows_there = sum(entry.receipt.rows for entry in Shards(folder / "shards").manifest.shards)
        assert rows_there == rows, "every row was perturbed"
        print(peak_kilobytes(), before)


def peak_kilobytes() -> int:
    """The most memory that this process has had, as Linux counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@stage
@click.argument("rows", type=int)
@click.option("--prepared", default="data/prepared/movies", show_default=True, type=click.Path(path_type=Path), help="Corpus.")
@click.option("--teacher", default="data/teacher/movies", show_default=True, type=click.Path(path_type=Path), help="Tokenizer.")
def main(rows: int, prepared: Path, teacher: Path) -> None:
    """Run soft_label and augment over so many rows in this process and print its peak memory."""
    run_for_memory(prepared, teacher, rows)


if __name__ == "__main__":
    main()
