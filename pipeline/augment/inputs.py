"""Encoded rows as the teacher reads them: token ids, and where two rows are mixed the partner's. Knows no model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.corpus.encoding import Batch, Ids, Integers, Types
from pipeline.perturbation.inputs import mixing_batch

Packed = tuple[Integers, Integers]
"""Rows of different lengths one behind the other, and their lengths."""


def packed(rows: Sequence[npt.NDArray[Any]]) -> Packed:
    """Rows as two arrays: between processes, a piece of memory for each row takes longer than a teacher with the row."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    return (np.concatenate(rows) if len(rows) else np.empty(0, dtype=np.int32)), lengths


def unpacked(rows: Packed) -> list[npt.NDArray[Any]]:
    """The rows again, as views."""
    values, lengths = rows
    return np.split(values, np.cumsum(lengths)[:-1]) if len(lengths) else []


@dataclass(frozen=True)
class Partner:
    """What is mixed into a row."""

    example_id: str
    input_ids: Ids
    own_weight: float
    """λ, the share of the row's own embeddings."""


@dataclass(frozen=True)
class Inputs:
    """Rows, not padded."""

    example_ids: Sequence[str]
    input_ids: Sequence[Ids]
    token_type_ids: Sequence[Types] | None
    partners: Sequence[Partner] | None = None
    """One a row where rows are mixed; as long as the row."""

    def __len__(self) -> int:
        return len(self.example_ids)

    def lengths(self) -> npt.NDArray[np.int64]:
        """Number of tokens of each row."""
        return np.array([len(ids) for ids in self.input_ids])

    def take(self, positions: Integers) -> "Inputs":
        """The rows at these positions."""
        return Inputs(
            [self.example_ids[i] for i in positions],
            [self.input_ids[i] for i in positions],
            None if self.token_type_ids is None else [self.token_type_ids[i] for i in positions],
            None if self.partners is None else [self.partners[i] for i in positions],
        )

    def __reduce__(self) -> tuple[Any, ...]:
        types = None if self.token_type_ids is None else packed(self.token_type_ids)
        return _inputs, (list(self.example_ids), packed(self.input_ids), types, self.partners)

    @staticmethod
    def joined(parts: Sequence["Inputs"]) -> "Inputs":
        """The rows of several parts, none of them mixed, one after the other."""
        types = [kept for part in parts for kept in part.token_type_ids or ()]
        ids = [kept for part in parts for kept in part.input_ids]
        return Inputs([name for part in parts for name in part.example_ids], ids, types or None)

    def padded(self, pad_token_id: int, tokens: int) -> Batch:
        """One batch, padded on the right to ``tokens``."""
        partners: Sequence[Partner | None] = self.partners or [None] * len(self)
        return mixing_batch(
            self.input_ids,
            self.token_type_ids,
            [partner.input_ids if partner else None for partner in partners],
            [partner.own_weight if partner else None for partner in partners],
            pad_token_id,
            tokens,
        )


def _inputs(example_ids: list[str], ids: Packed, types: Packed | None, partners: Sequence[Partner] | None) -> Inputs:
    return Inputs(example_ids, unpacked(ids), None if types is None else unpacked(types), partners)
