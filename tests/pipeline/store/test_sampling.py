from random import Random

from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.seeding import sample


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
