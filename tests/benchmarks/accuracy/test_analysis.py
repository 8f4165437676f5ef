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
            "teacher_value": 0.9, "agreement": 1 - value / 2, "teacher": "t", "settings": "{}", "manifest": arm,
            "stage_one_seconds": 0.0 if arm == "kd" else 10.0, "seconds": 10.0 if arm == "kd" else 30.0,
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
    assert found.differences["seconds"].tolist() == [3.0] * 4
    assert found.differences["with_stage_one"].tolist() == [4.0] * 4
    assert found.mean == pytest.approx(1.0)


def test_a_run_without_its_pair_from_the_same_teacher_counts_nowhere() -> None:
    table = runs({("a", "kd"): PLAIN, ("a", "own"): BETTER[:3], ("b", "own"): BETTER})
    table.loc[(table["arm"] == "own") & (table["seed"] == 3), "teacher"] = "another"
    found = compared(table, "own", "kd")
    assert found.pairs == 2
    assert found.interval() is None
    assert found.p_value() is None


def test_every_task_weighs_the_same_in_the_median() -> None:
    found = compared(
        runs({("a", "kd"): [0.5] * 3, ("a", "own"): [0.51, 0.51, 0.9], ("b", "kd"): [0.5], ("b", "own"): [0.53]}), "own", "kd"
    )
    assert found.median_of("points") == pytest.approx((1.0 + 3.0) / 2)


def test_of_one_task_the_interval_is_that_of_its_seeds() -> None:
    gained = np.random.default_rng(1).normal(0.01, 0.01, 12)
    found = compared(runs({("a", "kd"): PLAIN * 3, ("a", "own"): list(PLAIN * 3 + gained)}), "own", "kd")
    wanted = scipy.stats.bootstrap((found.points,), np.mean, n_resamples=20_000, method="percentile", rng=1)
    low, high = wanted.confidence_interval
    assert found.interval() == pytest.approx((low, high), abs=0.1)
    assert found.p_value() == pytest.approx(scipy.stats.wilcoxon(found.points).pvalue)


def test_seeds_of_one_task_do_not_stand_for_other_tasks() -> None:
    gains = {"a": 0.01, "b": 0.02, "c": 0.06}
    pairs = {(task, arm): [0.5 + gains[task] * (arm == "own")] * 4 for task in gains for arm in ("kd", "own")}
    assert compared(runs(pairs), "own", "kd").interval() == pytest.approx((1.0, 6.0)), "all three draws of one task: 1 in 27"


def test_runs_of_an_arm_that_has_changed_are_left_out() -> None:
    table = runs({("a", "kd"): [0.8, 0.9]})
    kept = current(table, {("a", 500, 1, "half", "kd", 18, "{}"), ("a", 500, 2, "half", "kd", 18, '{"other":1}')})
    assert kept["seed"].tolist() == [1]


def test_shards_that_another_run_made_count_as_they_did_there() -> None:
    table = runs({("a", "edits"): PLAIN[:2], ("a", "only"): PLAIN[:2], ("a", "kd"): PLAIN[:2]})
    table.loc[table["arm"] == "only", ["manifest", "stage_one_seconds"]] = ["edits", 0.5]
    table.loc[table["seed"] == 2, "stage_one_seconds"] *= 2
    wanted = {("a", 500, seed, "half", arm, 18, "{}") for seed in (1, 2) for arm in ("only", "kd")}
    kept = current(table, wanted)
    assert dict(zip(zip(kept["arm"], kept["seed"], strict=True), kept["stage_one_seconds"], strict=True)) == {
        ("only", 1): 10.0, ("only", 2): 20.0, ("kd", 1): 0.0, ("kd", 2): 0.0,
    }  # fmt: skip


def test_only_cases_of_the_last_arm_count_and_only_arms_that_have_all_of_them() -> None:
    found = {("a", "kd"): [0.8, 0.1], ("a", "ft"): [0.7], ("a", "own"): [0.85], ("b", "kd"): [0.3], ("b", "own"): [0.4]}
    table = by_task(runs(found), ["ft", "kd", "own"])
    assert table.columns.tolist() == ["teacher", "kd", "own"]
    assert table["kd"].tolist() == pytest.approx([80.0, 30.0])
