"""The order in which a training sees rows: a function of lengths, seed and epoch, cut into equal shares of every step.

Knows numbers of rows and their lengths; not what rows hold, nor who computes a share.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from pipeline.config.errors import PipelineError
from pipeline.corpus.seeding import seed_of

Lengths = npt.NDArray[np.int64]
Positions = npt.NDArray[np.int64]

POOL = 32
"""Steps whose rows are sorted by length among themselves; larger pads less and shuffles less."""


@dataclass(frozen=True)
class Piece:
    """The rows of one step that one process takes at once."""

    rows: Positions
    epoch: int
    progress: float
    """Share of the training that lies before this step."""
    weight: float
    """Rows here ÷ mean rows of the step's pieces: with it the mean over pieces of mean losses is that over the step's rows."""


@dataclass(frozen=True)
class Sharing:
    """Into how many pieces a step is cut, and which of them are taken here."""

    processes: int = 1
    process: int = 0
    turns: int = 1
    """Pieces that one process takes one after the other before it steps."""

    @property
    def pieces(self) -> int:
        """Of every step."""
        return self.processes * self.turns


def steps_of(lengths: Lengths, batch_size: int, seed: int, epoch: int) -> list[Positions]:
    """The rows of each step of an epoch: every row once, rows of like length together, no step above ``batch_size``.

    Steps differ by at most one row, so that none is too small to be shared out.
    """
    generator = np.random.Generator(np.random.Philox(key=seed_of(seed, "order", epoch)))
    shuffled = generator.permutation(len(lengths))
    ends = np.arange(1, step_count(len(lengths), batch_size)) * len(lengths) // step_count(len(lengths), batch_size)
    pools = np.split(shuffled, ends[POOL - 1 :: POOL])
    by_length = np.concatenate([rows[np.argsort(lengths[rows], kind="stable")] for rows in pools])
    steps = np.split(by_length, ends)
    return [steps[number] for number in generator.permutation(len(steps))]


def step_count(rows: int, batch_size: int) -> int:
    """Steps of an epoch."""
    return -(-rows // batch_size)


class EpochOrder(Sampler[Piece]):
    """The pieces of one epoch that one process takes; the trainer chooses the epoch."""

    def __init__(self, lengths: Lengths, batch_size: int, epochs: int, seed: int, sharing: Sharing) -> None:
        """Refuse what cannot be shared out.

        Raises:
            PipelineError: some step has fewer rows than pieces.
        """
        self._lengths, self._batch_size, self._epochs, self._seed = lengths, batch_size, epochs, seed
        self._sharing = sharing
        self._epoch = 0
        self.steps = step_count(len(lengths), batch_size)
        fewest = len(lengths) // self.steps if self.steps else 0
        if fewest < sharing.pieces:
            raise PipelineError(
                f"a step of {fewest} rows (batch_size {batch_size}, {len(lengths)} rows in all) cannot be shared by "
                f"{sharing.processes} processes × {sharing.turns} turns; have fewer of these, or a larger batch_size"
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self.steps * self._sharing.turns

    def __iter__(self) -> Iterator[Piece]:
        epoch, sharing = self._epoch, self._sharing
        for number, rows in enumerate(steps_of(self._lengths, self._batch_size, self._seed, epoch)):
            progress = (epoch + number / self.steps) / self._epochs
            for turn in range(sharing.turns):
                # Every so-many-th row, not a run of them: rows are sorted by length, and nobody shall wait for the longest.
                part = rows[turn * sharing.processes + sharing.process :: sharing.pieces]
                yield Piece(part, epoch, progress, weight=len(part) * sharing.pieces / len(rows))
