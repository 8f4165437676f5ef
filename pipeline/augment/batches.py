"""Rows through a model in batches that fit its memory. Knows lengths and what running out of memory looks like."""

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

import torch

from pipeline.augment.inputs import Inputs
from pipeline.config.errors import PipelineError
from pipeline.corpus.encoding import EVEN_ROWS, Integers, length_buckets

NO_MEMORY = ("out of memory", "not enough memory", "can't allocate", "CUBLAS_STATUS_ALLOC_FAILED")
"""What a RuntimeError says of it: of CUDA itself, of this machine, of cuBLAS's workspace."""

Result = TypeVar("Result", covariant=True)


class Compute(Protocol[Result]):
    """From rows, their positions and the length they are padded to, to one result a row."""

    def __call__(self, rows: Inputs, positions: Integers, tokens: int) -> Sequence[Result]: ...


class Batches:
    """Batches of like length. One that does not fit is halved, padded as before; later ones are at most as large in tokens.

    The bits are the same as long as ``EVEN_ROWS`` rows fit; of fewer the last digits may differ, and a note says so.
    """

    def __init__(self) -> None:
        self._room: int | None = None  # tokens of a batch, padding included, that fit
        self._least = EVEN_ROWS  # rows that are tried at least
        self._notes: list[str] = []

    def run(self, inputs: Inputs, batch_rows: int, compute: Compute[Result]) -> list[Result]:
        """One result a row, in the order of ``inputs``.

        Raises:
            PipelineError: a row does not fit even alone; names its example.
        """
        results: dict[int, Result] = {}
        lengths = inputs.lengths()
        for positions in length_buckets(lengths, batch_rows):
            for piece, made in self._fitting(inputs, positions, int(lengths[positions].max()), compute):
                results |= dict(zip(piece.tolist(), made, strict=True))
        return [results[position] for position in range(len(inputs))]

    def notes(self) -> list[str]:
        """What a person should know of the batches since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def _fitting(
        self, inputs: Inputs, positions: Integers, tokens: int, compute: Compute[Result]
    ) -> Iterator[tuple[Integers, Sequence[Result]]]:
        """The rows in pieces as large as fit, each with its results; rows before a short rest are computed again with it."""
        done = 0
        while done < len(positions):
            most = self._most_rows(len(positions), tokens)
            start = max(min(done, len(positions) - min(most, EVEN_ROWS)), 0)
            piece = positions[start : start + most]
            rows = inputs.take(piece)
            try:
                made = compute(rows, piece, tokens)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                made = None  # halved below, where the error no longer holds what was computed
            if made is None:
                self._halve(rows, tokens)
            else:
                done = start + len(piece)
                yield piece, made

    def _most_rows(self, rows: int, tokens: int) -> int:
        """How many of these rows should fit: a multiple of ``EVEN_ROWS``, unless not even so many have fitted before."""
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
        few = (
            ""
            if fewer >= EVEN_ROWS
            else f"; of fewer than {EVEN_ROWS} the last digits may differ from those of a larger device"
        )
        self._notes.append(f"memory ran out at {len(rows)} rows of {tokens} tokens; it goes on with {fewer}{few}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def half(rows: int) -> int:
    """About half as many rows, a multiple of ``EVEN_ROWS`` as long as that is fewer."""
    even = -(-rows // 2 // EVEN_ROWS) * EVEN_ROWS
    return even if 0 < even < rows else max(rows // 2, 1)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or this machine has no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in NO_MEMORY)
