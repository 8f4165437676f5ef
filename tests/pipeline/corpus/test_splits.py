import hashlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.rows import Parts, Row
from pipeline.corpus.splits import capped, carve, with_ids, without_repeated
from pipeline.corpus.tables import ErrorList
from pipeline.corpus.task import Split

SHARES: dict[Split, float] = {"dev": 0.2, "test": 0.3}
texts = st.lists(st.text(st.characters(codec="utf-8"), max_size=4), max_size=40)


def rows(*texts: str, label: str | None = "a", table: str = "x.csv") -> list[Row]:
    return [Row((text,), label, table, number) for number, text in enumerate(texts, start=2)]


def many(count: int) -> list[Row]:
    return rows(*(f"text {number}" for number in range(count)))


@given(texts, texts)
def test_adding_rows_never_moves_a_row_to_another_split(few: list[str], more: list[str]) -> None:
    before, after = carve(rows(*few), SHARES), carve(rows(*few, *more), SHARES)
    for split, kept in before.items():
        assert after[split][: len(kept)] == kept


@given(texts)
def test_equal_texts_never_straddle_splits_and_no_row_is_lost(found: list[str]) -> None:
    doubled = rows(*found, *(f" {text}\n" for text in found))
    parts = carve(doubled, SHARES)
    assert sorted(row.number for part in parts.values() for row in part) == [row.number for row in doubled]
    homes = Counter(key for part in parts.values() for key in {row.key for row in part})
    assert max(homes.values(), default=1) == 1


def test_shares_are_met_and_another_dev_share_moves_no_test_row() -> None:
    parts = carve(many(10_000), SHARES)
    assert [len(parts[split]) for split in ("train", "dev", "test")] == pytest.approx([5000, 2000, 3000], rel=0.05)
    assert carve(many(10_000), {"dev": 0.4, "test": 0.3})["test"] == parts["test"]


@given(texts, texts)
def test_texts_without_a_label_are_train_rows_and_one_that_has_it_elsewhere_goes_where_that_is(
    found: list[str], bare: list[str]
) -> None:
    labelled = carve(rows(*found), SHARES)
    homes = {row.key: split for split, part in labelled.items() for row in part}
    parts = carve([*rows(*found), *rows(*bare, label=None)], SHARES)
    for split, part in parts.items():
        assert [row for row in part if row.label is not None] == labelled[split]
        assert all(homes.get(row.key, "train") == split for row in part)
    assert sum(map(len, parts.values())) == len(found) + len(bare)


def test_a_text_stays_only_in_its_latest_split_and_repeats_within_a_split_stay() -> None:
    errors = ErrorList()
    parts: Parts = {
        "train": rows("a", "a", "b", "c", "d", table="t.csv"),
        "dev": rows("b", "d", table="d.csv"),
        "test": rows("c", " d ", "d", table="e.csv"),
    }
    assert {split: [row.texts[0] for row in part] for split, part in without_repeated(parts, errors).items()} == {
        "train": ["a", "a"],
        "dev": ["b"],
        "test": ["c", " d ", "d"],
    }
    dev, train, other = errors.lines()
    assert dev.startswith("d.csv, row 3 (e.csv, row 3): this dev text also occurs in the test split")
    assert train.startswith("t.csv, rows 4 (d.csv, row 2), 6 (d.csv, row 3): this train text also occurs in the dev split")
    assert other.startswith("t.csv, row 5 (e.csv, row 2): this train text also occurs in the test split")


def test_ids_come_from_the_texts_and_repeats_are_numbered_in_corpus_order() -> None:
    digits = hashlib.sha256(b"one\x1ftwo").hexdigest()[:16]
    pair, other = Row(("one", "two"), None, "x", 1), Row(("two", "one"), None, "x", 2)
    names = list(with_ids([pair, other, pair, pair]))
    assert [names[0], names[2], names[3]] == [digits, f"{digits}.2", f"{digits}.3"]
    assert len(names[1]) == 16


@given(texts, st.integers(1, 20), st.integers(0, 20))
def test_a_higher_cap_only_adds_examples_and_keeps_ids_and_order(found: list[str], most: int, more: int) -> None:
    everything = with_ids(rows(*found))
    few, many = capped(everything, most), capped(everything, most + more)
    assert len(few) == min(most, len(everything))
    assert few.items() <= many.items()
    assert list(few) == [name for name in everything if name in few]


def test_a_cap_keeps_labels_before_texts_without_one() -> None:
    """Else a large pool of them would leave a teacher little to be fine-tuned on."""
    pool = with_ids(rows(*(f"pool {number}" for number in range(90)), label=None) + many(10))
    assert [row.label for row in capped(pool, 10).values()] == ["a"] * 10
    assert sum(row.label is None for row in capped(pool, 30).values()) == 20


def test_two_unicode_forms_of_a_text_are_one_text() -> None:
    composed, decomposed = rows("caf\u00e9", "cafe\u0301")
    assert [len(part) for part in carve([composed, decomposed], {"dev": 0.5}).values()] in ([2, 0], [0, 2])
    parts: Parts = {"train": [composed], "dev": [decomposed], "test": []}
    errors = ErrorList()
    assert {split: len(part) for split, part in without_repeated(parts, errors).items()} == {"train": 0, "dev": 1, "test": 0}
    assert len(errors.lines()) == 1
