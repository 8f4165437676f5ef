from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.augment.text_edits import OPERATIONS, Operation, TextEdits, TextEditSettings
from pipeline.corpus.encoding import Ids, Types

CLS, SEP, MASK, UNKNOWN = 2, 3, 4, 1
SPECIAL = frozenset({0, CLS, SEP, MASK})
SHARE = st.floats(0.01, 1)

Row = tuple[Ids, Types]
Text = list[int]


def edit(
    operations: Sequence[Operation], row: tuple[Ids, Types | None], seed: int = 0, mask_id: int | None = MASK, **settings: Any
) -> tuple[Ids, Types | None]:
    usual = {"mask": 0.1, "delete": 0.1, "swap": 0.1, "span": 0.3}
    return TextEdits(operations, TextEditSettings.model_validate(usual | settings), SPECIAL, mask_id).row(*row, seed)


def row_of(*texts: Text) -> Row:
    """[CLS] text [SEP] text [SEP], the type of a token the number of its text."""
    ids, types = [CLS], [0]
    for number, text in enumerate(texts):
        ids += [*text, SEP]
        types += [number] * (len(text) + 1)
    return np.array(ids, dtype=np.int32), np.array(types, dtype=np.int8)


def texts_of(ids: Ids) -> list[Text]:
    """The texts between [CLS] and [SEP], which may hold masks."""
    found: list[Text] = [[]]
    for token in ids.tolist()[1:]:
        found.append([]) if token == SEP else found[-1].append(token)
    return found[:-1]


def edited(operations: Sequence[Operation], *texts: Text, seed: int = 0, **settings: Any) -> list[Text]:
    """Texts after the operations; that the frame around them stands is checked on the way."""
    row = row_of(*texts)
    new_ids, new_types = edit(operations, row, seed, **settings)
    assert row[0].tolist() == row_of(*texts)[0].tolist(), "the row given is not changed"
    found = texts_of(new_ids)
    want_ids, want_types = row_of(*found)
    assert new_types is not None
    np.testing.assert_array_equal(new_ids, want_ids)
    np.testing.assert_array_equal(new_types, want_types)
    assert len(found) == len(texts)
    return found


def each(operation: Operation, text: Text, seeds: int = 200, **settings: Any) -> list[Text]:
    """The text after one operation, for many seeds."""
    return [edited([operation], text, seed=seed, **settings)[0] for seed in range(seeds)]


words = st.lists(st.integers(5, 60) | st.just(UNKNOWN), min_size=1, max_size=30)
distinct_words = st.lists(st.integers(5, 90), min_size=1, max_size=30, unique=True)
seeds = st.integers(0, 2**63 - 1)
operation_lists = st.lists(st.sampled_from(OPERATIONS), max_size=6)


@given(operation_lists, words, words, SHARE, seeds)
def test_texts_of_a_pair_keep_their_tokens_apart_and_at_least_one_each(
    operations: list[Operation], first: Text, second: Text, share: float, seed: int
) -> None:
    apart = [token + 100 for token in second]
    shares = dict.fromkeys(("mask", "delete", "swap", "span"), share)
    left, right = edited(operations, first, apart, seed=seed, **shares)
    assert [left, right] == edited(operations, first, apart, seed=seed, **shares)
    assert 1 <= len(left) <= len(first)
    assert 1 <= len(right) <= len(apart)
    assert not Counter(token for token in left if token != MASK) - Counter(first)
    assert not Counter(token for token in right if token != MASK) - Counter(apart)


@given(distinct_words, SHARE, seeds)
def test_mask_replaces_its_share_of_tokens_and_moves_none(text: Text, share: float, seed: int) -> None:
    (masked,) = edited(["mask"], text, seed=seed, mask=share)
    assert all(new in (old, MASK) for new, old in zip(masked, text, strict=True))
    assert masked.count(MASK) == max(1, round(share * len(text)))


@given(distinct_words, SHARE, seeds)
def test_delete_leaves_out_its_share_of_tokens_and_keeps_the_order(text: Text, share: float, seed: int) -> None:
    (left,) = edited(["delete"], text, seed=seed, delete=share)
    assert left == [token for token in text if token in left]
    assert len(text) - len(left) == min(len(text) - 1, max(1, round(share * len(text))))


@given(distinct_words, SHARE, seeds)
def test_swapped_tokens_trade_places_two_and_two(text: Text, share: float, seed: int) -> None:
    (swapped,) = edited(["swap"], text, seed=seed, swap=share)
    moved = {old: new for old, new in zip(text, swapped, strict=True) if old != new}
    assert all(moved[moved[token]] == token for token in moved)
    assert len(moved) == (0 if len(text) == 1 else max(2, round(share * len(text)) // 2 * 2))


@given(words, SHARE, seeds)
def test_span_changes_the_order_within_one_span_of_its_share(text: Text, share: float, seed: int) -> None:
    (disordered,) = edited(["span"], text, seed=seed, span=share)
    changed = [place for place, (old, new) in enumerate(zip(text, disordered, strict=True)) if old != new]
    assert Counter(disordered) == Counter(text)
    assert bool(changed) == (len(set(text)) > 1)
    assert not changed or changed[-1] - changed[0] < max(2, round(share * len(text)))


def test_every_span_of_the_length_is_drawn_and_can_be_disordered_in_every_way() -> None:
    found = {tuple(text) for text in each("span", [10, 11, 12, 13], span=0.75)}
    first = {(11, 10, 12, 13), (10, 12, 11, 13), (12, 11, 10, 13), (11, 12, 10, 13), (12, 10, 11, 13)}
    last = {(10, 12, 11, 13), (10, 11, 13, 12), (10, 13, 12, 11), (10, 12, 13, 11), (10, 13, 11, 12)}
    assert found == first | last


def test_a_text_of_one_token_is_masked_and_else_left_as_it_is_and_a_mask_does_not_cut_a_text_in_two() -> None:
    assert len(edited(["mask", "delete"], list(range(10, 20)), mask=0.5, delete=1.0)[0]) == 1
    assert edited(["mask"], [10]) == [[MASK]]
    for operation in ("delete", "swap", "span"):
        assert edited([operation], [10]) == [[10]]


def test_a_special_token_that_stood_in_the_text_is_not_touched() -> None:
    ids = np.array([CLS, 10, 11, MASK, 12, 13, SEP], dtype=np.int32)
    for seed in range(50):
        new, _ = edit(["swap", "span"], (ids, None), seed, swap=1.0, span=1.0)
        assert new[[0, 3, 6]].tolist() == [CLS, MASK, SEP]
        assert set(new[1:3].tolist()) == {10, 11}
