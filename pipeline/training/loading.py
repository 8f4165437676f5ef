"""Rows as loaders of batches: to train on in a given order, and to measure on with little padding.

Knows pieces and batches; not where rows come from or what is learnt.
"""

from typing import Any, Protocol, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.corpus.encoding import Batch
from pipeline.corpus.task import Floats
from pipeline.training.order import EpochOrder, Lengths, Piece, Positions


class RowData(Protocol):
    """Rows to train or measure on."""

    def lengths(self) -> Lengths:
        """Number of tokens of each row."""

    def __len__(self) -> int: ...

    def batch(self, piece: Piece) -> Batch:
        """The rows of a piece, with "labels"."""


class Ready(Dataset[Any]):
    """Train rows as a loader asks for them: a whole piece at once."""

    def __init__(self, rows: RowData) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitems__(self, piece: Piece) -> Batch:
        return self._rows.batch(piece) | {"weight": torch.tensor(piece.weight)}


class ByLength(Dataset[Any]):
    """Rows to measure on, the longest first, so that little is padding."""

    def __init__(self, rows: RowData) -> None:
        self._rows = rows
        self.positions: Positions = np.argsort(-rows.lengths(), kind="stable")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitems__(self, indices: list[int]) -> Batch:
        return self._rows.batch(Piece(self.positions[indices], epoch=0, progress=0.0, weight=1.0))

    def in_their_order(self, logits: Floats) -> Floats:
        """Logits [rows, outputs] of all rows, as they came, in the order of the rows."""
        ordered = np.empty_like(logits)
        ordered[self.positions] = logits
        return ordered


def piece_loader(rows: Ready, order: EpochOrder, readers: int) -> DataLoader[Any]:
    """The pieces of an epoch in their order, each read as a whole, by so many processes that read ahead."""
    return DataLoader(
        rows,
        batch_sampler=cast(Any, order),
        collate_fn=cast(Any, as_it_is),
        num_workers=readers,
        pin_memory=torch.cuda.is_available(),
    )


def as_it_is(batch: Batch) -> Batch:
    """Rows come as whole batches."""
    return batch
