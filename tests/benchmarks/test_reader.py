import json
import mmap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks import random_shards, reader
from benchmarks.timing import Figure
from pipeline.config.params import read_params
from pipeline.corpus.encoding import Batch
from pipeline.distill.examples import VARIANT, Examples
from pipeline.distill.student import Student, make_student
from pipeline.distill.training import Sources
from pipeline.shards.reader import Rows, Shards
from pipeline.training.callbacks import EpochBoundaries
from pipeline.training.order import EpochOrder, MicroBatch, TrainDataset, steps_of
from tests.world import student_settings

ROWS, BATCH_ROWS = 60, 8
HALF = student_settings({"num_train_epochs": 1, "batch_size": BATCH_ROWS}, layers=2)
STEPS = 8
"""Of an epoch of so many rows."""

PARAMS = Path(__file__).parent.parent.parent / "params.yaml"

Folders = tuple[Path, Path]


@pytest.fixture(scope="module")
def sources(made: Folders, teacher: Path) -> Sources:
    return Sources.open(teacher, *made)


def by_key(figures: list[Figure]) -> dict[str, float]:
    return {figure.key: figure.value for figure in figures}


def test_the_loader_is_that_of_a_training_and_gives_every_row_with_its_variant(sources: Sources) -> None:
    assert sources.variants is not None
    loader = reader.loader_of(sources.scores, sources.variants, "rotate", BATCH_ROWS)
    assert isinstance(loader.dataset, TrainDataset)
    assert isinstance(loader.batch_sampler, EpochOrder)
    batches = list(loader)
    assert len(batches) == STEPS
    assert reader.read(loader) == sum(len(batch["labels"]) for batch in batches) == ROWS
    for held, name in ((sources.scores.rows("train", 0), "teacher_logits"), (sources.variants.rows("train", 1), "logits")):
        logits = np.concatenate([batch[name if name in batch else VARIANT + name] for batch in batches])
        stored = held.matrix("teacher_logits" if name == "teacher_logits" else "perturbed_logits")
        assert sorted(logits.tolist()) == sorted(stored.tolist())


def test_the_student_takes_a_step_on_each_batch(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sources.variants is not None
    students: list[Student] = []
    steps: list[int] = []
    take = torch.optim.AdamW.step

    def kept(*arguments: Any, **named: Any) -> Student:
        students.append(make_student(*arguments, **named))
        return students[-1]

    def counted(self: torch.optim.AdamW, *arguments: Any) -> Any:
        steps.append(1)
        return take(self, *arguments)

    monkeypatch.setattr(reader, "make_student", kept)
    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    batches = list(reader.loader_of(sources.scores, sources.variants, "rotate", BATCH_ROWS))[:3]
    work = reader.student_steps(sources, HALF, batches)
    before = {name: value.clone() for name, value in students[0].model.state_dict().items()}
    work()
    assert len(steps) == 3
    after = students[0].model.state_dict()
    assert all(
        not torch.equal(value, after[name]) for name, value in before.items() if "encoder" in name and "key.bias" not in name
    )
    assert students[0].model.training


def test_the_student_has_half_the_layers_and_the_settings_of_the_default_run(teacher: Path) -> None:
    default = read_params(PARAMS)["distill"]
    found = reader.half_depth(PARAMS, teacher)
    assert found.layers == 2, "of the teacher's 4"
    assert (found.adversary.shards, found.variants, found.optimiser.num_train_epochs) == (1.0, default["variants"], 1)
    assert found.objective.model_dump(exclude_none=True) == default["objective"]
    assert found.optimiser.learning_rate == default["optimiser"]["learning_rate"]


def test_the_ratio_is_that_of_the_speeds_and_padding_that_of_the_order(sources: Sources) -> None:
    found = by_key(reader.reader_figures(sources, HALF, 2, 1))
    ratio = found["reader_rows_per_second"] / found["student_rows_per_second"]
    assert found["reader_over_student"] == pytest.approx(ratio)
    assert ratio > 1
    lengths = sources.scores.rows("train", 0).lengths()
    steps = steps_of(lengths, BATCH_ROWS, seed=1, epoch=0)
    assert found["padding"] == pytest.approx(sum(len(rows) * lengths[rows].max() for rows in steps) / lengths.sum())


def test_waiting_is_what_train_rows_take_and_steps_end_where_dev_begins(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_of = Examples.batch

    def slow(self: Examples, piece: MicroBatch) -> Batch:
        time.sleep(0.05 if self.split == "train" else 0.5)
        return batch_of(self, piece)

    quick, _ = reader.watched_training(sources, HALF)
    monkeypatch.setattr(Examples, "batch", slow)
    watch, fit = reader.watched_training(sources, HALF)
    assert 0 < quick.waited < 0.02 * STEPS
    assert 0.05 * STEPS <= watch.waited < 0.05 * STEPS + 0.5, "dev was slow and is not counted, however busy the machine"
    assert watch.waited < watch.stepped < fit.seconds - 0.5


def test_after_a_watched_training_nothing_is_watched_any_more(sources: Sources) -> None:
    before = TrainDataset.__getitems__, EpochBoundaries.on_epoch_begin, EpochBoundaries.on_epoch_end
    found = by_key(reader.training_figures(sources, HALF))
    assert (TrainDataset.__getitems__, EpochBoundaries.on_epoch_begin, EpochBoundaries.on_epoch_end) == before
    assert 0 < found["data_wait"] < found["steps_share"] < 1


def test_the_speed_beside_datasets_is_a_ratio(sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sources.variants is not None
    monkeypatch.setattr(reader, "medians", lambda work, rounds: {name: piece() / 30 * rounds for name, piece in work.items()})
    monkeypatch.setattr(reader, "own_batches", lambda shards, rows: [{"input_ids": torch.zeros(10)}])
    assert by_key(reader.datasets_figures(sources.variants, 1, tmp_path))["over_datasets"] == ROWS / 10


def test_the_peak_is_of_memory_that_no_file_stands_behind(tmp_path: Path) -> None:
    size = 100_000_000
    (tmp_path / "file").write_bytes(bytes(size))
    before = reader.anonymous_kilobytes()
    with reader.AnonymousPeak() as mapped, (tmp_path / "file").open("rb") as file:
        pages = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        assert not np.frombuffer(pages, dtype=np.uint8).any()
    assert mapped.kilobytes - before < size / 2000
    with reader.AnonymousPeak() as held:
        kept = np.ones(size, dtype=np.uint8)
        time.sleep(0.05)
        del kept
    assert held.kilobytes - before > size / 1100, "also of what is given back before the end"


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
    folders = ["--scores", str(made[0]), "--shards", str(made[1]), "--teacher", str(teacher), "--params", str(PARAMS)]
    quick = ["--steps", "1", "--rounds", "1", "--memory-rows", "20", "--json", str(target)]
    result = CliRunner().invoke(reader.main, [*folders, *quick])
    assert result.exit_code == 0, result.output
    figures = json.loads(target.read_text())
    assert all(key in result.output for key in figures)
    assert {"reader_over_student", "data_wait", "memory_10x", "over_datasets", "padding"} <= figures.keys()
    assert all(value > 0 for value in figures.values())
