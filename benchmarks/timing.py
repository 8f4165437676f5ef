"""Timing in turns, and a table of figures with their bars. Knows clocks and numbers, not what is timed."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """One measured number."""

    key: str
    value: float
    meaning: str
    bar: tuple[Literal["≥", "≤"], float] | None = None
    """None: only reported."""

    @property
    def met(self) -> bool | None:
        """Whether the bar is reached, as the number is printed."""
        if self.bar is None:
            return None
        sign, bound = self.bar
        shown = round(self.value, 3)
        return shown >= bound if sign == "≥" else shown <= bound


def medians(work: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each piece of work, all of them in turns, so that a busy machine slows all alike."""
    for piece in work.values():
        piece()
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, piece in work.items():
            seconds[name].append(timed(piece))
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def timed(work: Callable[[], object]) -> float:
    """Seconds of one run, to the end of what it started on a GPU."""
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def print_table(title: str, figures: list[Figure]) -> None:
    """One line a figure."""
    table = Table(title=title, title_justify="left")
    for name in ("key", "value", "bar", "", "what"):
        table.add_column(name, justify="right" if name == "value" else "left")
    for figure in figures:
        bar = "" if figure.bar is None else f"{figure.bar[0]} {figure.bar[1]:g}"
        mark = {True: "met", False: "missed", None: ""}[figure.met]
        table.add_row(figure.key, f"{figure.value:.3f}", bar, mark, figure.meaning)
    Console(width=150).print(table)
