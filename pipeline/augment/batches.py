"""Rows through a model in batches that fit its memory. Knows lengths and what running out of memory looks like."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import torch

from pipeline.augment.inputs import Inputs
from pipeline.encoding import EVEN_ROWS, Integers, length_buckets
from pipeline.errors import PipelineError

NO_MEMORY = ("out of memory", "not enough memory", "can't allocate", "CUBLAS_STATUS_ALLOC_FAILED")
"""What a RuntimeError says of it: of CUDA itself, of this machine, of cuBLAS's workspace."""

Result = TypeVar("Result", covariant=True)


class Compute(Protocol[Result]):
    """From rows, their positions and the length they are padded to, to one result a row."""

    def __call__(self, rows: Inputs, positions: Integers, tokens: int) -> Sequence[Result]: ...


class Batches:
    """Batches of like length. One that does not fit is halved, and so are all after it, padded as before: same bits."""

    def __init__(self) -> None:
        self._fits: int | None = None
        self._notes: list[str] = []

    def run(self, inputs: Inputs, batch_rows: int, compute: Compute[Result]) -> list[Result]:
        """One result a row, in the order of ``inputs``.

        Raises:
            PipelineError: a row does not fit even alone; names its example.
        """
        results: dict[int, Result] = {}
        lengths = inputs.lengths()
        for positions in length_buckets(lengths, batch_rows):
            padded = functools.partial(compute, tokens=int(lengths[positions].max()))
            for piece, made in self._fitting(inputs, positions, padded):
                results |= dict(zip(piece.tolist(), made, strict=True))
        return [results[position] for position in range(len(inputs))]

    def notes(self) -> list[str]:
        """What a person should know of the batches since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def _fitting(
        self, inputs: Inputs, positions: Integers, compute: Callable[[Inputs, Integers], Sequence[Result]]
    ) -> Iterator[tuple[Integers, Sequence[Result]]]:
        """The rows in pieces as large as fit, each with its results; rows before a short rest are computed again with it."""
        done = 0
        while done < len(positions):
            most = self._fits or len(positions)
            start = max(min(done, len(positions) - min(most, EVEN_ROWS)), 0)
            piece = positions[start : start + most]
            rows = inputs.take(piece)
            try:
                made = compute(rows, piece)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                made = None  # halved below, where the error no longer holds what was computed
            if made is None:
                self._halve(rows)
            else:
                done = start + len(piece)
                yield piece, made

    def _halve(self, rows: Inputs) -> None:
        if len(rows) == 1:
            raise PipelineError(
                f"example {rows.example_ids[0]} with its {rows.lengths()[0]} tokens does not fit into memory even alone; "
                "set a smaller tasks.<task>.teacher.max_length, or use a larger device"
            )
        self._fits = half(len(rows))
        self._notes.append(f"memory ran out at {len(rows)} rows a batch; it goes on with {self._fits}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def half(rows: int) -> int:
    """About half as many rows, a multiple of ``EVEN_ROWS`` as long as that is fewer."""
    even = -(-rows // 2 // EVEN_ROWS) * EVEN_ROWS
    return even if 0 < even < rows else max(rows // 2, 1)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or this machine has no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in NO_MEMORY)
