from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.augment import partition
from pipeline.augment.partition import Partition, cut, places

IDS = [f"example {number}" for number in range(2000)]
ROWS = 40


def runs_of(ids: list[str], rows: int) -> list[list[str]]:
    return [[ids[position] for position in run] for run in cut(ids, rows)]


def recomputed(before: list[str], after: list[str], rows: int = ROWS) -> list[list[str]]:
    """The runs of the changed corpus that the unchanged one did not have."""
    known = {tuple(run) for run in runs_of(before, rows)}
    return [run for run in runs_of(after, rows) if tuple(run) not in known]


@given(st.lists(st.integers(0, 999).map(str), max_size=200), st.integers(1, 30))
@settings(max_examples=50)
def test_every_row_lies_in_one_run_in_order_and_runs_are_about_as_long_as_asked(ids: list[str], rows: int) -> None:
    runs = list(cut(ids, rows))
    assert [position for run in runs for position in run] == list(range(len(ids)))
    assert all(rows / 2 <= len(run) <= 2 * rows for run in runs[:-1])
    assert all(0 < len(run) <= 2 * rows for run in runs)


@given(st.integers(1, 1999))
@settings(max_examples=30)
def test_appended_rows_change_no_run_but_the_last(known: int) -> None:
    before, after = runs_of(IDS[:known], ROWS), runs_of(IDS, ROWS)
    assert after[: len(before) - 1] == before[:-1]


@given(st.integers(0, 1999), st.sampled_from(["removed", "inserted", "replaced"]))
@settings(max_examples=25)
def test_a_change_in_the_middle_changes_runs_nearby_only(position: int, change: str) -> None:
    new = {"removed": [], "inserted": ["new", IDS[position]], "replaced": ["new"]}[change]
    assert len(recomputed(IDS, [*IDS[:position], *new, *IDS[position + 1 :]])) <= 8


def test_a_change_costs_two_runs_of_fifty_on_average() -> None:
    assert 0.75 * ROWS < len(IDS) / len(runs_of(IDS, ROWS)) < 1.25 * ROWS
    removed = [len(recomputed(IDS, [*IDS[:position], *IDS[position + 1 :]])) for position in range(0, 2000, 80)]
    inserted = [len(recomputed(IDS, [*IDS[:position], "new", *IDS[position:]])) for position in range(0, 2000, 80)]
    assert sum(removed) / len(removed) < 2
    assert sum(inserted) / len(inserted) < 2


USUAL: dict[str, Any] = {"example_ids": ["a", "b"], "first": ["one", "two"], "second": ["three", "four"], "labels": [0, None]}


CHANGES: list[dict[str, Any]] = [
    {"example_ids": ["a", "c"]}, {"first": ["two", "one"]}, {"second": ["three", "five"]}, {"second": None}, {"labels": [0, 0]},
    {"first": ["three", "four"], "second": ["one", "two"]},
]  # fmt: skip


@pytest.mark.parametrize("changed", CHANGES)
def test_whatever_is_given_of_an_example_is_in_the_name_of_its_partition(changed: dict[str, Any]) -> None:
    assert Partition(**(USUAL | changed)).examples_hash() != Partition(**USUAL).examples_hash()


def corpus_of(count: int, pair: bool = False) -> Partition:
    """Different rows, some without a label."""
    first = [f"text {number}" for number in range(count)]
    labels: list[float | int | None] = [None if number % 7 == 3 else number % 2 for number in range(count)]
    return Partition(IDS[:count], first, [f"second {number}" for number in range(count)] if pair else None, labels)


def rows_from(whole: Partition, start: int, stop: int) -> Partition:
    second = None if whole.second is None else whole.second[start:stop]
    return Partition(whole.example_ids[start:stop], whole.first[start:stop], second, whole.labels[start:stop])


def save(folder: Path, whole: Partition, group_rows: int) -> Path:
    """A table as `prepare` writes it, in row groups of this size."""
    columns = {"id": pa.array(whole.example_ids, pa.string()), "text_a": pa.array(whole.first, pa.string())}
    columns |= {} if whole.second is None else {"text_b": pa.array(whole.second, pa.string())}
    columns["label"] = pa.array(whole.labels, pa.int32())
    pq.write_table(pa.table(columns), folder / "train.parquet", row_group_size=group_rows)
    return folder


@given(
    count=st.integers(0, 150), rows=st.integers(1, 40), read=st.integers(1, 60), group=st.integers(1, 60), pair=st.booleans()
)
@settings(max_examples=25)
def test_places_are_the_cuts_of_the_whole_list_however_the_table_is_written_and_read(
    tmp_path_factory: pytest.TempPathFactory, count: int, rows: int, read: int, group: int, pair: bool
) -> None:
    whole = corpus_of(count, pair)
    folder = save(tmp_path_factory.mktemp("corpus"), whole, group)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partition, "ROWS_A_READ", read)
        found = list(places(folder, "train", rows))
    assert [(place.start, place.stop) for place in found] == [(run.start, run.stop) for run in cut(whole.example_ids, rows)]
    assert [place.number for place in found] == list(range(len(found)))
    for place in found:
        expected = rows_from(whole, place.start, place.stop)
        assert place.read() == expected
        assert place.examples_hash == expected.examples_hash()


def test_a_place_reads_only_the_row_groups_that_hold_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    read_row_groups = pq.ParquetFile.read_row_groups

    def counted(file: pq.ParquetFile, groups: list[int], **options: Any) -> pa.Table:
        seen.append(groups)
        return read_row_groups(file, groups, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", counted)
    found = list(places(save(tmp_path, corpus_of(300), 16), "train", 20))
    for place in found:
        place.read()
    assert seen == [list(range(place.start // 16, (place.stop - 1) // 16 + 1)) for place in found]
    assert max(map(len, seen)) <= 4, "a table of 19 groups is never read as a whole"
