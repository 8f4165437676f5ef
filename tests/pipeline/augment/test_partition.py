from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.augment.partition import Partition, cut

IDS = [f"example {number}" for number in range(2000)]
ROWS = 40


def runs_of(ids: list[str], rows: int) -> list[list[str]]:
    return [[ids[position] for position in run] for run in cut(ids, rows)]


def recomputed(before: list[str], after: list[str], rows: int = ROWS) -> list[list[str]]:
    """The runs of the changed corpus that the unchanged one did not have."""
    known = {tuple(run) for run in runs_of(before, rows)}
    return [run for run in runs_of(after, rows) if tuple(run) not in known]


@given(st.lists(st.text(max_size=5), max_size=300), st.integers(1, 60))
@settings(deadline=None)
def test_every_row_lies_in_one_run_in_order_and_runs_are_about_as_long_as_asked(ids: list[str], rows: int) -> None:
    runs = list(cut(ids, rows))
    assert [position for run in runs for position in run] == list(range(len(ids)))
    assert all(rows / 2 <= len(run) <= 2 * rows for run in runs[:-1])
    assert all(0 < len(run) <= 2 * rows for run in runs)


def test_runs_are_as_long_as_asked_on_average() -> None:
    assert 0.75 * ROWS < len(IDS) / len(runs_of(IDS, ROWS)) < 1.25 * ROWS


def test_equal_corpora_are_cut_alike() -> None:
    assert runs_of(IDS, ROWS) == runs_of(list(IDS), ROWS)


@given(st.integers(1, 1999))
@settings(deadline=None, max_examples=30)
def test_appended_rows_change_no_run_but_the_last(known: int) -> None:
    before, after = runs_of(IDS[:known], ROWS), runs_of(IDS, ROWS)
    assert after[: len(before) - 1] == before[:-1]


@given(st.integers(0, 1999), st.sampled_from(["removed", "inserted", "replaced"]))
@settings(deadline=None, max_examples=60)
def test_a_change_in_the_middle_changes_runs_nearby_only(position: int, change: str) -> None:
    new = {"removed": [], "inserted": ["new", IDS[position]], "replaced": ["new"]}[change]
    changed = recomputed(IDS, [*IDS[:position], *new, *IDS[position + 1 :]])
    assert len(changed) <= 8
    assert len([run for run in changed if not {"new", *IDS[max(0, position - 1) : position + 2]} & set(run)]) <= 7


def test_a_change_costs_two_runs_of_fifty_on_average() -> None:
    removed = [len(recomputed(IDS, [*IDS[:position], *IDS[position + 1 :]])) for position in range(0, 2000, 20)]
    inserted = [len(recomputed(IDS, [*IDS[:position], "new", *IDS[position:]])) for position in range(0, 2000, 20)]
    assert sum(removed) / len(removed) < 2
    assert sum(inserted) / len(inserted) < 2


USUAL: dict[str, Any] = {
    "split": "train",
    "number": 0,
    "example_ids": ["a", "b"],
    "first": ["one", "two"],
    "second": ["three", "four"],
    "labels": [0, None],
}


@pytest.mark.parametrize(
    "changed",
    [
        {"example_ids": ["a", "c"]},
        {"first": ["one", "Two"]},
        {"first": ["two", "one"]},
        {"second": ["three", "five"]},
        {"second": None},
        {"labels": [1, None]},
        {"labels": [0, 0]},
        {"first": ["three", "four"], "second": ["one", "two"]},
    ],
)
def test_whatever_is_given_of_an_example_is_in_the_name_of_its_partition(changed: dict[str, Any]) -> None:
    assert Partition(**(USUAL | changed)).examples_hash() != Partition(**USUAL).examples_hash()


def test_neither_place_nor_split_is_in_the_name_of_the_examples() -> None:
    moved = Partition(**(USUAL | {"number": 7, "split": "dev"}))
    assert moved.examples_hash() == Partition(**USUAL).examples_hash()
