"""Finished runs, one row each, in a file that several processes add to. Knows columns; not what an arm is."""

import csv
import fcntl
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.config.errors import PipelineError
from pipeline.config.params import Settings
from pipeline.store.keys import hash_of


class Result(Settings):
    """One student, measured on the test split."""

    task: str
    rows: int
    """Train rows that were asked for; 0 for all."""
    train_rows: int
    """Those that were left without duplicates."""
    seed: int
    student: str
    arm: str
    epochs: int
    """Of an arm whose ``times`` is 1."""
    metric: str
    value: float
    teacher: str
    """The beginning of the hash of the fine-tuned teacher."""
    teacher_value: float
    dev: float
    agreement: float
    test_rows: int
    best_epoch: float
    """Whose weights the student has: the last, or, in former code, that with the best dev metric."""
    steps: int
    seconds: float
    """Of the training."""
    stage_one_seconds: float
    """Of surrogate, masked_lm and augment when they made these shards, in whichever runs they did."""
    bytes: int
    """Of soft labels and variants on the disk."""
    manifest: str
    """The beginning of the hash of the shards it learnt from: the variants, or the soft labels where there are none."""
    settings: str
    """What decided it but for data, models and code, as JSON: what it does otherwise than base.yaml, and a hash of that."""
    code: str
    """The beginning of the hash of the pipeline's sources and libraries; empty in rows from before it was noted."""


Curve = list[dict[str, float]]
"""Epochs of a training, as its history has them."""

COLUMNS = list(Result.model_fields)
CURVE_COLUMNS = ["task", "rows", "seed", "student", "arm", "epochs", "teacher", "settings", "at", "dev"]
"""``settings`` by the beginning of their hash."""
IDENTITY = ["task", "rows", "seed", "student", "arm", "epochs", "settings"]
"""What makes two rows the same run; an arm whose settings have changed is run again."""


def read_results(path: Path) -> pd.DataFrame:
    """Every finished run.

    Raises:
        PipelineError: the file has other columns.
    """
    if not path.is_file():
        return pd.DataFrame(columns=COLUMNS)
    found = pd.read_csv(path, keep_default_na=False)
    if list(found.columns) != COLUMNS:
        raise PipelineError(f"{path} has other columns than a run: {', '.join(found.columns)}; move it away")
    return found


def timed_again(results: pd.DataFrame, again: pd.DataFrame) -> pd.DataFrame:
    """The runs, those that were made again as they were then."""
    made = set(again[IDENTITY].itertuples(index=False, name=None))
    kept = [key not in made for key in results[IDENTITY].itertuples(index=False, name=None)]
    return pd.concat([results[kept], again], ignore_index=True)


def add_result(path: Path, result: Result, curve: Curve) -> None:
    """Add a run and what its epochs came to, whole, whoever else does so; its row comes last and makes it finished."""
    facts = result.model_dump()
    named = {name: facts[name] for name in CURVE_COLUMNS if name in facts} | {"settings": short(result.settings)}
    _add(curves_beside(path), CURVE_COLUMNS, [named | {"at": epoch["epoch"], "dev": epoch["dev"]} for epoch in curve])
    _add(path, COLUMNS, [facts])


def curves_of(results: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The dev metric after every epoch of these runs, a row an epoch; ``path`` is their table's."""
    epochs = pd.read_csv(curves_beside(path), keep_default_na=False).drop_duplicates(CURVE_COLUMNS[:-1], keep="last")
    runs = results[CURVE_COLUMNS[:-2]].assign(settings=results["settings"].map(short))
    return epochs.merge(runs)


def short(settings: str) -> str:
    """What tells two settings apart."""
    return hash_of(settings)[:8]


def curves_beside(path: Path) -> Path:
    """The file with the epochs of the runs in the table ``path``."""
    return path.with_name(f"{path.stem}_curves.csv")


def _add(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if not path.stat().st_size:
            writer.writeheader()
        writer.writerows(rows)


def finished(path: Path) -> set[tuple[Any, ...]]:
    """What identifies the runs that are in the file."""
    return set(read_results(path)[IDENTITY].itertuples(index=False, name=None))
