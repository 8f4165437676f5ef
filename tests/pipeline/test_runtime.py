from typing import Any

import pytest

from pipeline.runtime import RuntimeSettings
from tests.world import RUNTIME


@pytest.mark.parametrize(
    "fault",
    [
        {"workers": -1}, {"max_bytes": 0}, {"store": None}, {"ray_address": 1}, {"trainers": 0}, {"readers": -1},
        {"checkpoint_steps": -1}, {"log_to": "dvclive"},
    ],
)  # fmt: skip
def test_runtime_settings_out_of_range_are_refused(fault: dict[str, Any]) -> None:
    assert RuntimeSettings.model_validate(RUNTIME)
    with pytest.raises(ValueError, match=next(iter(fault))):
        RuntimeSettings.model_validate(RUNTIME | fault)
