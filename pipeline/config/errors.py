"""Errors that a user must correct; the commands print them without a traceback."""

import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager


class PipelineError(Exception):
    """Input, settings or stored data that cannot be used; the text names what was expected, what was found and the remedy."""


class PipelineErrors(PipelineError):
    """Every error of one input, such as params.yaml, one line each, found before any work started."""

    def __init__(self, subject: str, errors: Sequence[str]) -> None:
        self.errors = tuple(errors)
        count = "1 error" if len(self.errors) == 1 else f"{len(self.errors)} errors"
        super().__init__("\n  - ".join([f"{subject}: {count}, nothing was written", *self.errors]))


def errors_of(*checks: Callable[[], object]) -> list[str]:
    """The errors that some checks raise, without repeats."""
    found = []
    for check in checks:
        try:
            check()
        except PipelineError as error:
            found.append(str(error))
    return list(dict.fromkeys(found))


@contextmanager
def naming(originals: Mapping[str, str]) -> Iterator[None]:
    """In errors that the block raises, name copies by their originals; ``originals`` maps paths of copies to theirs."""
    try:
        yield
    except PipelineError as error:
        text = str(error)
        for copy, original in originals.items():
            text = text.replace(copy, original)
        error.args = (text,)
        raise


@contextmanager
def failing_as(name: str) -> Iterator[None]:
    """Turn an error of the block into that of the job of this name; the traceback of an unexpected one is printed."""
    try:
        yield
    except Exception as cause:
        if not isinstance(cause, PipelineError):
            print("".join(traceback.format_exception(cause)), file=sys.stderr, flush=True)
        raise PipelineError(f"{name} failed: {last_line(cause)}") from cause


def last_line(error: BaseException) -> str:
    """The last line of an error message, or the name of its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
