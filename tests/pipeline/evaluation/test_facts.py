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
from pipeline.evaluation.facts import TaskReport, TrainingCost, gather, metric_name, on_pareto_line
from pipeline.evaluation.quality import SPEED_FILE
from pipeline.store.files import write_json
from tests.fake_run import MOVIES, NOISE, SECONDS, STUDENTS, answers, labels_of, read, write_run


def test_figures_are_those_of_the_evaluation(movies: TaskReport) -> None:
    labels = labels_of(MOVIES, 60)
    teacher, half = answers(MOVIES, labels, 0.7, 0), answers(MOVIES, labels, NOISE["half"], 2)
    found = movies.students[0]
    assert (movies.teacher.value, movies.teacher.retained) == (measure(MOVIES, labels, teacher), 1.0)
    assert found.value == measure(MOVIES, labels, half)
    assert found.agreement == pytest.approx((teacher.argmax(1) == half.argmax(1)).mean())
    assert (found.latency_ms, movies.teacher.latency_ms) == pytest.approx((2.9, 5.8))
    assert movies.speedups["half"] == pytest.approx(2.0)


def test_a_student_that_was_timed_on_a_slower_machine_is_no_slower_for_it(data: Path, tmp_path: Path) -> None:
    before = gather(data, "movies", list(STUDENTS), 100)
    slower = shutil.copytree(data, tmp_path / "data")
    path = slower / "evaluation" / "movies" / "tiny" / SPEED_FILE
    timed = {who: {"latency_ms": 3 * t["latency_ms"], "rows_per_s": t["rows_per_s"] / 3} for who, t in read(path).items()}
    path.write_text(json.dumps(timed))
    after = gather(slower, "movies", list(STUDENTS), 100)
    for one, other in zip(before.results, after.results, strict=True):
        assert (one.latency_ms, one.rows_per_s) == pytest.approx((other.latency_ms, other.rows_per_s))


def test_f1_is_called_by_the_label_whose_it_is() -> None:
    two = MOVIES.model_copy(update={"metric": "f1", "labels": ("legit", "fraud")})
    assert metric_name(two) == "F1 of fraud"
    assert metric_name(two.model_copy(update={"metric": "macro_f1"})) == "macro F1"
    assert metric_name(two.model_copy(update={"metric": "mcc"})) == "Matthews correlation"


def test_training_is_what_the_distill_stage_noted_of_each_student(data: Path, movies: TaskReport) -> None:
    assert movies.teacher.training_s is None
    assert {student.model: student.training_s for student in movies.students} == SECONDS
    assert movies.costs["tiny"] == TrainingCost.model_validate(read(data / "training" / "movies" / "tiny.json"))


def test_only_a_student_with_a_control_has_an_interval(movies: TaskReport) -> None:
    half, *others = movies.students
    assert half.control == "half-plain"
    assert half.interval_low is not None
    assert half.interval_high is not None
    assert half.interval_low <= half.value - others[0].value <= half.interval_high
    assert all((o.control, o.interval_low, o.interval_high) == (None, None, None) for o in others)


def test_every_value_lies_in_its_interval(movies: TaskReport) -> None:
    for result in movies.results:
        assert result.value_low < result.value < result.value_high


def test_students_that_are_not_listed_are_ignored(data: Path) -> None:
    report = gather(data, "movies", ["half"], 200)
    assert [result.model for result in report.results] == ["teacher", "half"]
    assert report.students[0].control is None, "a control that is not listed is stale"
    assert set(report.training["model"]) == {"teacher", "half"}


def test_a_student_of_other_shards_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path)
    path = tmp_path / "student" / "movies" / "half" / "lineage.json"
    write_json(path, read(path) | {"shards": "f00d" * 16})
    with pytest.raises(PipelineError, match=r"half was trained from the shards of manifest f00df00df00d….*dvc repro"):
        gather(tmp_path, "movies", ["half"], 200)


def test_a_control_of_other_test_rows_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path)
    path = tmp_path / "evaluation" / "movies" / "half" / "predictions.parquet"
    table = pd.read_parquet(path)
    table.iloc[::-1].to_parquet(path)
    with pytest.raises(PipelineError, match="half and half-plain were evaluated on different rows"):
        gather(tmp_path, "movies", list(STUDENTS), 200)


@pytest.mark.parametrize(("content", "said"), [(None, "does not exist"), ("{}", "is damaged")])
def test_a_missing_or_damaged_product_is_named(tmp_path: Path, content: str | None, said: str) -> None:
    write_run(tmp_path)
    path = tmp_path / "evaluation" / "movies" / "half" / "quality.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(PipelineError, match=rf"half/quality.json {said}.*dvc repro"):
        gather(tmp_path, "movies", ["half"], 200)


def test_a_damaged_note_of_the_training_is_named(tmp_path: Path) -> None:
    write_run(tmp_path)
    write_json(tmp_path / "training" / "movies" / "half.json", {"seconds": "long"})
    with pytest.raises(PipelineError, match=r"training/movies/half.json is damaged.*dvc repro"):
        gather(tmp_path, "movies", ["half"], 200)


POINTS = st.lists(st.tuples(*[st.integers(0, 5).map(float)] * 2), min_size=1, max_size=12)
"""(latency, value) with many ties."""


@given(POINTS)
def test_no_model_on_the_pareto_line_is_dominated_and_every_other_is_by_one_on_it(models: list[tuple[float, float]]) -> None:
    marks = on_pareto_line(models)
    line = {model for model, mark in zip(models, marks, strict=True) if mark}
    for (latency, value), mark in zip(models, marks, strict=True):
        faster = any(a < latency and b >= value for a, b in line)
        better = any(a <= latency and b > value for a, b in line)
        assert mark is not (faster or better)


@given(POINTS, st.randoms())
def test_the_pareto_line_does_not_depend_on_the_order_of_the_models(models: list[tuple[float, float]], random: Any) -> None:
    shuffled = random.sample(models, len(models))
    marked = sorted(zip(models, on_pareto_line(models), strict=True))
    assert marked == sorted(zip(shuffled, on_pareto_line(shuffled), strict=True))


def test_the_pareto_line_of_a_task_takes_the_teacher_in_and_no_other_task(data: Path) -> None:
    reports = [gather(data, task, list(STUDENTS), 200) for task in ("movies", "movie_scores")]
    for report in reports:
        places = [(result.latency_ms, result.value) for result in report.results]
        assert [result.pareto for result in report.results] == on_pareto_line(places)
        assert report.teacher.pareto, "nothing here is as good"
        assert not report.results[3].pareto, "narrow is slower than half, and worse"
