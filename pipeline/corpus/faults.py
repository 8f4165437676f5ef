"""Faults of a corpus, gathered by file and kind: a thousand bad rows are one line. Knows places, not meanings."""

from collections.abc import Sequence

from pipeline.config.errors import Faults

NAMED = 5
"""Rows named per file and kind of fault; the rest are counted."""


class FoundFaults:
    """All faults found so far, in the order of their first finding."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, str], list[str]] = {}

    def whole(self, subject: str, meaning: str) -> None:
        """Note a fault of a whole file, split or setting."""
        self._places.setdefault((subject, meaning), [])

    def row(self, subject: str, number: int, meaning: str, shown: str | None = None) -> None:
        """Note a fault of one row; ``shown`` is what stands there, if that helps to find it."""
        place = str(number) if shown is None else f"{number} ({shown})"
        self._places.setdefault((subject, meaning), []).append(place)

    def about(self, subject: str) -> bool:
        """Whether anything was noted of a file, split or setting."""
        return any(subject == noted for noted, _ in self._places)

    def lines(self) -> list[str]:
        """One line for each file and kind of fault."""
        return [f"{subject}{_rows(places)}: {meaning}" for (subject, meaning), places in self._places.items()]

    def raise_any(self, subject: str) -> None:
        """Raise ``Faults`` with everything found, if anything was."""
        if self._places:
            raise Faults(subject, self.lines())


def _rows(places: Sequence[str]) -> str:
    if not places:
        return ""
    noun = "row" if len(places) == 1 else "rows"
    more = f" and {len(places) - NAMED} more" if len(places) > NAMED else ""
    return f", {noun} {', '.join(places[:NAMED])}{more}"
