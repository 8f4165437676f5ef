import pytest

from pipeline.config.errors import Faults
from pipeline.corpus.faults import FoundFaults


def test_rows_with_the_same_fault_are_one_line_that_names_five_and_counts_the_rest() -> None:
    found = FoundFaults()
    for number in range(2, 9):
        found.row("x.csv", number, "the text is missing")
    assert found.lines() == ["x.csv, rows 2, 3, 4, 5, 6 and 2 more: the text is missing"]


def test_five_rows_are_all_named_and_a_single_one_is_a_row() -> None:
    found = FoundFaults()
    for number in range(5):
        found.row("x.csv", number, "bad")
    found.row("y.csv", 7, "bad", "'posit'")
    assert found.lines() == ["x.csv, rows 0, 1, 2, 3, 4: bad", "y.csv, row 7 ('posit'): bad"]


def test_everything_found_is_raised_at_once_in_the_order_found() -> None:
    found = FoundFaults()
    found.whole("x.csv", "no such file")
    found.row("y.csv", 3, "bad")
    with pytest.raises(Faults) as caught:
        found.raise_any("task movies")
    assert str(caught.value) == ("task movies: 2 faults, nothing was written\n  - x.csv: no such file\n  - y.csv, row 3: bad")


def test_nothing_found_raises_nothing() -> None:
    FoundFaults().raise_any("task movies")
