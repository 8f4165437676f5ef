import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.settings import EvaluationSettings
from pipeline.evaluation.facts import TaskReport, gather
from pipeline.evaluation.page import headline, page, write_report
from pipeline.evaluation.quality import PREDICTIONS_FILE
from tests.fake_run import MOVIES, STUDENTS, params, write_run

SETTINGS = EvaluationSettings.model_validate(params("movies")["evaluate"])
FILES = ["flips.csv", "index.html", "metrics.json", "quality_latency.csv", "results.csv", "results.txt", "training.csv"]


def with_difference(report: TaskReport, low: float, high: float) -> TaskReport:
    """The report with student ``half`` best, and this interval of the difference to its control."""
    half = replace(report.students[0], value=0.99, interval_low=low, interval_high=high)
    return replace(report, students=(half, *report.students[1:]))


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text of every table row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if {"th", "td"} & set(self.open):
            self.rows[-1][-1] = " ".join(f"{self.rows[-1][-1]} {data}".split())

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def row(self, name: str) -> list[str]:
        """The cells after the heading of the only row with this heading."""
        (found,) = [cells for cells in self.rows if cells[0] == name]
        return found[1:]


def test_every_model_has_one_row_with_its_figures_and_mark(movies: TaskReport) -> None:
    elements = Elements(page([movies], SETTINGS))
    for result in movies.results:
        cells = elements.row(result.model + " *" * result.pareto)
        assert cells[0] == f"{result.value:.3f} [{result.value_low:.3f}, {result.value_high:.3f}]"
        assert cells[1] == f"{100 * (result.retained or 0):.1f} %"
    gain = movies.students[0].value - movies.students[1].value
    assert elements.row("half *")[3].startswith(f"{gain:+.3f} [")
    assert elements.row("half-plain")[3] == "control of half"
    assert (elements.row("teacher *")[-1], elements.row("half *")[-1]) == ("–", "3 min 24 s")


def test_the_headline_names_the_best_student_and_what_it_retains(movies: TaskReport) -> None:
    best = headline(with_difference(movies, 0.01, 0.05))[0].replace("\N{NO-BREAK SPACE}", " ")
    assert best.startswith(
        f"The student half retains {100 * (movies.students[0].retained or 0):.1f} % of the teacher’s accuracy"
    )
    assert best.endswith("at 2.0× its speed with 77 % of its parameters.")


@pytest.mark.parametrize(
    ("low", "high", "conclusion"),
    [
        (-0.01, 0.02, "This run cannot tell whether the perturbations help"),
        (0.0, 0.02, "This run cannot tell whether the perturbations help"),
        (-0.02, 0.0, "This run cannot tell whether the perturbations help"),
        (0.001, 0.02, "The perturbations help"),
        (-0.03, -0.004, "The perturbations hurt"),
    ],
)
def test_the_headline_concludes_what_the_interval_allows(movies: TaskReport, low: float, high: float, conclusion: str) -> None:
    sentence = headline(with_difference(movies, low, high))[1]
    assert sentence.startswith(f"{conclusion}: half differs from half-plain, ")
    assert sentence.endswith(f"interval {low:+.3f} to {high:+.3f}).".replace("-", "−"))


def test_nothing_is_retained_of_a_teacher_that_is_no_better_than_a_constant_prediction(tmp_path: Path) -> None:
    write_run(tmp_path, MOVIES)
    for folder in (tmp_path / "evaluation" / "movies").iterdir():
        table = pq.read_table(folder / PREDICTIONS_FILE)
        place = table.schema.get_field_index("teacher_logits")
        same = pa.array([[1.0, 0.0]] * len(table), table.schema.types[place])
        pq.write_table(table.set_column(place, "teacher_logits", same), folder / PREDICTIONS_FILE)
    report = gather(tmp_path, "movies", list(STUDENTS), 200)
    assert not report.taught
    assert all(result.retained is None for result in report.results)
    assert "is not measurably better than" in headline(report)[0]
    elements = Elements(page([report], SETTINGS))
    assert {elements.row(result.model + " *" * result.pareto)[1] for result in report.results} == {"–"}


def test_the_page_has_no_external_references_and_every_element_is_closed(data: Path) -> None:
    text = page([gather(data, task, list(STUDENTS), 200) for task in ("movies", "movie_ratings")], SETTINGS)
    elements = Elements(text)
    assert not elements.open
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in elements.found}
    for tag, attributes in elements.found:
        for name in ("src", "href", "xlink:href", "data"):
            assert (attributes.get(name) or "#").startswith("#"), f"<{tag}> refers to {attributes.get(name)}"
    assert not re.search(r"@import|url\((?!#)", text)
    assert "prefers-color-scheme: dark" in text
    names = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(names) == len(set(names))
    pictures = re.findall(r'<svg viewBox[^>]*role="img"><title>[^<]+</title><desc>[^<]+</desc>', text)
    assert len(pictures) == 6, "every picture has a title and a description"


def test_names_and_settings_are_escaped(tmp_path: Path) -> None:
    task = MOVIES.model_copy(update={"name": "a$b$c", "labels": ("<b>", "\"&'")})
    write_run(tmp_path, task, students=["<script>"])
    text = page([gather(tmp_path, task.name, ["<script>"], 200)], SETTINGS)
    elements = Elements(text)
    assert not {"script", "b"} & {tag for tag, _ in elements.found}
    assert ["labels", "[<b>, \"&']"] in elements.rows
    assert "The student &lt;script&gt; retains" in text
    assert "Task a$b$c" in text


def test_settings_hashes_and_effects_of_the_variants_are_shown(movies: TaskReport, tmp_path: Path) -> None:
    elements = Elements(page([movies], SETTINGS))
    assert elements.row("settings.training.num_train_epochs") == ["4", "4", "4", "6"]
    assert elements.row("settings.hidden_size") == ["–", "–", "192", "128"]
    assert elements.row("settings.perturbation.epsilon") == ["0.104"]
    assert elements.row("shards") == [movies.hashes["shards"]]
    assert ["teacher", "7d" * 32] in elements.rows
    write_run(tmp_path, variants=5, recipes=[["mask"], ["delete", "swap"]], students=["half"])
    report = gather(tmp_path, "movies", ["half"], 200)
    elements = Elements(page([report], SETTINGS))
    for name, share in zip(report.flips["variants"], report.flips["flipped"], strict=True):
        assert elements.row(name)[2] == f"{share:.1%}".replace("%", " %")


def test_the_same_facts_give_the_same_bytes(data: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_report(tmp_path / name, [gather(data, "movies", list(STUDENTS), 200)], SETTINGS)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == FILES
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file
