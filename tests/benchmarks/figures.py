"""What the tests of the trials share: the sizes of students, the rows, and figures by key."""

from collections.abc import Sequence
from typing import Any

from benchmarks.timing import Figure

SIZES: dict[str, dict[str, Any]] = {
    "half": {"layers": 2},
    "narrow": {"layers": 2, "hidden": 16, "heads": 2, "intermediate": 32},
    "tiny": {"layers": 1, "hidden": 8, "heads": 1, "intermediate": 16},
}
ROWS = 44


def by_key(figures: Sequence[Figure]) -> dict[str, float]:
    return {figure.key: figure.value for figure in figures}
