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


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_work_of_a_moment_is_one_line_at_its_end(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Counter("scores", 3, "shards") as counter:
        for _ in range(3):
            clock.now += 2
            counter.advance(1000)
    assert lines(capsys) == ["scores: 3/3 shards, 500 rows/s, done in 6 s"]


def test_long_work_says_now_and_then_how_far_it_is_how_fast_and_how_long_to_go(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Counter("variants", 40, "shards") as counter:
        for _ in range(10):
            clock.now += SECONDS_BETWEEN_LINES / 4
            counter.advance(300)
    assert lines(capsys) == [
        "variants: 4/40 shards, 120 rows/s, 90 s left",
        "variants: 8/40 shards, 120 rows/s, 80 s left",
    ]


def test_a_line_is_out_at_once_when_its_time_has_come(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    counter = Counter("x", 5, "shards")
    clock.now += SECONDS_BETWEEN_LINES - 0.001
    counter.advance(1)
    assert lines(capsys) == []
    clock.now += 0.001
    counter.advance(1)
    assert lines(capsys) == ["x: 2/5 shards, 0 rows/s, 15 s left"]


def test_large_paces_are_readable_and_a_clock_that_stands_divides_nothing_by_zero(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Counter("x", 1, "shards") as counter:
        counter.advance(0)
    with Counter("y", 1, "shards") as counter:
        clock.now += 1
        counter.advance(1_234_567)
    assert lines(capsys) == ["x: 1/1 shards, 0 rows/s, done in 0 s", "y: 1/1 shards, 1,234,567 rows/s, done in 1 s"]


def break_off() -> None:
    with Counter("x", 2, "shards") as counter:
        counter.advance(1)
        raise ZeroDivisionError


def test_an_error_inside_goes_on_and_no_end_is_claimed(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError):
        break_off()
    assert lines(capsys) == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Where a counter shows its bar."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    return Terminal()


def test_a_terminal_shows_a_bar_in_place_of_lines(terminal: Terminal) -> None:
    with contextlib.redirect_stdout(terminal), Counter("scores", 4, "shards") as counter:
        for _ in range(4):
            counter.advance(10)
    shown = terminal.getvalue()
    assert "rows/s" not in shown
    assert "scores" in shown
    assert "4/4" in shown


def test_an_error_gives_the_terminal_back_as_it_was(terminal: Terminal) -> None:
    with contextlib.redirect_stdout(terminal), pytest.raises(ZeroDivisionError):
        break_off()
    shown = terminal.getvalue()
    hidden, given_back = "\x1b[?25l", "\x1b[?25h"
    assert shown.rindex(given_back) > shown.rindex(hidden), "the cursor is visible again"
    assert "1/2" in shown
