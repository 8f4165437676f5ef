from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from stages.report import main
from tests.fake_run import MOVIES, SCORES, STUDENTS, params, write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_run(folder / "data", MOVIES)
    write_run(folder / "data", SCORES)
    return folder


def report(folder: Path, settings: object, *more: str) -> Result:
    (folder / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    places = {"data": folder / "data", "out": folder / "data" / "reports", "params": folder / "params.yaml"}
    options = [text for flag, path in places.items() for text in (f"--{flag}", str(path))]
    return CliRunner().invoke(main, [*options, *more])


def test_the_table_is_printed_and_the_path_of_the_page_comes_last(folder: Path) -> None:
    result = report(folder, params("movies", "movie_scores"))
    assert result.exit_code == 0, result.output
    *lines, legend, last = result.output.splitlines()
    page = folder / "data" / "reports" / "index.html"
    assert last == f"report: {page}"
    assert page.exists()
    assert [line.split()[:2] for line in lines[1:]] == [
        [task, model] for task in ("movies", "movie_scores") for model in ("teacher", *STUDENTS)
    ]
    assert {len(line) for line in lines} == {len(lines[0])}, "one line a model, all of one width"
    assert legend.startswith("* on the Pareto line: no other model is at least as fast")
    marked = [line.split()[1] for line in lines[1:6] if line.split()[2] == "*"]
    assert marked == ["teacher", "half", "tiny"]
    assert lines[0].split()[-1] == "training"
    assert lines[1].split()[-1] == "–"
    assert lines[2].endswith("3 min 24 s")
    assert "\x1b" not in result.output, "no colours where there is no terminal"


def test_only_what_params_list_is_reported(folder: Path) -> None:
    settings = params("movies", students={"tiny": {}})
    assert "tiny" in report(folder, settings).output
    results = (folder / "data" / "reports" / "results.csv").read_text()
    assert [line.split(",")[:2] for line in results.splitlines()[1:]] == [["movies", "teacher"], ["movies", "tiny"]]


def test_print_only_prints_the_same_again_without_the_products(folder: Path, tmp_path: Path) -> None:
    first = report(folder, params("movies"))
    page = folder / "data" / "reports" / "index.html"
    written = page.stat().st_mtime_ns
    (folder / "data" / "scores").rename(tmp_path / "scores")
    try:
        again = CliRunner().invoke(main, ["--print-only", "--out", str(page.parent)])
    finally:
        (tmp_path / "scores").rename(folder / "data" / "scores")
    assert (again.exit_code, again.output) == (0, first.output)
    assert page.stat().st_mtime_ns == written


def test_print_only_before_any_report_says_how_to_make_one(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--print-only", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "results.csv does not exist; make it with dvc repro" in result.output


def test_a_student_that_was_never_made_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    write_run(tmp_path / "data", MOVIES)
    result = report(tmp_path, params("movies", students={"half": {}, "huge": {}}))
    assert result.exit_code == 1
    assert "student/movies/huge/lineage.json does not exist; make it with dvc repro" in result.output
    assert not (tmp_path / "data" / "reports").exists()
