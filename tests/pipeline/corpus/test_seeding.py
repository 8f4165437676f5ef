from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.seeding import sample, seed_of

names = st.lists(st.text() | st.integers(), max_size=5)


def kinds(parts: list[str | int]) -> list[tuple[type, str | int]]:
    return [(type(part), part) for part in parts]


@given(names, names)
def test_two_things_share_a_seed_only_if_every_name_and_their_order_agree(one: list[str | int], other: list[str | int]) -> None:
    assert (seed_of(*one) == seed_of(*other)) == (kinds(one) == kinds(other))


def test_a_seed_is_the_same_on_every_machine_in_every_version() -> None:
    assert seed_of("movies", "train00001", 3, 0) == 0x44D6A4412E097D03
    assert seed_of() == 0x27A9E6D0C615D506


def test_neither_joining_names_nor_spelling_a_number_makes_them_equal() -> None:
    alike = [("ab", "c"), ("a", "bc"), ("abc",), ("a", "b", "c"), ("a,b", "c"), (1, 2), (12,), ("1", "2"), (1, "2"), (2, 1)]
    assert len({seed_of(*each) for each in alike}) == len(alike)


def test_seeds_fill_63_bits_evenly_and_fit_where_seeds_are_taken() -> None:
    seeds = np.array([seed_of("task", number) for number in range(4000)], dtype=np.int64)
    assert len(set(seeds.tolist())) == len(seeds)
    assert seeds.min() >= 0
    shares = ((seeds[:, None] >> np.arange(63)) & 1).mean(axis=0)
    assert np.abs(shares - 0.5).max() < 0.045, "each of 63 bits is set in half of the seeds (5.7 standard errors)"


@given(st.integers(0, 2**63 - 1))
def test_any_seed_may_be_a_name_of_the_next(seed: int) -> None:
    np.random.Generator(np.random.Philox(key=seed_of(seed, "order", 0)))


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


def test_another_seed_draws_others() -> None:
    names = [f"row-{number}" for number in range(100)]
    assert sample(names, 10, "words", 3) != sample(names, 10, "words", 4)
