from pathlib import Path

from click.testing import CliRunner

from benchmarks.accuracy.__main__ import main
from benchmarks.accuracy.page import PLACE, filled_in

ROOT = Path(__file__).parents[3]


def test_each_place_has_what_is_told_of_its_study_and_the_rest_stays() -> None:
    page = "one\n<!-- show a kd -->\nold\ntable\n<!-- end of a -->\ntwo\n<!-- show b own -->\n<!-- end of b -->\nthree\n"
    filled = filled_in(page, lambda study, best: f"{study} by {best}")
    assert filled.split("\n") == [
        "one", "<!-- show a kd -->", "", "a by kd", "", "<!-- end of a -->",
        "two", "<!-- show b own -->", "", "b by own", "", "<!-- end of b -->", "three", "",
    ]  # fmt: skip
    assert filled_in(filled, lambda study, best: f"{study} by {best}") == filled


def test_the_tables_of_the_results_are_what_the_finished_runs_say(tmp_path: Path) -> None:
    page = tmp_path / "RESULTS.md"
    page.write_text((ROOT / "benchmarks/RESULTS.md").read_text(encoding="utf-8"), encoding="utf-8")
    made = CliRunner().invoke(
        main, ["fill", "--page", str(page), "--results", str(ROOT / "benchmarks/results/accuracy.csv")], catch_exceptions=False
    )
    assert made.exit_code == 0
    text = page.read_text(encoding="utf-8")
    assert len(PLACE.findall(text)) >= 4
    assert text == (ROOT / "benchmarks/RESULTS.md").read_text(encoding="utf-8"), "bring it up to date: benchmarks.accuracy fill"
