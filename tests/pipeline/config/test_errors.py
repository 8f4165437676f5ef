import pytest

from pipeline.config.errors import PipelineError, failing_as, last_line


def test_the_last_line_of_an_error_is_what_it_says_or_its_kind() -> None:
    assert last_line(ValueError("first\n  second  \n\n")) == "second"
    assert last_line(ValueError()) == "ValueError"


def test_an_error_gets_the_name_of_its_job_and_only_an_unexpected_one_shows_its_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for error, shown in ((PipelineError("too few rows"), ""), (OverflowError("too few rows"), "OverflowError: too few rows")):
        with pytest.raises(PipelineError, match=r"^job 7 failed: too few rows$"), failing_as("job 7"):
            raise error
        said = capsys.readouterr().err
        assert shown in said
        assert bool(said) == bool(shown)
