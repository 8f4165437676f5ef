import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.errors import PipelineError
from pipeline.corpus.task import measure
from pipeline.evaluation.facts import TaskReport, gather, on_pareto_line
from pipeline.evaluation.quality import SPEED_FILE
from pipeline.shards.manifest import manifest_hash
from pipeline.store.files import write_json
from tests.fake_run import MOVIES, NOISE, SECONDS, STUDENTS, labels_of, noisy_logits, read, write_run


def test_results_are_those_of_the_evaluation(movies: TaskReport) -> None:
    labels = labels_of(MOVIES, 60)
    teacher, half = noisy_logits(MOVIES, labels, 0.7, 0), noisy_logits(MOVIES, labels, NOISE["half"], 2)
    found = movies.students[0]
    assert (movies.teacher.value, movies.teacher.retained) == (measure(MOVIES, labels, teacher), 1.0)
    assert found.value == measure(MOVIES, labels, half)
    assert found.agreement == pytest.approx((teacher.argmax(1) == half.argmax(1)).mean())
    assert (found.latency_ms, movies.teacher.latency_ms) == pytest.approx((2.9, 5.8))
    assert {result.model: result.training_s for result in movies.results} == {"teacher": None, **SECONDS}
    assert all(result.value_low < result.value < result.value_high for result in movies.results)


def test_timings_of_a_slower_machine_are_scaled_by_the_teachers(data: Path, tmp_path: Path) -> None:
    before = gather(data, "movies", list(STUDENTS), 100)
    slower = shutil.copytree(data, tmp_path / "data")
    path = slower / "evaluation" / "movies" / "tiny" / SPEED_FILE
    timed = {who: {"latency_ms": 3 * t["latency_ms"], "rows_per_s": t["rows_per_s"] / 3} for who, t in read(path).items()}
    path.write_text(json.dumps(timed))
    after = gather(slower, "movies", list(STUDENTS), 100)
    for one, other in zip(before.results, after.results, strict=True):
        assert (one.latency_ms, one.rows_per_s) == pytest.approx((other.latency_ms, other.rows_per_s))


def test_only_a_student_with_a_control_has_an_interval_of_the_difference(movies: TaskReport) -> None:
    half, *others = movies.students
    assert half.control == "half-plain"
    assert half.interval_low is not None
    assert half.interval_high is not None
    assert half.interval_low <= half.value - others[0].value <= half.interval_high
    assert all((o.control, o.interval_low, o.interval_high) == (None, None, None) for o in others)


def test_a_student_of_other_shards_is_rejected(tmp_path: Path) -> None:
    write_run(tmp_path)
    path = tmp_path / "student" / "movies" / "half" / "lineage.json"
    write_json(path, read(path) | {"shards": "f00d" * 16})
    with pytest.raises(PipelineError, match=r"half was trained from the shards of manifest f00df00df00d….*dvc repro"):
        gather(tmp_path, "movies", ["half"], 200)


def test_a_control_with_other_test_rows_is_rejected(tmp_path: Path) -> None:
    write_run(tmp_path)
    path = tmp_path / "evaluation" / "movies" / "half" / "predictions.parquet"
    table = pd.read_parquet(path)
    table.iloc[::-1].to_parquet(path)
    with pytest.raises(PipelineError, match="half and half-plain were evaluated on different rows"):
        gather(tmp_path, "movies", list(STUDENTS), 200)


@pytest.mark.parametrize(
    ("place", "content", "error"),
    [
        ("evaluation/movies/half/quality.json", None, "does not exist"),
        ("evaluation/movies/half/quality.json", "{}", "is damaged"),
        ("student/movies/half/lineage.json", None, "does not exist"),
        ("training/movies/half.json", '{"seconds": "long"}', "is damaged"),
    ],
)
def test_a_missing_or_damaged_product_is_named(tmp_path: Path, place: str, content: str | None, error: str) -> None:
    write_run(tmp_path, students=["half"])
    (tmp_path / place).unlink()
    if content is not None:
        (tmp_path / place).write_text(content)
    with pytest.raises(PipelineError, match=rf"{place} {error}.*dvc repro"):
        gather(tmp_path, "movies", ["half"], 200)


@given(st.lists(st.tuples(*[st.integers(0, 5).map(float)] * 2), min_size=1, max_size=12))
def test_the_pareto_line_is_what_pairwise_comparison_finds(models: list[tuple[float, float]]) -> None:
    def dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return one[0] <= other[0] and one[1] >= other[1] and (one[0] < other[0] or one[1] > other[1])

    assert on_pareto_line(models) == [not any(dominates(other, one) for other in models) for one in models]


def test_the_effects_of_variants_are_grouped_by_recipe_and_read_from_receipts(tmp_path: Path, movies: TaskReport) -> None:
    recipes: Any = [["mask"], ["delete", "swap"]]
    write_run(tmp_path, variants=5, recipes=recipes, students=["half"])
    path, student = (tmp_path / "shards" / "movies", tmp_path / "student" / "movies" / "half" / "lineage.json")
    content = read(path / "manifest.json")
    for number, shard in enumerate(content["shards"]):
        shard["receipt"] |= {"rows": 10 * number + 10, "statistics": {"divergence": float(number), "flipped": 5.0}}
        (path / shard["file"]).unlink()
    write_json(path / "manifest.json", content)
    write_json(student, read(student) | {"shards": manifest_hash(path)})
    mask, edits = gather(tmp_path, "movies", ["half"], 200).flips.itertuples(index=False)
    assert tuple(mask) == pytest.approx(("movies", "mask", 90, 15 / 90, (30 * 2 + 50 * 4) / 90))
    assert tuple(edits) == pytest.approx(("movies", "delete + swap", 60, 10 / 60, (20 * 1 + 40 * 3) / 60))
    assert movies.flips["variants"].tolist() == ["variant 1", "variant 2"]
