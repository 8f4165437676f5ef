"""Whether students wait for their data: every figure a ratio taken in one run.

python -m benchmarks.reader [--json FILE]
"""

import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest import mock

import click
import torch
from torch.utils.data import DataLoader
from transformers import AutoConfig

from benchmarks.bucket import BUCKET, ENVIRONMENT, create_bucket, s3_server
from benchmarks.random_shards import random_shards
from benchmarks.streaming import own_batches, streamed, streamed_batches
from benchmarks.timing import Figure, medians, print_table
from pipeline.config.params import merged, read_params
from pipeline.config.sections import TRAINING
from pipeline.config.settings import StudentSettings, VariantPolicy
from pipeline.corpus.encoding import Batch
from pipeline.distill.dataset import Examples, Variants
from pipeline.distill.losses import StudentLoss
from pipeline.distill.student import make_student
from pipeline.distill.training import Sources, train
from pipeline.models.folder import ModelFolder
from pipeline.shards.manifest import put_shards
from pipeline.shards.reader import Shards
from pipeline.store.bucket import bucket_store
from pipeline.training.callbacks import Progress, RunOptions
from pipeline.training.order import EpochOrder, StepSharding, TrainDataset, train_loader
from pipeline.training.trainer import Fit
from stages.command import params_option, stage

BATCH_ROWS = 32

CACHE_BYTES = 10**11


def half_depth(params: Path, teacher: Path) -> StudentSettings:
    """A student of half the teacher's layers with stored variants, one epoch long; the rest as the section distill has it."""
    section = merged(read_params(params), (TRAINING, "distill"))
    layers = AutoConfig.from_pretrained(teacher).num_hidden_layers // 2
    training = section["training"] | {"num_train_epochs": 1}
    return StudentSettings.model_validate(section | {"num_hidden_layers": layers, "training": training})


def loader_of(
    soft_labels: Shards, shards: Shards, policy: VariantPolicy = "rotate", batch_rows: int = BATCH_ROWS
) -> DataLoader[Any]:
    """An epoch of training examples with their variants, through the loader that a training makes for itself."""
    rows = Examples(soft_labels, "train", Variants(shards, soft_labels, policy))
    order = EpochOrder(rows.lengths(), batch_rows, epochs=1, seed=1, sharding=StepSharding())
    return train_loader(TrainDataset(rows), order, workers=0)


def read(batches: Iterator[Batch] | DataLoader[Any]) -> int:
    """Take one batch after the other; returns their rows."""
    return sum(len(batch["input_ids"]) for batch in batches)


def student_steps(sources: Sources, settings: StudentSettings, batches: list[Batch]) -> Callable[[], None]:
    """What a student does with batches that lie ready: forward, backward, a step of the optimiser."""
    student = make_student(sources.teacher, settings, seed=1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = student.model.to(device).train()  # type: ignore[arg-type]
    loss = StudentLoss(student.map, settings.loss, sources.task.kind)
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.training.learning_rate)

    def steps() -> None:
        for batch in batches:
            loss(model, {name: value.to(device) for name, value in batch.items()}).mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.training.max_grad_norm)
            optimiser.step()
            optimiser.zero_grad()

    return steps


def reader_figures(sources: Sources, settings: StudentSettings, steps: int, rounds: int) -> list[Figure]:
    """The reader alone beside a student alone, in turns; and how much of what the student computes is padding."""
    assert sources.variants is not None, "they were opened with variants"
    loader = loader_of(sources.soft_labels, sources.variants, settings.variant_policy, settings.training.batch_size)
    batches = [batch for batch, _ in zip(loader, range(steps), strict=False)]
    seconds = medians({"reader": lambda: read(loader), "student": student_steps(sources, settings, batches)}, rounds)
    reader, student = read(loader) / seconds["reader"], read(iter(batches)) / seconds["student"]
    masks = [batch["attention_mask"] for batch in loader]
    padding = sum(mask.numel() for mask in masks) / sum(int(mask.sum()) for mask in masks)
    over = (
        "rows/s of the training's loader alone, files in the page cache ÷ rows/s of a half-depth student alone "
        "(forward, backward, step), in turns"
    )
    return [
        Figure("reader_over_student", reader / student, over, ("≥", 20)),
        Figure("reader_rows_per_second", reader, "clean rows, each with a stored variant, an epoch of batches"),
        Figure("student_rows_per_second", student, f"of {len(batches)} of these batches, each row clean and as a variant"),
        Figure("padding", padding, "tokens computed ÷ real tokens, clean inputs of an epoch in its order", ("≤", 1.10)),
    ]


@dataclass
class Watch:
    """Seconds of a training."""

    waited: float = 0.0
    """For train batches."""
    stepped: float = 0.0
    """From the beginnings of its epochs to the ends of their last steps: waiting included, dev and saving not."""
    began: float = 0.0


@contextmanager
def watched() -> Iterator[Watch]:
    """Watch the trainings of this process that read between their steps."""
    watch = Watch()
    get, begin, end = TrainDataset.__getitems__, Progress.on_epoch_begin, Progress.on_epoch_end

    def timed_get(self: TrainDataset, piece: Any) -> Batch:
        asked = time.perf_counter()
        batch = get(self, piece)
        watch.waited += time.perf_counter() - asked
        return batch

    def timed_begin(self: Progress, *facts: Any, **named: Any) -> None:
        begin(self, *facts, **named)
        watch.began = time.perf_counter()

    def timed_end(self: Progress, *facts: Any, **named: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        watch.stepped += time.perf_counter() - watch.began
        end(self, *facts, **named)

    with (
        mock.patch.object(TrainDataset, "__getitems__", timed_get),
        mock.patch.object(Progress, "on_epoch_begin", timed_begin),
        mock.patch.object(Progress, "on_epoch_end", timed_end),
    ):
        yield watch


def training_figures(sources: Sources, settings: StudentSettings) -> list[Figure]:
    """How long a real training waits for its rows."""
    watch, fit = watched_training(sources, settings)
    share = "share of a training's steps in which it waits for rows; dev and saving apart, no process reads ahead"
    return [
        Figure("data_wait", watch.waited / watch.stepped, share, ("≤", 0.01)),
        Figure("steps_share", watch.stepped / fit.seconds, "share of that training that is steps; the rest is dev and saving"),
    ]


def watched_training(sources: Sources, settings: StudentSettings) -> tuple[Watch, Fit]:
    """Train a student as the stage does."""
    with watched() as watch:
        _, fit = train("half", sources, settings, RunOptions())
    return watch, fit


def datasets_figures(shards: Shards, rounds: int, cache: Path, batch_rows: int = BATCH_ROWS) -> list[Figure]:
    """Our reader beside a stream of `datasets`."""
    stream = streamed(shards, cache)
    work = {
        "own": lambda: read(own_batches(shards, batch_rows)),
        "stream": lambda: read(streamed_batches(stream, shards.manifest, batch_rows)),
    }
    seconds = medians(work, rounds)
    meaning = (
        "rows/s of variant 1, in the order of its files, as equal padded and decoded tensors: this reader ÷ `datasets`, which "
        "streams numpy arrays, padded and decoded row by row; both open the files, neither hashes them"
    )
    return [Figure("over_datasets", seconds["stream"] / seconds["own"], meaning)]


def bucket_figures(sources: Sources, student: float, rounds: int) -> list[Figure]:
    """An epoch from a bucket through an empty cache; ``student`` is a student's rows per second."""
    assert sources.variants is not None, "they were opened with variants"
    sets = (sources.soft_labels, sources.variants)
    with tempfile.TemporaryDirectory() as name, s3_server() as server:
        folder, url = Path(name), f"s3://{BUCKET}/shards"
        with mock.patch.dict(os.environ, ENVIRONMENT | {"AWS_ENDPOINT_URL": server}):
            create_bucket(server)
            for shards in sets:
                put_shards(bucket_store(url, name, CACHE_BYTES), shards.folder, shards.manifest.shards)
                shards.manifest.save(folder / shards.manifest.content)

            def epoch() -> int:
                with tempfile.TemporaryDirectory() as cache:
                    store = bucket_store(url, cache, CACHE_BYTES)
                    soft_labels, variants = (Shards(folder / shards.manifest.content, store) for shards in sets)
                    rows = read(loader_of(soft_labels, variants))
                    variants.close()
                return rows

            rate = epoch() / medians({"epoch": epoch}, rounds)["epoch"]
    meaning = "rows/s of the loader's first epoch from an S3 server on this machine, cache empty ÷ rows/s of the student alone"
    return [Figure("bucket_over_student", rate / student, meaning, ("≥", 20))]


def memory_figures(folder: Path, rows: int) -> list[Figure]:
    """Peak memory of reading an epoch of ``rows`` and of 10 × ``rows``, each in a process of its own."""
    (small, before), (large, _) = (
        in_its_own_process(peak_of_epoch, random_shards(folder / str(count), count)) for count in (rows, 10 * rows)
    )
    meaning = (
        f"peak memory of an epoch of batches at {10 * rows:,} rows ÷ at {rows:,}; RssAnon, sampled every millisecond: pages of "
        "mapped shards are left out, they are the kernel's to take back"
    )
    return [
        Figure("memory_10x", large / small, meaning, ("≤", 1.2)),
        Figure("memory_start_mb", before / 1000, "of the loaded program, before shards are opened"),
        Figure("memory_peak_mb", small / 1000, f"peak at {rows:,} rows"),
        Figure("memory_peak_10x_mb", large / 1000, f"peak at {10 * rows:,} rows"),
    ]


def in_its_own_process(work: Callable[[Path], tuple[int, int]], folder: Path) -> tuple[int, int]:
    """What a function of a folder returns in a process that has done nothing before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(work, folder).result()


def peak_of_epoch(folder: Path) -> tuple[int, int]:
    """The most anonymous memory while an epoch of random shards is read, and that before, in kilobytes."""
    before = anonymous_kilobytes()
    with AnonymousPeak() as peak:
        read(loader_of(Shards(folder / "soft_labels"), Shards(folder / "shards")))
    return peak.kilobytes, before


class AnonymousPeak:
    """Watches this process's anonymous memory."""

    def __init__(self) -> None:
        self.kilobytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "AnonymousPeak":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        ended = False
        while not ended:
            ended = self._ended.wait(0.001)
            self.kilobytes = max(self.kilobytes, anonymous_kilobytes())


def anonymous_kilobytes() -> int:
    """Memory of this process that no file stands behind, as Linux counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@stage
@click.option(
    "--soft-labels",
    default="data/soft_labels/movies",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Output of soft_label.",
)
@click.option("--shards", default="data/shards/movies", show_default=True, type=click.Path(path_type=Path), help="Variants.")
@click.option("--teacher", default="data/teacher/movies", show_default=True, type=click.Path(path_type=Path), help="Model.")
@params_option
@click.option("--steps", default=10, show_default=True, help="Steps of the student that are timed.")
@click.option("--rounds", default=3, show_default=True, help="Turns of which the median counts.")
@click.option(
    "--memory-rows", default=1000, show_default=True, help="Rows whose memory is compared with that of ten times as many."
)
@click.option("--json", "target", type=click.Path(path_type=Path), help="Also write the figures to this file.")
def main(
    soft_labels: Path, shards: Path, teacher: Path, params: Path, steps: int, rounds: int, memory_rows: int, target: Path | None
) -> None:
    """Measure the reader of shards on this machine; close other programs first."""
    sources, settings = Sources.open(ModelFolder(teacher), soft_labels, shards), half_depth(params, teacher)
    assert sources.variants is not None, "they are opened"
    figures = [*reader_figures(sources, settings, steps, rounds), *training_figures(sources, settings)]
    student = next(figure.value for figure in figures if figure.key == "student_rows_per_second")
    figures += bucket_figures(sources, student, rounds)
    with tempfile.TemporaryDirectory() as name:
        figures += memory_figures(Path(name) / "random", memory_rows)
        figures += datasets_figures(sources.variants, rounds, Path(name) / "cache")
    rows = len(sources.variants.rows("train", 1))
    print_table(f"reader, {rows} rows, {rounds} rounds, {torch.get_num_threads()} threads of torch", figures)
    if target is not None:
        target.write_text(json.dumps({figure.key: round(figure.value, 4) for figure in figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
