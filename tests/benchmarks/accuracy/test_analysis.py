import numpy as np
import pandas as pd
import pytest
import scipy.stats

from benchmarks.accuracy.analysis import by_task, compared, current


def runs(values: dict[tuple[str, str], list[float]]) -> pd.DataFrame:
    """A row a task, arm and seed, from 1."""
    rows = [
        {
            "task": task, "rows": 500, "seed": seed, "student": "half", "epochs": 18, "arm": arm, "value": value,
            "teacher_value": 0.9, "agreement": 1 - value / 2, "settings": "{}",
            "steps": 100 if arm == "kd" else 200, "seconds": 10.0 if arm == "kd" else 30.0,
        }
        for (task, arm), found in values.items()
        for seed, value in enumerate(found, 1)
    ]  # fmt: skip
    return pd.DataFrame(rows)


PLAIN = [0.80, 0.82, 0.81, 0.83]
BETTER = [0.81, 0.84, 0.80, 0.85]


def test_pairs_are_of_the_same_task_and_seed() -> None:
    shuffled = runs({("a", "kd"): PLAIN, ("a", "own"): BETTER}).sample(frac=1, random_state=1)
    found = compared(shuffled, "own", "kd")
    assert found.differences.sort_values("seed")["points"].tolist() == pytest.approx([1.0, 2.0, -1.0, 2.0])
    assert found.differences.sort_values("seed")["agreement"].tolist() == pytest.approx([-0.5, -1.0, 0.5, -1.0])
    assert found.differences["steps"].tolist() == [2.0] * 4
    assert found.differences["seconds"].tolist() == [3.0] * 4
    assert found.p_value() == pytest.approx(scipy.stats.wilcoxon([1.0, 2.0, -1.0, 2.0]).pvalue)


def test_a_run_without_its_pair_counts_nowhere() -> None:
    found = compared(runs({("a", "kd"): PLAIN, ("a", "own"): BETTER[:2], ("b", "own"): BETTER}), "own", "kd")
    assert found.pairs == 2
    assert found.interval() is None
    assert found.p_value() is None


def test_every_task_weighs_the_same_in_the_gain() -> None:
    found = compared(
        runs({("a", "kd"): [0.5] * 3, ("a", "own"): [0.51, 0.51, 0.9], ("b", "kd"): [0.5], ("b", "own"): [0.53]}), "own", "kd"
    )
    assert found.median == pytest.approx((1.0 + 3.0) / 2)


def test_the_interval_agrees_with_that_of_scipy_on_one_task() -> None:
    found = compared(runs({("a", "kd"): PLAIN, ("a", "own"): BETTER}), "own", "kd")
    wanted = scipy.stats.bootstrap((found.points,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    assert found.interval() == pytest.approx((wanted.low, wanted.high), abs=0.1)


def test_equal_arms_have_no_p_value() -> None:
    found = compared(runs({("a", "kd"): PLAIN, ("a", "own"): PLAIN}), "own", "kd")
    assert found.p_value() is None
    assert found.interval() == (0.0, 0.0)


def test_runs_of_an_arm_that_has_changed_are_left_out() -> None:
    table = runs({("a", "kd"): [0.8, 0.9]})
    kept = current(table, {("a", 500, 1, "half", "kd", 18, "{}"), ("a", 500, 2, "half", "kd", 18, '{"other":1}')})
    assert kept["seed"].tolist() == [1]


def test_a_task_shows_medians_in_points_beside_its_teacher() -> None:
    table = by_task(runs({("a", "kd"): [0.8, 0.9, 0.81], ("a", "own"): [0.85]}), ["own", "kd", "absent"])
    assert table.columns.tolist() == ["teacher", "own", "kd"]
    assert table.loc["a"].tolist() == pytest.approx([90.0, 85.0, 81.0])
