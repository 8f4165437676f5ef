from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluation.facts import TaskReport, gather
from tests.fake_run import STUDENTS, write_run


def test_the_histogram_counts_every_row_of_every_variant(movies: TaskReport) -> None:
    counts = movies.divergence.groupby("variants")["count"].sum()
    assert counts.to_dict() == {"variant 1": 60, "variant 2": 60}
    by_hand = np.random.default_rng(1).lognormal(-2.5, 1.4, 60).astype(np.float32)
    one = movies.divergence[movies.divergence["variants"] == "variant 1"]
    for low, high, count in zip(one["low"][1:], one["high"][1:], one["count"][1:], strict=True):
        assert count == ((by_hand >= low) & (by_hand < high)).sum()
    assert movies.flips["divergence"].iloc[0] == pytest.approx(float(np.median(by_hand)))
    assert movies.flips["rows"].tolist() == [60, 60]


def test_variants_that_several_recipes_made_in_turn_count_by_recipe(tmp_path: Path) -> None:
    write_run(tmp_path, variants=5, recipes=[["mask"], ["delete", "swap"]])
    report = gather(tmp_path, "movies", list(STUDENTS), 200)
    assert dict(zip(report.flips["variants"], report.flips["rows"], strict=True)) == {"mask": 180, "delete + swap": 120}
