import contextlib
import io
import time

import pytest

from pipeline.augment.progress import SECONDS_BETWEEN_LINES, Counter


class Clock:
    """A clock that is turned by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


@pytest.mark.parametrize(
    ("shards", "seconds", "rows", "wanted"),
    [
        (3, 2, 1000, "x: 3/3 shards, 500 rows/s, done in 6 s"),
        (1, 0, 0, "x: 1/1 shards, 0 rows/s, done in 0 s"),
        (1, 1, 1_234_567, "x: 1/1 shards, 1,234,567 rows/s, done in 1 s"),
    ],
)
def test_short_work_is_one_line_at_its_end(
    clock: Clock, capsys: pytest.CaptureFixture[str], shards: int, seconds: int, rows: int, wanted: str
) -> None:
    with Counter("x", shards, "shards") as counter:
        for _ in range(shards):
            clock.now += seconds
            counter.advance(rows)
    assert capsys.readouterr().out.splitlines() == [wanted]


def test_long_work_says_now_and_then_how_far_and_how_fast_it_is(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    counter = Counter("x", 40, "shards")
    for _ in range(10):
        clock.now += SECONDS_BETWEEN_LINES / 4
        counter.advance(300)
    assert capsys.readouterr().out.splitlines() == [
        "x: 4/40 shards, 120 rows/s, 90 s left",
        "x: 8/40 shards, 120 rows/s, 80 s left",
    ]


def break_off() -> None:
    with Counter("x", 2, "shards") as counter:
        counter.advance(1)
        raise ZeroDivisionError


def test_an_error_inside_passes_through_and_no_end_is_claimed(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError):
        break_off()
    assert capsys.readouterr().out == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar_and_is_given_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with contextlib.redirect_stdout(Terminal()) as terminal, pytest.raises(ZeroDivisionError):
        break_off()
    shown = terminal.getvalue()
    hidden, given_back = "\x1b[?25l", "\x1b[?25h"
    assert shown.rindex(given_back) > shown.rindex(hidden), "the cursor is visible again"
    assert "1/2" in shown
    assert "rows/s" not in shown
