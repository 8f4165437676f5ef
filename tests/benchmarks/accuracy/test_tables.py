import pandas as pd
import pytest

from benchmarks.accuracy.analysis import by_task, compared
from benchmarks.accuracy.tables import arms, headline


@pytest.fixture
def runs() -> pd.DataFrame:
    """Two tasks, three seeds."""
    values = {
        ("a", "kd"): [0.80, 0.82, 0.81],
        ("a", "own"): [0.81, 0.85, 0.84],
        ("b", "kd"): [0.5] * 3,
        ("b", "own"): [0.52] * 3,
    }
    rows = [
        {"task": task, "rows": 500, "seed": seed, "student": "half", "epochs": 18, "arm": arm, "value": value, "settings": "{}",
         "teacher": "t", "stage_one_seconds": 0.0 if arm == "kd" else 5.0,
         "teacher_value": 0.9, "agreement": value, "steps": 100, "seconds": 10.0 if arm == "kd" else 25.0}
        for (task, arm), found in values.items()
        for seed, value in enumerate(found, 1)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_the_headline_has_a_line_a_task_and_their_mean(runs: pd.DataFrame) -> None:
    gains = [compared(runs, "own", "kd")]
    assert headline(by_task(runs, ["kd", "own"]), gains, "own").splitlines() == [
        "| task | teacher | kd | own | own − kd | own, of the teacher's |",
        "|---|---|---|---|---|---|",
        "| a | 90.0 | 81.0 | 84.0 | +3.0 | 93.3% |",
        "| b | 90.0 | 50.0 | 52.0 | +2.0 | 57.8% |",
        "| **mean** | 90.0 | 65.5 | 68.0 | +2.5 | 75.6% |",
    ]


def test_without_the_best_arm_its_columns_are_missing(runs: pd.DataFrame) -> None:
    plain = runs[runs["arm"] == "kd"]
    assert headline(by_task(plain, ["kd"]), [], "own").splitlines()[0] == "| task | teacher | kd |"


def test_an_arm_stands_beside_its_control_with_interval_test_and_cost(runs: pd.DataFrame) -> None:
    last = arms([compared(runs, "own", "kd")], {"own": "its own gradient"}).splitlines()[-1]
    cells = [cell.strip() for cell in last.strip("|").split("|")]
    assert cells[:5] == ["`own`", "its own gradient", "`kd`", "2: 6", "+2.5"]
    mean, low, high = map(float, cells[5].replace("(", "").replace(")", "").replace("…", "").split())
    assert mean == pytest.approx(13 / 6, abs=0.06)
    assert 1.0 <= low < mean < high <= 3.0
    assert cells[6:] == ["0.03", "+2.5", "2.5×", "3.0×"]


def test_of_one_pair_neither_interval_nor_test_is_told(runs: pd.DataFrame) -> None:
    one = runs[(runs["task"] == "a") & (runs["seed"] == 1)]
    assert "| `own` | what | `kd` | 1: 1 | +1.0 | +1.0 | – | +1.0 | 2.5× | 3.0× |" in arms(
        [compared(one, "own", "kd")], {"own": "what"}
    )
