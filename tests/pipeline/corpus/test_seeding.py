from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus import seeding
from pipeline.corpus.seeding import sample, seed_of, seeds_of

names = st.lists(st.text() | st.integers(), max_size=5)


@given(names, names)
def test_two_things_share_a_seed_only_if_every_name_and_their_order_agree(one: list[str | int], other: list[str | int]) -> None:
    assert (seed_of(*one) == seed_of(*other)) == ([(type(p), p) for p in one] == [(type(p), p) for p in other])


def test_a_seed_is_the_same_on_every_machine_in_every_version() -> None:
    assert seed_of("movies", "train00001", 3, 0) == 0x44D6A4412E097D03
    assert seed_of() == 0x27A9E6D0C615D506


def test_seeds_fill_63_bits_evenly_and_fit_where_seeds_are_taken() -> None:
    seeds = np.array([seed_of("task", number) for number in range(4000)], dtype=np.int64)
    assert len(set(seeds.tolist())) == len(seeds)
    assert seeds.min() >= 0
    shares = ((seeds[:, None] >> np.arange(63)) & 1).mean(axis=0)
    assert np.abs(shares - 0.5).max() < 0.045, "each of 63 bits is set in half of the seeds (5.7 standard errors)"


@given(st.lists(st.text()), names)
def test_seeds_of_many_names_are_those_of_each(many: list[str], first: list[str | int]) -> None:
    assert seeds_of(many, *first).tolist() == [seed_of(*first, name) for name in many]


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_a_sample_has_the_smallest_seeds_and_of_equal_names_the_first(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeding, "NAMES_AT_ONCE", at_once)
    many = [f"name {number % 40}" for number in range(100)]
    ordered = sorted(range(100), key=lambda position: (seed_of("words", 3, many[position]), position))
    assert sample(iter(many), 25, "words", 3) == sorted(ordered[:25])


@given(st.lists(st.text(max_size=4), unique=True, max_size=30), st.integers(0, 30), st.randoms())
def test_whether_a_name_is_drawn_is_its_own_affair(names: list[str], size: int, random: Random) -> None:
    drawn = sample(names, size, "words", 3)
    assert drawn == sorted(set(drawn))
    assert len(drawn) == min(size, len(names))
    chosen = {names[position] for position in drawn}
    shuffled = random.sample(names, len(names))
    assert {shuffled[position] for position in sample(shuffled, size, "words", 3)} == chosen, "in whatever order"
    fewer = [name for name in names if name in chosen or random.random() < 0.5]
    assert {fewer[position] for position in sample(fewer, size, "words", 3)} == chosen, "whatever else there is"
