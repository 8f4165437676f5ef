import os
import subprocess
import sys
from typing import Any

import pytest

from pipeline.config.runtime import RuntimeSettings
from tests.world import RUNTIME


@pytest.mark.parametrize(
    "fault",
    [
        {"workers": -1}, {"max_bytes": 0}, {"trainers": 0}, {"report_to": "dvclive"}, {"store": "s3://bucket/store"},
    ],
)  # fmt: skip
def test_runtime_settings_out_of_range_are_refused(fault: dict[str, Any]) -> None:
    assert RuntimeSettings.model_validate(RUNTIME)
    with pytest.raises(ValueError, match=next(iter(fault))):
        RuntimeSettings.model_validate(RUNTIME | fault)


def test_cores_are_those_that_the_process_may_use() -> None:
    """On a batch system's node they are fewer than there are."""
    one = min(os.sched_getaffinity(0))
    said = f"import os; os.sched_setaffinity(0, {{{one}}}); from pipeline.config.runtime import cores; print(cores())"
    found = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "1"
