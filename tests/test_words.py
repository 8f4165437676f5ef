"""The words that the project has given up stay out of code, settings and documents."""

from benchmarks.size import long_signatures, old_words


def test_no_given_up_word_is_used() -> None:
    found = old_words()
    assert not found, sorted(found)[:20]


def test_few_functions_have_more_than_six_parameters() -> None:
    assert len(long_signatures()) <= 5
