from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from stages.report import main
from tests.fake_run import MOVIES, RATINGS, STUDENTS, params, write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_run(folder / "data", MOVIES)
    write_run(folder / "data", RATINGS)
    return folder


def report(folder: Path, settings: object, *more: str) -> Result:
    (folder / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    places = {"data": folder / "data", "out": folder / "data" / "reports", "params": folder / "params.yaml"}
    options = [text for flag, path in places.items() for text in (f"--{flag}", str(path))]
    return CliRunner().invoke(main, [*options, *more])


def test_the_table_is_printed_and_the_path_of_the_page_comes_last(folder: Path) -> None:
    result = report(folder, params("movies", "movie_ratings"))
    assert result.exit_code == 0, result.output
    head, *lines, last = result.output.splitlines()
    page = folder / "data" / "reports" / "index.html"
    assert last == f"report: {page}"
    assert page.exists()
    assert [line.split()[:2] for line in lines] == [
        [task, model] for task in ("movies", "movie_ratings") for model in ("teacher", *STUDENTS)
    ]
    assert head.split()[-3:] == ["parameters", "latency", "training"]
    assert [line.split()[-1] for line in lines[:2]] == ["–", "s"]
    assert lines[1].endswith("3 min 24 s")
    assert "\n".join([head, *lines, ""]) == (page.parent / "results.txt").read_text()


def test_only_what_params_list_is_reported(folder: Path) -> None:
    settings = params("movies", students={"tiny": {}})
    assert "tiny" in report(folder, settings).output
    results = (folder / "data" / "reports" / "results.csv").read_text()
    assert [line.split(",")[:2] for line in results.splitlines()[1:]] == [["movies", "teacher"], ["movies", "tiny"]]


def test_a_student_may_have_the_name_of_a_missing_value(tmp_path: Path) -> None:
    write_run(tmp_path / "data", MOVIES, students=["null"])
    assert " null " in report(tmp_path, params("movies", students={"null": {}})).output


def test_a_student_that_was_never_made_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    write_run(tmp_path / "data", MOVIES)
    result = report(tmp_path, params("movies", students={"half": {}, "huge": {}}))
    assert result.exit_code == 1
    assert "student/movies/huge/lineage.json does not exist; make it with dvc repro" in result.output
    assert not (tmp_path / "data" / "reports").exists()
