import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.evaluation.facts import TaskReport, gather
from pipeline.evaluation.page import (
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
from pipeline.evaluation.quality import PREDICTIONS_FILE, EvaluationSettings
from tests.fake_run import (
    MOVIES,
    NOISE,
    SECONDS,
    STUDENT,
    STUDENTS,
    params,
    read,
    write_run,
)

SETTINGS = EvaluationSettings.model_validate(params("movies")["evaluate"])
COLUMNS = [
    *("task", "model", "metric", "value", "value_low", "value_high", "retained", "agreement"),
    *("control", "interval_low", "interval_high", "parameters", "bytes", "latency_ms", "rows_per_s", "training_s", "pareto"),
]
FILES = [
    *("divergence.csv", "flips.csv", "index.html", "metrics.json"),
    *("quality_latency.csv", "results.csv", "training.csv"),
]


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


def test_a_teacher_that_was_adopted_has_no_history(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "teacher" / "movies" / "history.csv").write_text("epoch,step,loss,dev\n")
    report = gather(tmp_path, "movies", ["half"], 200)
    assert set(report.training["model"]) == {"half"}
    assert "Dev accuracy by epoch" in page([report], SETTINGS)


def test_a_run_without_variants_has_a_page_that_says_so(tmp_path: Path) -> None:
    write_run(tmp_path, variants=0)
    report = gather(tmp_path, "movies", list(STUDENTS), 200)
    assert len(report.divergence) == len(report.flips) == 0
    assert "No variants were made" in page([report], SETTINGS)
    write_report(tmp_path / "out", [report], SETTINGS)
    assert pd.read_csv(tmp_path / "out" / "flips.csv").columns.tolist() == report.flips.columns.tolist()


def test_the_difference_is_that_to_the_control(movies: TaskReport) -> None:
    half, plain_half, *_ = movies.students
    assert difference(movies, half) == half.value - plain_half.value


def test_the_picture_of_the_variants_names_their_recipes(tmp_path: Path) -> None:
    write_run(tmp_path, variants=5, recipes=[["mask"], ["delete", "swap"]])
    assert ">delete + swap</text>" in page([gather(tmp_path, "movies", list(STUDENTS), 200)], SETTINGS)


def test_the_headline_names_the_best_student_and_what_it_keeps(movies: TaskReport) -> None:
    best = headline(with_difference(movies, 0.01, 0.05, value=0.99))[0]
    assert best.startswith("Student half keeps ")
    assert "at 2.0× its speed, with 77% of its parameters." in best


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-0.01, 0.02, "This run cannot tell whether the perturbations help: "),
        (0.0, 0.02, "This run cannot tell whether the perturbations help: "),
        (-0.02, 0.0, "This run cannot tell whether the perturbations help: "),
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


@pytest.mark.parametrize(("recipe", "said"), [("perturb", "The perturbations help: "), ("mask", "The variants help: ")])
def test_the_headline_says_whether_variants_or_perturbations_were_compared(recipe: str, said: str, tmp_path: Path) -> None:
    students = {name: STUDENTS[name] for name in ("half", "half-plain")}
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


def test_a_teacher_that_is_no_better_than_one_answer_to_all_has_nothing_to_keep(tmp_path: Path) -> None:
    """So says the page in its first sentence and table, whatever share of nothing a student keeps."""
    write_run(tmp_path, MOVIES)
    for folder in (tmp_path / "evaluation" / "movies").iterdir():
        table = pq.read_table(folder / PREDICTIONS_FILE)
        place = table.schema.get_field_index("teacher_logits")
        same = pa.array([[1.0, 0.0]] * len(table), table.schema.types[place])
        pq.write_table(table.set_column(place, "teacher_logits", same), folder / PREDICTIONS_FILE)
    report = gather(tmp_path, "movies", list(STUDENTS), 200)
    assert not report.taught
    assert all(result.retained is None for result in report.results)
    nothing = (
        f"{report.trivial:.3f} of one answer to all, as far as the test rows tell: there is nothing that a student could keep"
    )
    assert nothing in headline(report)[0]
    text = page([report], SETTINGS)
    assert f"One answer to all of them has {report.trivial:.3f}." in text
    assert {row[1] for row in cells(text).values()} == {"–"}


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
    odd = replace(movies, students=(*movies.students[:2], student))
    write_report(tmp_path, [odd], SETTINGS)
    assert read_results(tmp_path) == list(odd.results)


def test_metrics_are_nested_by_task_and_model(data: Path, tmp_path: Path) -> None:
    reports = [gather(data, task, ["half"], 200) for task in ("movies", "movie_scores")]
    write_report(tmp_path, reports, SETTINGS)
    student = reports[1].students[0]
    found = read(tmp_path / "metrics.json")
    assert found["movie_scores"]["half"] == {"pearson": student.value, "retained": student.retained}
    assert list(found["movies"]) == ["teacher", "half"]


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
