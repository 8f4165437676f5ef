"""Rows as model inputs, and a model run over them in batches that fit into memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from pipeline.config.errors import PipelineError
from pipeline.corpus.encoding import EVEN_ROWS, Batch, Ids, Integers, Types, collate, length_buckets
from pipeline.shards.reader import Lists

NO_MEMORY = ("out of memory", "not enough memory", "can't allocate", "CUBLAS_STATUS_ALLOC_FAILED")
"""Parts of RuntimeErrors about memory: of CUDA, of this machine, of cuBLAS's workspace."""

Columns = dict[str, list[Any]]
"""Equally long columns by the names of a shard's schema."""


class Arrays(list[npt.NDArray[Any]]):
    """Arrays of different lengths; they pickle as two arrays, far faster than one by one."""

    @classmethod
    def of(cls, lists: Lists) -> "Arrays":
        """The rows of a column of lists."""
        return cls(np.split(lists.values, np.cumsum(lists.lengths)[:-1]) if len(lists.lengths) else [])

    def __reduce__(self) -> tuple[Any, ...]:
        values = np.concatenate(self) if self else np.empty(0, dtype=np.int32)
        return Arrays.of, (Lists(values, np.array([len(row) for row in self], dtype=np.int64)),)


@dataclass(frozen=True)
class Inputs:
    """Token ids of rows, not padded."""

    example_ids: Sequence[str]
    input_ids: Sequence[Ids]
    token_type_ids: Sequence[Types] | None

    def __len__(self) -> int:
        return len(self.example_ids)

    def lengths(self) -> npt.NDArray[np.int64]:
        """Number of tokens of each row."""
        return np.array([len(ids) for ids in self.input_ids])

    def take(self, positions: Integers) -> "Inputs":
        """The rows at these positions."""
        return Inputs(
            [self.example_ids[i] for i in positions],
            Arrays(self.input_ids[i] for i in positions),
            None if self.token_type_ids is None else Arrays(self.token_type_ids[i] for i in positions),
        )

    def padded(self, pad_token_id: int, tokens: int) -> Batch:
        """One batch, padded on the right to ``tokens``."""
        return collate(self.input_ids, self.token_type_ids, pad_token_id, tokens)

    def columns(self, variant: int, labels: list[float | int | None], logits: npt.NDArray[np.float32]) -> Columns:
        """The columns of every kind of shard; ``logits`` [rows, outputs] are the teacher's on the clean inputs."""
        types = {} if self.token_type_ids is None else {"token_type_ids": list(self.token_type_ids)}
        return types | {
            "example_id": list(self.example_ids),
            "variant": [variant] * len(self),
            "input_ids": list(self.input_ids),
            "label": labels,
            "teacher_logits": list(logits),
        }


Result = TypeVar("Result")
Compute = Callable[[Inputs, Integers, int], Result]
"""Computes a result from rows, their positions and the length to pad them to."""


class Batches:
    """Batches of similar length. A batch that runs out of memory is halved, and later ones get no more tokens than fitted.

    The bits do not change as long as ``EVEN_ROWS`` rows fit. In smaller batches the last digits may, and a note says so.
    """

    def __init__(self) -> None:
        self._room: int | None = None  # tokens of a batch that fit, with padding
        self._least = EVEN_ROWS  # rows that are tried at least
        self._notes: list[str] = []

    def pieces(self, inputs: Inputs, batch_rows: int, compute: Compute[Result]) -> Iterator[tuple[Integers, Result]]:
        """Positions and result of each batch; a position may occur twice, with the same result."""
        lengths = inputs.lengths()
        for positions in length_buckets(lengths, batch_rows):
            yield from self._fitting(inputs, positions, int(lengths[positions].max()), compute)

    def notes(self) -> tuple[str, ...]:
        """Messages to the user since the last call."""
        notes, self._notes = tuple(self._notes), []
        return notes

    def _fitting(
        self, inputs: Inputs, positions: Integers, tokens: int, compute: Compute[Result]
    ) -> Iterator[tuple[Integers, Result]]:
        """A batch in pieces as large as fit; a short last piece repeats rows of the one before it."""
        done = 0
        while done < len(positions):
            most = self._most_rows(len(positions), tokens)
            start = max(min(done, len(positions) - min(most, EVEN_ROWS)), 0)
            piece = positions[start : start + most]
            rows = inputs.take(piece)
            found: Result | None = None
            try:
                found = compute(rows, piece, tokens)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            if found is None:  # handled here, where the error no longer holds tensors
                self._halve(rows, tokens)
            else:
                done = start + len(piece)
                yield piece, found

    def _most_rows(self, rows: int, tokens: int) -> int:
        """How many of these rows should fit: a multiple of ``EVEN_ROWS``, unless that many did not fit before."""
        if self._room is None or rows * tokens <= self._room:
            return rows
        fitting = max(self._room // tokens, self._least)
        return fitting // EVEN_ROWS * EVEN_ROWS or fitting

    def _halve(self, rows: Inputs, tokens: int) -> None:
        if len(rows) == 1:
            raise PipelineError(
                f"example {rows.example_ids[0]} with its {rows.lengths()[0]} tokens does not fit into memory even alone; "
                "set a smaller tasks.<task>.teacher.max_length, or use a larger device"
            )
        fewer = half(len(rows))
        self._room, self._least = fewer * tokens, min(fewer, EVEN_ROWS)
        note = f"memory ran out at {len(rows)} rows of {tokens} tokens; continuing with {fewer}"
        few = f"; with fewer than {EVEN_ROWS} the last digits may differ from those of a larger device"
        self._notes.append(note if fewer >= EVEN_ROWS else note + few)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def half(rows: int) -> int:
    """About half as many rows, a multiple of ``EVEN_ROWS`` as long as that is fewer."""
    even = -(-rows // 2 // EVEN_ROWS) * EVEN_ROWS
    return even if 0 < even < rows else max(rows // 2, 1)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device or this machine has no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in NO_MEMORY)
