from pipeline.config.errors import last_line


def test_the_last_line_of_an_error_is_what_it_says_or_its_kind() -> None:
    assert last_line(ValueError("first\n  second  \n\n")) == "second"
    assert last_line(ValueError()) == "ValueError"
