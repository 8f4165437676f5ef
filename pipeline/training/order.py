"""The rows of a training in an order that depends on lengths, seed and epoch alone, divided into micro-batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from pipeline.config.errors import PipelineError
from pipeline.corpus.encoding import Batch
from pipeline.corpus.seeding import seed_of
from pipeline.corpus.task import Floats

Lengths = npt.NDArray[np.int64]
Positions = npt.NDArray[np.int64]

POOL = 32
"""Steps whose rows are sorted by length among themselves; a larger pool pads less and shuffles less."""


@dataclass(frozen=True)
class MicroBatch:
    """The rows of one step that one rank computes at once."""

    rows: Positions
    epoch: int
    progress: float
    """Share of the training before this step."""
    weight: float
    """Rows here ÷ mean rows of the step's micro-batches; weighted by it, the mean of their mean losses is the step's mean."""


@dataclass(frozen=True)
class StepSharding:
    """Into how many micro-batches a step is divided, and which rank this is."""

    world_size: int = 1
    rank: int = 0
    gradient_accumulation_steps: int = 1

    @property
    def micro_batches(self) -> int:
        """Per step, over all ranks."""
        return self.world_size * self.gradient_accumulation_steps


class RowData(Protocol):
    """Rows to train or evaluate on."""

    def lengths(self) -> Lengths:
        """Number of tokens of each row."""

    def __len__(self) -> int: ...

    def batch(self, rows: MicroBatch, /) -> Batch:
        """The rows of a micro-batch, with "labels"."""


def steps_of(lengths: Lengths, batch_size: int, seed: int, epoch: int) -> list[Positions]:
    """The rows of each step of an epoch: every row once, rows of similar length together, at most ``batch_size`` per step.

    Steps differ by at most one row, so that each can be divided into micro-batches.
    """
    generator, count = np.random.Generator(np.random.Philox(key=seed_of(seed, "order", epoch))), -(-len(lengths) // batch_size)
    shuffled = generator.permutation(len(lengths))
    ends = np.arange(1, count) * len(lengths) // count
    pools = np.split(shuffled, ends[POOL - 1 :: POOL])
    by_length = np.concatenate([rows[np.argsort(lengths[rows], kind="stable")] for rows in pools])
    steps = np.split(by_length, ends)
    return [steps[number] for number in generator.permutation(len(steps))]


class EpochOrder(Sampler[MicroBatch]):
    """The micro-batches of one epoch that one rank computes; no step may have fewer rows than micro-batches."""

    def __init__(self, lengths: Lengths, batch_size: int, epochs: int, seed: int, sharding: StepSharding) -> None:
        self._lengths, self._batch_size, self._epochs, self._seed = lengths, batch_size, epochs, seed
        self.sharding = sharding
        self._epoch = 0
        self.steps = -(-len(lengths) // batch_size)
        fewest = len(lengths) // self.steps if self.steps else 0
        if fewest < sharding.micro_batches:
            raise PipelineError(
                f"a step of {fewest} rows (batch_size {batch_size}, {len(lengths)} rows in all) cannot be divided among "
                f"{sharding.world_size} processes × {sharding.gradient_accumulation_steps} gradient_accumulation_steps; lower "
                "these, or raise batch_size"
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.sharding.gradient_accumulation_steps

    def __iter__(self) -> Iterator[MicroBatch]:
        epoch, sharding = self._epoch, self.sharding
        for number, rows in enumerate(steps_of(self._lengths, self._batch_size, self._seed, epoch)):
            progress = (epoch + number / self.steps) / self._epochs
            for micro_batch in range(sharding.gradient_accumulation_steps):
                # Strided, because rows are sorted by length: otherwise one rank would have all the long ones.
                part = rows[micro_batch * sharding.world_size + sharding.rank :: sharding.micro_batches]
                yield MicroBatch(part, epoch, progress, weight=len(part) * sharding.micro_batches / len(rows))


class TrainDataset(Dataset[Any]):
    """Train rows, read one whole micro-batch at a time."""

    def __init__(self, rows: RowData) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitems__(self, rows: MicroBatch) -> Batch:
        return self._rows.batch(rows) | {"weight": torch.tensor(rows.weight)}


class DevDataset(Dataset[Any]):
    """Rows to evaluate on, longest first, which minimises padding."""

    def __init__(self, rows: RowData) -> None:
        self._rows = rows
        self.positions: Positions = np.argsort(-rows.lengths(), kind="stable")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitems__(self, indices: list[int]) -> Batch:
        return self._rows.batch(MicroBatch(self.positions[indices], epoch=0, progress=0.0, weight=1.0))

    def in_row_order(self, logits: Floats) -> Floats:
        """Logits [rows, outputs] of this dataset in the order of the rows."""
        return logits[np.argsort(self.positions)]


def train_loader(rows: TrainDataset, order: EpochOrder, workers: int) -> DataLoader[Any]:
    """The micro-batches of an epoch in their order, read ahead by this many worker processes."""
    return DataLoader(
        rows,
        batch_sampler=cast(Any, order),
        collate_fn=cast(Any, as_it_is),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )


def as_it_is(batch: Batch) -> Batch:
    """The collator of datasets that return whole batches."""
    return batch
