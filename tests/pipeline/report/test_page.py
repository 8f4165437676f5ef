import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.evaluation import EvaluationSettings
from pipeline.files import write_json
from pipeline.report.facts import TaskReport, TrainingCost, gather, on_pareto_line
from pipeline.report.page import (
    difference,
    duration,
    headline,
    page,
    read_results,
    read_shards,
    result_table,
    verdict,
    write_report,
)
from pipeline.tasks import measure
from tests.fake_run import (
    MOVIES,
    NOISE,
    OTHERS,
    SCORES,
    SECONDS,
    STUDENT,
    STUDENTS,
    answers,
    labels_of,
    params,
    read,
    write_run,
)

SETTINGS = EvaluationSettings.model_validate(params("movies")["evaluate"])
COLUMNS = [
    *("task", "model", "metric", "value", "retained", "agreement", "control", "interval_low", "interval_high"),
    *("parameters", "bytes", "latency_ms", "rows_per_s", "training_s", "pareto"),
]
FILES = [
    *("divergence.csv", "flips.csv", "index.html", "metrics.json"),
    *("quality_latency.csv", "results.csv", "training.csv"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_run(folder, MOVIES)
    write_run(folder, SCORES)
    return folder


@pytest.fixture(scope="module")
def movies(data: Path) -> TaskReport:
    return gather(data, "movies", list(STUDENTS), 200)


def with_difference(report: TaskReport, low: float, high: float, value: float = 0.9) -> TaskReport:
    """The report with student ``half`` best, and this interval to its control."""
    half = replace(report.students[0], value=value, interval_low=low, interval_high=high)
    return replace(report, students=(half, *report.students[1:]))


def cells(text: str) -> dict[str, list[str]]:
    """The rows of the page's result table as text, by the name of the model."""
    table = text.split('<table class="results">')[1].split("</table>")[0]
    rows = re.findall(r"<tr[^>]*>\s*<th scope=\"row\">(.*?)</th>(.*?)</tr>", table, re.S)
    return {plain(name): [plain(cell) for cell in re.findall(r"<td>(.*?)</td>", rest, re.S)] for name, rest in rows}


def plain(fragment: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", fragment).split())


def dotted_corners(text: str) -> int:
    """Points of the dotted line of the first picture."""
    (line,) = re.findall(r'<path d="([^"]+)"[^>]*stroke-dasharray[^>]*>', text.split("<svg viewBox")[-4], re.S)
    return len(re.findall("[ML]", line))


class Elements(HTMLParser):
    """Every element of a page with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_the_table_has_the_teacher_first_and_students_in_their_order(data: Path) -> None:
    table = result_table([gather(data, task, ["tiny", "half"], 200) for task in ("movie_scores", "movies")])
    assert table.columns.tolist() == COLUMNS
    assert table["task"].tolist() == ["movie_scores"] * 3 + ["movies"] * 3
    assert table["model"].tolist() == ["teacher", "tiny", "half"] * 2


def test_figures_are_those_of_the_evaluation(movies: TaskReport) -> None:
    labels = labels_of(MOVIES, 60)
    teacher, half = answers(MOVIES, labels, 0.7, 0), answers(MOVIES, labels, NOISE["half"], 2)
    found = movies.students[0]
    assert (movies.teacher.value, movies.teacher.retained) == (measure(MOVIES, labels, teacher), 1.0)
    assert found.value == measure(MOVIES, labels, half)
    assert found.agreement == pytest.approx((teacher.argmax(1) == half.argmax(1)).mean())
    assert (found.latency_ms, movies.teacher.latency_ms) == (2.9, 5.8)
    assert movies.speedups["half"] == pytest.approx(2.0)


def test_training_is_what_the_distill_stage_noted_of_each_student(data: Path, movies: TaskReport) -> None:
    assert movies.teacher.training_s is None
    assert {student.model: student.training_s for student in movies.students} == SECONDS
    assert movies.costs["tiny"] == TrainingCost.model_validate(read(data / "training" / "movies" / "tiny.json"))


def test_a_student_that_was_made_by_hand_took_no_training(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "training" / "movies" / "half.json").unlink()
    report = gather(tmp_path, "movies", ["half", "tiny"], 200)
    assert [result.training_s for result in report.results] == [None, None, SECONDS["tiny"]]
    write_report(tmp_path / "out", [report], SETTINGS)
    assert pd.read_csv(tmp_path / "out" / "results.csv")["training_s"].isna().tolist() == [True, True, False]
    rows = cells((tmp_path / "out" / "index.html").read_text())
    assert [rows[name][-1] for name in ("teacher *", "half *", "tiny *")] == ["–", "–", "3.2 s"]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "–"),
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.97, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (204.3, "3 min 24 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (90_000.0, "25 h 00 min"),
    ],
)
def test_a_duration_is_said_as_a_person_says_it(seconds: float | None, said: str) -> None:
    assert duration(seconds) == said


def test_only_a_student_with_a_control_has_an_interval(movies: TaskReport) -> None:
    half, *others = movies.students
    assert half.control == "half-plain"
    assert half.interval_low is not None
    assert half.interval_high is not None
    assert half.interval_low <= half.value - others[0].value <= half.interval_high
    assert difference(movies, half) == half.value - others[0].value
    assert all((o.control, o.interval_low, o.interval_high) == (None, None, None) for o in others)


def test_students_that_are_not_listed_are_ignored(data: Path) -> None:
    report = gather(data, "movies", ["half"], 200)
    assert [result.model for result in report.results] == ["teacher", "half"]
    assert report.students[0].control is None, "a control that is not listed is stale"
    assert set(report.training["model"]) == {"teacher", "half"}


def test_a_teacher_that_was_adopted_has_no_history(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "teacher" / "movies" / "history.csv").unlink()
    report = gather(tmp_path, "movies", ["half"], 200)
    assert set(report.training["model"]) == {"half"}
    assert "Dev accuracy by epoch" in page([report], SETTINGS)


def test_the_histogram_counts_every_row_of_every_variant(movies: TaskReport) -> None:
    counts = movies.divergence.groupby("variants")["count"].sum()
    assert counts.to_dict() == {"variant 1": 60, "variant 2": 60}
    by_hand = np.random.default_rng(1).lognormal(-2.5, 1.4, 60).astype(np.float32)
    one = movies.divergence[movies.divergence["variants"] == "variant 1"]
    for low, high, count in zip(one["low"][1:], one["high"][1:], one["count"][1:], strict=True):
        assert count == ((by_hand >= low) & (by_hand < high)).sum()
    assert movies.flips["divergence"].iloc[0] == pytest.approx(float(np.median(by_hand)))
    assert movies.flips["rows"].tolist() == [60, 60]


def test_variants_that_several_recipes_made_in_turn_are_shown_by_recipe(tmp_path: Path) -> None:
    write_run(tmp_path, variants=5, recipes=[["mask"], ["delete", "swap"]])
    report = gather(tmp_path, "movies", list(STUDENTS), 200)
    assert dict(zip(report.flips["variants"], report.flips["rows"], strict=True)) == {"mask": 180, "delete + swap": 120}
    assert ">delete + swap</text>" in page([report], SETTINGS)


def test_a_run_without_variants_has_a_page_that_says_so(tmp_path: Path) -> None:
    write_run(tmp_path, variants=0)
    report = gather(tmp_path, "movies", list(STUDENTS), 200)
    assert len(report.divergence) == len(report.flips) == 0
    assert "No variants were made" in page([report], SETTINGS)
    write_report(tmp_path / "out", [report], SETTINGS)
    assert pd.read_csv(tmp_path / "out" / "flips.csv").columns.tolist() == report.flips.columns.tolist()


def test_the_headline_names_the_best_student_and_what_it_keeps(movies: TaskReport) -> None:
    best = headline(with_difference(movies, 0.01, 0.05, value=0.99))[0]
    assert best.startswith("Student half keeps ")
    assert "at 2.0× its speed, with 77% of its parameters." in best


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-0.01, 0.02, "The perturbations make no measurable difference: "),
        (0.0, 0.02, "The perturbations make no measurable difference: "),
        (-0.02, 0.0, "The perturbations make no measurable difference: "),
        (0.001, 0.02, "The perturbations help: "),
        (-0.03, -0.004, "The perturbations hurt: "),
    ],
)
def test_the_headline_says_what_the_interval_allows(movies: TaskReport, low: float, high: float, said: str) -> None:
    sentence = headline(with_difference(movies, low, high))[1]
    assert sentence.startswith(said)
    numbers = f"(95% interval {low:+.3f} to {high:+.3f}).".replace("-", "−")
    assert sentence.endswith(f"from half-plain, its control trained without them {numbers}")


def test_the_headline_reports_the_comparison_even_where_the_control_is_best(movies: TaskReport) -> None:
    plain = replace(movies.students[1], value=0.99)
    best, effect = headline(replace(movies, students=(movies.students[0], plain, *movies.students[2:])))
    assert best.startswith("Student half-plain keeps")
    assert "half differs by −" in effect


@pytest.mark.parametrize(
    ("adversary", "recipe", "said"),
    [
        ("half", "perturb", "The perturbations help: "),
        ("half", "mask", "The variants help: "),
        ("own", "perturb", "The student’s own perturbations help: "),
        ("both", "perturb", "The stored perturbations and the student’s own help: "),
        ("both", "mask", "The stored variants and the student’s own help: "),
    ],
)
def test_the_headline_says_whose_perturbations_were_compared(adversary: str, recipe: str, said: str, tmp_path: Path) -> None:
    student = STUDENT | {"adversary": (STUDENTS | OTHERS)[adversary]["adversary"]}
    students = {"half": student, "half-plain": STUDENTS["half-plain"]}
    write_run(tmp_path, students=students, recipes=[[recipe]])
    report = with_difference(gather(tmp_path, "movies", list(students), 200), 0.01, 0.02)
    assert headline(report)[1].startswith(said)


def test_the_page_says_once_how_many_bytes_of_shards_were_read_and_by_whom(data: Path, tmp_path: Path) -> None:
    scores, variants = (sum(p.stat().st_size for p in (data / n / "movies").glob("*.arrow")) for n in ("scores", "shards"))
    seen = gather(data, "movies", ["half", "tiny"], 200)
    whole = f"{(scores + variants) / 1e3:.1f} kB of shards, made once: {scores / 1e3:.1f} kB of scores, and "
    assert read_shards(seen) == f"All students of the task together read {whole}{variants / 1e3:.1f} kB of variants."
    assert page([seen], SETTINGS).count("of shards") == 1
    some = gather(data, "movies", list(STUDENTS), 200)
    assert read_shards(some).endswith(" kB of variants, read by half, narrow and tiny.")
    plain = gather(data, "movies", ["half-plain"], 200)
    assert read_shards(plain) == f"All students of the task read the same {scores / 1e3:.1f} kB of shards, the scores."


def test_the_headline_admits_that_there_is_no_control(data: Path) -> None:
    effect = headline(gather(data, "movies", ["half", "tiny"], 200))[1]
    assert effect.startswith("No student has a control")


def test_the_headline_keeps_its_sense_where_the_teacher_is_worth_nothing(movies: TaskReport) -> None:
    students = tuple(replace(student, retained=None) for student in movies.students)
    best = headline(replace(movies, students=students, teacher=replace(movies.teacher, value=-0.1, retained=None)))[0]
    assert "where the teacher has -0.100" in best


def test_a_student_without_a_control_has_no_verdict(movies: TaskReport) -> None:
    assert [verdict(student) for student in movies.students][1:] == ["no control"] * 3


def test_the_page_needs_nothing_from_elsewhere(data: Path) -> None:
    reports = [gather(data, task, list(STUDENTS), 200) for task in ("movies", "movie_scores")]
    text = page(reports, SETTINGS)
    elements = Elements(text)
    assert not elements.open[1:], "every element is closed"
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in elements.found}
    for tag, attributes in elements.found:
        for name in ("src", "href", "xlink:href", "data"):
            assert (attributes.get(name) or "#").startswith("#"), f"<{tag}> refers to {attributes.get(name)}"
    assert not re.search(r"@import|url\((?!#)", text)


def test_the_page_can_be_read_without_seeing_it(movies: TaskReport) -> None:
    text = page([movies], SETTINGS)
    elements = Elements(text)
    assert all(attributes.get("scope") in ("col", "row") for attributes in elements.of("th"))
    pictures = [svg for svg in elements.of("svg") if svg.get("class") != "swatch"]
    assert len(pictures) == 4
    assert all(svg["role"] == "img" for svg in pictures)
    assert len(re.findall(r'<svg viewbox[^>]*role="img"><title>[^<]+</title><desc>[^<]+</desc>', text, re.I)) == 4
    names = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(names) == len(set(names)), "an id names one element"


def test_pictures_take_their_colours_from_the_page(movies: TaskReport) -> None:
    text = page([movies], SETTINGS)
    drawn = "".join(re.findall(r"<svg viewBox.*?</svg>", text, re.S))
    assert set(re.findall(r"#[0-9a-f]{6}", drawn)) == set()
    defined = set(re.findall(r"(--[\w-]+):", text))
    assert set(re.findall(r"var\((--[\w-]+)\)", text)) <= defined


def test_the_text_of_people_is_escaped(tmp_path: Path) -> None:
    task = MOVIES.model_copy(update={"name": "a$b$c", "labels": ("<b>", "\"&'")})
    students: dict[str, Any] = {"<script>": STUDENT | {"layers": "<i>"}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NOISE, "<script>", 1.0)
        write_run(tmp_path, task, students=students)
    text = page([gather(tmp_path, task.name, list(students), 200)], SETTINGS)
    elements = Elements(text)
    assert not {"script", "b", "i"} & {tag for tag, _ in elements.found}
    assert "&lt;b&gt;, &#34;&amp;&#39;" in text
    assert "&lt;script&gt; keeps" in text
    assert "Task a$b$c" in text


def test_the_same_facts_give_the_same_bytes(data: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_report(tmp_path / name, [gather(data, "movies", list(STUDENTS), 200)], SETTINGS)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == FILES
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_results_are_read_back_as_they_were(movies: TaskReport, tmp_path: Path) -> None:
    student = replace(movies.students[2], model="None", retained=None)
    odd = replace(movies, students=(*movies.students[:2], student), speedups={**movies.speedups, "None": 2.0})
    write_report(tmp_path, [odd], SETTINGS)
    assert read_results(tmp_path) == list(odd.results)


def test_metrics_are_nested_by_task_and_model(data: Path, tmp_path: Path) -> None:
    reports = [gather(data, task, ["half"], 200) for task in ("movies", "movie_scores")]
    write_report(tmp_path, reports, SETTINGS)
    student = reports[1].students[0]
    found = read(tmp_path / "metrics.json")
    assert found["movie_scores"]["half"] == {"pearson": student.value, "retained": student.retained}
    assert list(found["movies"]) == ["teacher", "half"]


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


def test_the_pareto_line_is_marked_in_every_table_and_drawn(movies: TaskReport, tmp_path: Path) -> None:
    write_report(tmp_path, [movies], SETTINGS)
    marks = [result.pareto for result in movies.results]
    for file in ("results.csv", "quality_latency.csv"):
        lines = (tmp_path / file).read_text().splitlines()
        assert [line.split(",")[-1] for line in lines] == ["pareto", *("true" if mark else "false" for mark in marks)]
    text = (tmp_path / "index.html").read_text()
    assert list(cells(text)) == [result.model + " *" * result.pareto for result in movies.results]
    assert "On the Pareto line: no other model is at least as fast and at least as good" in text
    assert len(marks) > sum(marks) > 1
    assert dotted_corners(text) == 2 * sum(marks) - 1
