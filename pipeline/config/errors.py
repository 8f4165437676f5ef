"""What a person must mend, as one sentence or one list; the commands print it without a traceback."""

from collections.abc import Callable, Sequence


class PipelineError(Exception):
    """Input, settings or stored data that cannot be used; the text says what was wanted, what came and the way out."""


class PipelineErrors(PipelineError):
    """Every error of one input, found before any work started.

    Args:
        subject: what was checked, e.g. ``"params.yaml"``.
        errors: one line each, in the order a person would mend them.
    """

    def __init__(self, subject: str, errors: Sequence[str]) -> None:
        self.errors = tuple(errors)
        count = "1 error" if len(self.errors) == 1 else f"{len(self.errors)} errors"
        super().__init__("\n  - ".join([f"{subject}: {count}, nothing was written", *self.errors]))


def errors_of(*checks: Callable[[], object]) -> list[str]:
    """What each of some checks rejects, each sentence once."""
    found = []
    for check in checks:
        try:
            check()
        except PipelineError as error:
            found.append(str(error))
    return list(dict.fromkeys(found))


def last_line(error: BaseException) -> str:
    """The last line that an error says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
