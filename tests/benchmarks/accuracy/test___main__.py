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


def test_what_is_in_the_table_is_not_made_again(tmp_path: Path, made: list[str]) -> None:
    assert start(tmp_path).exit_code == 0
    assert len(made) == len(set(made)) == 8
    table = tmp_path / "accuracy.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join(lines[:-1]) + "\n")
    start(tmp_path)
    assert made[8:] == made[7:8], "the run whose row was missing, and no other"


def test_where_bfloat16_is_slow_other_runs_are_made_and_shown_apart(
    tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start(tmp_path)
    monkeypatch.setattr(suite, "usual_precision", lambda: "float32")
    said = start(tmp_path).output
    assert "trainings in float32; `show --precision float32` shows these runs\n" in said
    assert len(made) == len(set(made)) == 16
    table = tmp_path / "accuracy.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))  # the last one in float32
    shown = ["show", "--study", "any", "--best", "kd_hard", "--results", str(table)]
    assert "8 of 8 runs" in CliRunner().invoke(suite.main, shown, catch_exceptions=False).output
    other = [*shown, "--precision", "float32"]
    assert "7 of 8 runs" in CliRunner().invoke(suite.main, other, catch_exceptions=False).output
    assert compare(tmp_path, "kd", "kd_hard", "--precision", "float32").output.count("| trec | 2 | ") == 1
    assert compare(tmp_path, "kd", "kd_hard").output.count("| trec | 2 | ") == 2


def test_a_run_that_another_process_is_at_is_left_to_it(tmp_path: Path, made: list[str]) -> None:
    run = Run(Case("trec", 500, 1), "kd", "half", 2)
    with suite.claimed(tmp_path / "work" / "claims" / run.name) as free:
        assert free
        start(tmp_path)
    assert run.name not in made
    assert len(read_results(tmp_path / "accuracy.csv")) == 7


def test_what_came_out_is_shown_beside_its_control_and_drawn(tmp_path: Path, made: list[str]) -> None:
    start(tmp_path)
    options = ["--results", str(tmp_path / "accuracy.csv"), "--pictures", str(tmp_path / "pictures")]
    shown = (
        CliRunner().invoke(suite.main, ["show", "--study", "any", "--best", "kd_hard", *options], catch_exceptions=False).output
    )
    assert "### half, 500 rows, 2 epochs" in shown
    assert "| trec | 93.0 | 81.5 | 83.5 | +2.0 | 89.8% |" in shown
    assert "| `kd_hard` | kd and the labels | `kd` | 1: 2 | +2.0 | +2.0 | – | +0.0 | 1.0× | 1.0× |" in shown
    drawn = {path.name: path.read_text() for path in (tmp_path / "pictures").iterdir()}
    assert set(drawn) == {"any_schedules.svg", "any_curves.svg", "any_differences.svg"}
    assert all(text.startswith("<?xml") for text in drawn.values())


def compare(tmp_path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(suite.main, ["compare", *arguments, "--results", str(tmp_path / "accuracy.csv")])


def test_any_two_arms_stand_side_by_side(tmp_path: Path, made: list[str]) -> None:
    start(tmp_path)
    shown = compare(tmp_path, "kd", "kd_hard").output
    for seed in (1, 2):
        assert shown.count(f"| trec | {seed} | -2.00 | +0.00 | 1.0× | 1.0× |") == 2, "one a schedule"
    assert shown.count("| `kd` | ") == 2
    assert compare(tmp_path, "kd", "kd_hard", "--without", "trec").output == (
        "Error: no finished runs of kd and kd_hard differ in nothing but the arm\n"
    )
    assert "there is no arm none of these; there are ft, kd, " in compare(tmp_path, "none of these", "kd").output


def test_a_run_that_was_made_again_is_compared_by_its_later_time(tmp_path: Path, made: list[str]) -> None:
    start(tmp_path)
    again = read_results(tmp_path / "accuracy.csv").query("arm == 'kd' and seed == 2").copy()
    again["seconds"] *= 3
    again.to_csv(tmp_path / "again.csv", index=False)
    shown = compare(tmp_path, "kd", "kd_hard", "--again", str(tmp_path / "again.csv")).output
    assert shown.count("| trec | 1 | -2.00 | +0.00 | 1.0× | 1.0× |") == 2
    assert shown.count("| trec | 2 | -2.00 | +0.00 | 3.0× |") == 2


def test_a_curve_stands_in_the_picture_only_where_it_has_the_seeds_of_the_best(
    tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start(tmp_path)
    table, drawn = tmp_path / "accuracy.csv", list[list[str]]()
    monkeypatch.setattr(findings, "curves", lambda epochs, arms, out: drawn.append(arms))
    options = ["show", "--study", "any", "--best", "kd_hard", "--results", str(table), "--pictures", str(tmp_path / "pictures")]
    CliRunner().invoke(suite.main, options, catch_exceptions=False)
    rows = table.read_text().splitlines()
    table.write_text("\n".join([rows[0], *rows[2:]]) + "\n")
    CliRunner().invoke(suite.main, options, catch_exceptions=False)
    assert drawn == [["kd", "kd_hard"], ["kd_hard"]]


def test_a_control_that_is_shown_as_best_is_not_compared_with_itself(tmp_path: Path, made: list[str]) -> None:
    start(tmp_path)
    options = ["show", "--study", "any", "--best", "kd", "--results", str(tmp_path / "accuracy.csv")]
    shown = CliRunner().invoke(suite.main, options, catch_exceptions=False).output
    assert "kd − kd" not in shown
    assert "| `kd_hard` |" in shown
    assert not any(line.startswith("| `kd` |") for line in shown.splitlines())


def test_a_row_of_another_arm_than_it_was_is_not_shown(tmp_path: Path, made: list[str]) -> None:
    start(tmp_path)
    table = tmp_path / "accuracy.csv"
    table.write_text(table.read_text().replace('""hard"":0.5', '""hard"":0.4'))
    shown = (
        CliRunner()
        .invoke(suite.main, ["show", "--study", "any", "--best", "kd_hard", "--results", str(table)], catch_exceptions=False)
        .output
    )
    assert "4 of 8 runs of any are finished" in shown
    assert "kd_hard" not in shown


def test_an_arm_that_the_study_lacks_is_refused_and_one_without_runs_has_no_pictures(tmp_path: Path, made: list[str]) -> None:
    options = ["show", "--study", "any", "--results", str(tmp_path / "accuracy.csv"), "--pictures", str(tmp_path / "pictures")]
    refused = CliRunner().invoke(suite.main, [*options, "--best", "edits"])
    assert refused.exit_code == 1
    assert "any has no arm edits; name one of its own with --best: kd, kd_hard" in refused.output
    early = CliRunner().invoke(suite.main, [*options, "--best", "kd_hard"], catch_exceptions=False)
    assert early.exit_code == 0
    assert "0 of 8 runs of any are finished" in early.output
    assert not (tmp_path / "pictures").exists()


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


def test_what_cannot_be_run_is_told_before_anything_is(
    tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(run: Run, place: Place) -> object:
        raise PipelineError("there is no such model")

    monkeypatch.setattr(suite, "params_of", refuse)
    ended = start(tmp_path)
    assert ended.exit_code == 1
    assert "there is no such model" in ended.output
    assert not made
