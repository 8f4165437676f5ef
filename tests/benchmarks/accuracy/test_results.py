from pathlib import Path
from typing import Any

import pytest

from benchmarks.accuracy.results import (
    CURVE_COLUMNS,
    Result,
    add_result,
    curves_beside,
    curves_of,
    finished,
    read_results,
)
from pipeline.config.errors import PipelineError


def result(**changed: Any) -> Result:
    """A run as the suite notes it."""
    facts: dict[str, Any] = {
        "task": "trec", "rows": 500, "seed": 1, "student": "half", "arm": "kd", "epochs": 18, "metric": "accuracy",
        "value": 0.87,
        "train_rows": 490, "teacher": "7d7d7d7d7d7d", "teacher_value": 0.93, "dev": 0.88, "agreement": 0.9,
        "test_rows": 2000, "best_epoch": 7.0,
        "steps": 288, "seconds": 60.5, "stage_one_seconds": 0.0, "bytes": 1000, "manifest": "0123456789ab", "code": "c0de",
        "settings": '{"student":{}}',
    }  # fmt: skip
    return Result(**facts | changed)


CURVE = [{"epoch": 1, "step": 16, "loss": 0.5, "dev": 0.7}, {"epoch": 2, "step": 32, "loss": 0.2, "dev": 0.8}]


def test_what_the_epochs_came_to_stands_beside_and_is_found_by_its_run(tmp_path: Path) -> None:
    path = tmp_path / "accuracy.csv"
    add_result(path, result(), CURVE)
    add_result(path, result(settings="{}"), [{"epoch": 1, "step": 16, "loss": 0.5, "dev": 0.1}])
    assert curves_beside(path).read_text().splitlines()[0] == ",".join(CURVE_COLUMNS)
    runs = read_results(path)
    assert curves_of(runs[:1], path)[["at", "dev"]].to_numpy().tolist() == [[1.0, 0.7], [2.0, 0.8]]
    assert curves_of(runs[1:], path)["dev"].tolist() == [0.1]


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "accuracy.csv").write_text("task,score\ntrec,1\n")
    with pytest.raises(PipelineError, match="has other columns than a run: task, score; move it away"):
        finished(tmp_path / "accuracy.csv")
