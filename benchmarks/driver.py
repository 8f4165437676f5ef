"""What the driver of the augment stage does on one core, from which its load is reckoned for any number of rows.

python -m benchmarks.driver [--json FILE]
"""

import json
import tempfile
from pathlib import Path

import click

from benchmarks.timing import Figure, medians, print_table
from benchmarks.worlds import first_rows
from pipeline.augment.jobs import places
from pipeline.corpus.seeding import seed_of
from pipeline.store.keys import sha256_of
from stages.command import stage

ROWS_PER_SHARD = 20_000
IDS = 20_000
FILE_BYTES = 256 * 2**20


def driver_figures(prepared: Path, rows: int, rounds: int, file_bytes: int = FILE_BYTES) -> list[Figure]:
    """Rows that are cut into partitions, ids that are hashed, bytes that are verified in a second."""
    with tempfile.TemporaryDirectory() as name:
        subset, file = first_rows(prepared, Path(name) / "prepared", rows), Path(name) / "shard"
        file.write_bytes(b"\x5a" * file_bytes)
        seconds = medians(
            {
                "cut": lambda: sum(1 for _ in places(subset, "train", ROWS_PER_SHARD)),
                "hash": lambda: [seed_of(1, "calibration", f"{number:016x}") for number in range(IDS)],
                "verify": lambda: sha256_of(file),
            },
            rounds,
        )
    return [
        Figure("cut_rows_per_s", rows / seconds["cut"], f"rows cut into partitions of about {ROWS_PER_SHARD:,} and hashed"),
        Figure("hash_us", seconds["hash"] / IDS * 1e6, "microseconds to hash the id of one example"),
        Figure("verify_gb_per_s", file_bytes / seconds["verify"] / 1e9, "of a shard's SHA-256, its bytes in memory"),
    ]


@stage
@click.option("--prepared", default="data/prepared/movies", show_default=True, type=click.Path(path_type=Path), help="Corpus.")
@click.option("--rows", default=200_000, show_default=True, help="Rows that are cut; those of the corpus over and over.")
@click.option("--rounds", default=3, show_default=True, help="Turns of which the median counts.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="Also write the figures to this file.")
def main(prepared: Path, rows: int, rounds: int, target: Path | None) -> None:
    """Measure what the driver does; close other programs first."""
    figures = driver_figures(prepared, rows, rounds)
    print_table(f"driver, {rows:,} rows, {rounds} rounds, one core", figures)
    if target is not None:
        target.write_text(json.dumps({figure.key: round(figure.value, 4) for figure in figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
