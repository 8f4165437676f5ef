import json
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import random_shards, reader
from pipeline.distill.dataset import VARIANT
from pipeline.distill.training import Sources
from pipeline.models.folder import ModelFolder
from pipeline.shards.reader import Rows, Shards
from pipeline.training.callbacks import Progress
from pipeline.training.order import EpochOrder, TrainDataset, steps_of
from tests.benchmarks.figures import by_key
from tests.world import student_settings

ROWS, BATCH_ROWS = 60, 8
HALF = student_settings({"num_train_epochs": 1, "batch_size": BATCH_ROWS}, num_hidden_layers=2)
STEPS = 8
"""Of an epoch of so many rows."""

PARAMS = Path(__file__).parent.parent.parent / "params.yaml"

Folders = tuple[Path, Path]


@pytest.fixture(scope="module")
def sources(made: Folders, teacher: Path) -> Sources:
    return Sources.open(ModelFolder(teacher), *made)


def test_the_loader_is_that_of_a_training_and_gives_every_row_with_its_variant(sources: Sources) -> None:
    assert sources.variants is not None
    loader = reader.loader_of(sources.soft_labels, sources.variants, "rotate", BATCH_ROWS)
    assert isinstance(loader.dataset, TrainDataset)
    assert isinstance(loader.batch_sampler, EpochOrder)
    batches = list(loader)
    assert len(batches) == STEPS
    assert reader.read(loader) == sum(len(batch["labels"]) for batch in batches) == ROWS
    for held, name in ((sources.soft_labels.rows("train", 0), "teacher_logits"), (sources.variants.rows("train", 1), "logits")):
        logits = np.concatenate([batch[name if name in batch else VARIANT + name] for batch in batches])
        stored = held.matrix("teacher_logits" if name == "teacher_logits" else "perturbed_logits")
        assert sorted(logits.tolist()) == sorted(stored.tolist())


def test_the_ratio_is_that_of_the_speeds_and_padding_that_of_the_order(sources: Sources) -> None:
    found = by_key(reader.reader_figures(sources, HALF, 2, 1))
    ratio = found["reader_rows_per_second"] / found["student_rows_per_second"]
    assert found["reader_over_student"] == pytest.approx(ratio)
    assert ratio > 1
    lengths = sources.soft_labels.rows("train", 0).lengths()
    steps = steps_of(lengths, BATCH_ROWS, seed=1, epoch=0)
    assert found["padding"] == pytest.approx(sum(len(rows) * lengths[rows].max() for rows in steps) / lengths.sum())


def test_an_epoch_from_a_bucket_has_all_rows_and_its_rate_is_that_over_the_students(sources: Sources) -> None:
    found = by_key(reader.bucket_figures(sources, 1e-3, rounds=1))
    assert found["bucket_over_student"] > ROWS / 60 / 1e-3, "it takes less than a minute"


def test_after_a_watched_training_nothing_is_watched_any_more(sources: Sources) -> None:
    before = TrainDataset.__getitems__, Progress.on_epoch_begin, Progress.on_epoch_end
    found = by_key(reader.training_figures(sources, HALF))
    assert (TrainDataset.__getitems__, Progress.on_epoch_begin, Progress.on_epoch_end) == before
    assert 0 < found["data_wait"] < found["steps_share"] < 1


def hoard(folder: Path) -> tuple[int, int]:
    """Read as a reader would that keeps a copy of every δ."""
    before = reader.anonymous_kilobytes()
    with reader.AnonymousPeak() as peak:
        rows: Rows = Shards(folder / "shards").rows("train", 1)
        kept = rows.lists_at("delta", np.arange(len(rows)))
        time.sleep(0.01)
        assert kept.values.any()
    return peak.kilobytes, before


def test_memory_is_measured_in_processes_of_their_own_and_a_reader_that_keeps_all_would_show(tmp_path: Path) -> None:
    found = by_key(reader.memory_figures(tmp_path, 200))
    assert found["memory_10x"] == pytest.approx(found["memory_peak_10x_mb"] / found["memory_peak_mb"])
    assert found["memory_peak_mb"] >= found["memory_start_mb"] > 50
    kept, before = reader.in_its_own_process(hoard, tmp_path / "2000")
    of_rows = 2000 * 27 * random_shards.WIDTH / 1e6
    assert (kept - before) / 1000 > of_rows
    assert found["memory_peak_10x_mb"] - found["memory_start_mb"] < of_rows * 0.7


def test_a_run_prints_and_writes_every_figure(
    made: Folders, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "reader.json"
    folders = ["--soft-labels", str(made[0]), "--shards", str(made[1]), "--teacher", str(teacher), "--params", str(PARAMS)]
    quick = ["--steps", "1", "--rounds", "1", "--memory-rows", "20", "--json", str(target)]
    result = CliRunner().invoke(reader.main, [*folders, *quick])
    assert result.exit_code == 0, result.output
    figures = json.loads(target.read_text())
    assert all(key in result.output for key in figures)
    assert {"reader_over_student", "data_wait", "memory_10x", "over_datasets", "padding"} <= figures.keys()
    assert all(value > 0 for value in figures.values())
