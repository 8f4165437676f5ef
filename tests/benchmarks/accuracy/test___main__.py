from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from benchmarks.accuracy import __main__ as suite
from benchmarks.accuracy import findings
from benchmarks.accuracy.arms import PRECISION, Run
from benchmarks.accuracy.chain import Place
from benchmarks.accuracy.corpora import Case
from benchmarks.accuracy.results import read_results
from pipeline.config.errors import PipelineError
from tests.benchmarks.accuracy.test_results import CURVE, result

VALUES = {"kd": 0.8, "kd_hard": 0.82}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two arms, two seeds, two schedules; instead of training it is noted what would have been trained."""
    runs = [Run(Case("trec", 500, seed), arm, "half", epochs) for seed in (1, 2) for epochs in (2, 4) for arm in VALUES]
    names = list[str]()

    def note(run: Run, place: Place) -> tuple[object, object]:
        names.append(run.name)
        facts = {"seed": run.case.seed, "arm": run.arm, "epochs": run.epochs, "settings": run.identity[-1]}
        return result(value=VALUES[run.arm] + 0.01 * run.case.seed, steps=16 * run.epochs, **facts), CURVE

    for module in (suite, findings):
        monkeypatch.setattr(module, "runs_of", lambda study, precision: [replace(run, precision=precision) for run in runs])
    monkeypatch.setattr(suite, "usual_precision", lambda: PRECISION)
    monkeypatch.setattr(suite, "result_of", note)
    monkeypatch.setattr(suite, "params_of", lambda run, place: {})
    return names


def start(tmp_path: Path) -> Result:
    places = ["--data", tmp_path, "--work", tmp_path / "work", "--results", tmp_path / "accuracy.csv", "--study", "any"]
    return CliRunner().invoke(suite.main, ["run", *map(str, places)], catch_exceptions=False)


def show(tmp_path: Path, *options: str) -> str:
    arguments = ["show", "--study", "any", "--best", "kd_hard", "--results", str(tmp_path / "accuracy.csv"), *options]
    return str(CliRunner().invoke(suite.main, arguments, catch_exceptions=False).output)


def compare(tmp_path: Path, *arguments: str) -> str:
    return str(CliRunner().invoke(suite.main, ["compare", *arguments, "--results", str(tmp_path / "accuracy.csv")]).output)


def test_what_is_in_the_table_is_not_made_again(tmp_path: Path, made: list[str]) -> None:
    assert start(tmp_path).exit_code == 0
    assert len(made) == len(set(made)) == 8
    table = tmp_path / "accuracy.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join(lines[:-1]) + "\n")
    start(tmp_path)
    assert made[8:] == made[7:8], "the run whose row was missing, and no other"


def test_a_run_that_another_process_is_at_is_left_to_it(tmp_path: Path, made: list[str]) -> None:
    run = Run(Case("trec", 500, 1), "kd", "half", 2)
    with suite.claimed(tmp_path / "work" / "claims" / run.name) as free:
        assert free
        start(tmp_path)
    assert run.name not in made
    assert len(read_results(tmp_path / "accuracy.csv")) == 7


def test_what_came_out_is_shown_beside_its_control_and_drawn(tmp_path: Path, made: list[str]) -> None:
    start(tmp_path)
    shown = show(tmp_path, "--pictures", str(tmp_path / "pictures"))
    assert "### half, 500 rows, 2 epochs" in shown
    assert "| trec | 93.0 | 81.5 | 83.5 | +2.0 | 89.8% |" in shown
    assert "| `kd_hard` | kd and the labels | `kd` | 1: 2 | +2.0 | +2.0 | – | +0.0 | 1.0× | 1.0× |" in shown
    drawn = {path.name: path.read_text() for path in (tmp_path / "pictures").iterdir()}
    assert set(drawn) == {"any_schedules.svg", "any_curves.svg", "any_differences.svg"}
    assert all(text.startswith("<?xml") for text in drawn.values())


def test_any_two_arms_stand_side_by_side(tmp_path: Path, made: list[str]) -> None:
    start(tmp_path)
    shown = compare(tmp_path, "kd", "kd_hard")
    for seed in (1, 2):
        assert shown.count(f"| trec | {seed} | -2.00 | +0.00 | 1.0× | 1.0× |") == 2, "one a schedule"
    assert shown.count("| `kd` | ") == 2
    assert compare(tmp_path, "kd", "kd_hard", "--without", "trec") == (
        "Error: no finished runs of kd and kd_hard differ in nothing but the arm\n"
    )
    assert "there is no arm none of these; there are ft, kd, " in compare(tmp_path, "none of these", "kd")


def test_a_run_that_fails_is_told_and_the_others_are_made(
    tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    making = suite.result_of

    def fail_once(run: Run, place: Place) -> object:
        if len(made) == 2:
            made.append("failed")
            raise PipelineError("the teacher is ill")
        return making(run, place)

    monkeypatch.setattr(suite, "result_of", fail_once)
    ended = start(tmp_path)
    assert ended.exit_code == 1
    assert "failed: the teacher is ill" in ended.output
    assert "7 of 8 runs are finished" in ended.output


def refuse(run: Run, place: Place) -> object:
    raise PipelineError("there is no such model")


def test_what_cannot_be_run_is_told_before_anything_is(
    tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "params_of", refuse)
    ended = start(tmp_path)
    assert ended.exit_code == 1
    assert "there is no such model" in ended.output
    assert not made
