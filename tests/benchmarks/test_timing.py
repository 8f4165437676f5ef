import pytest

from benchmarks.timing import Figure, print_table


@pytest.mark.parametrize(
    ("value", "bar", "met"),
    [
        (0.9, ("≥", 0.9), True),
        (0.8999, ("≥", 0.9), True),  # as the number is printed
        (0.8989, ("≥", 0.9), False),
        (1.1, ("≤", 1.1), True),
        (1.101, ("≤", 1.1), False),
        (3.0, None, None),
    ],
)
def test_a_bar_is_met_or_missed_by_the_printed_number(value: float, bar: object, met: bool | None) -> None:
    assert Figure("key", value, "what", bar).met is met  # type: ignore[arg-type]


def test_the_table_says_of_every_figure_whether_its_bar_is_met(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("title", [Figure("fast", 0.95, "x", ("≥", 0.9)), Figure("slow", 0.5, "y", ("≥", 0.9)), Figure("told", 2, "z")])
    lines = capsys.readouterr().out.splitlines()
    fast, slow, told = (next(line for line in lines if name in line) for name in ("fast", "slow", "told"))
    assert "0.950" in fast
    assert "met" in fast
    assert "missed" in slow
    assert "met" not in told
