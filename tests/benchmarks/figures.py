"""What the tests of the trials share: the sizes of students, the rows, and figures by key."""

from collections.abc import Sequence
from typing import Any

from benchmarks.timing import Figure

SIZES: dict[str, dict[str, Any]] = {
    "half": {"num_hidden_layers": 2},
    "narrow": {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32},
    "tiny": {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 16},
}
ROWS = 44


def by_key(figures: Sequence[Figure]) -> dict[str, float]:
    return {figure.key: figure.value for figure in figures}
