"""What a person sees while a stage works: a bar on a terminal, else a plain line now and then. Knows counts and times."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


class Counter:
    """Counts finished pieces of work, for use in a ``with`` block."""

    def __init__(self, name: str, total: int, unit: str) -> None:
        self._name, self._total, self._unit = name, total, unit
        self._done, self._rows = 0, 0
        self._began = self._last = time.monotonic()
        self._bar = _bar() if sys.stdout.isatty() else None

    def __enter__(self) -> "Counter":
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task(self._name, total=self._total)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, rows: int) -> None:
        """One more piece of work of that many rows is finished."""
        self._done += 1
        self._rows += rows
        now = time.monotonic()
        if self._bar:
            self._bar.advance(self._task)
        elif now - self._last >= SECONDS_BETWEEN_LINES or self._done == self._total:
            self._last = now
            print(self._line(now - self._began), flush=True)

    def _line(self, seconds: float) -> str:
        left = seconds / self._done * (self._total - self._done)
        pace = f"{self._rows / max(seconds, 1e-9):,.0f} rows/s"
        ending = f"{left:.0f} s left" if left else f"done in {seconds:.0f} s"
        return f"{self._name}: {self._done}/{self._total} {self._unit}, {pace}, {ending}"


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console())
