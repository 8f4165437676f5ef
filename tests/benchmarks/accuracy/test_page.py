from pathlib import Path

from click.testing import CliRunner

from benchmarks.accuracy.__main__ import main
from benchmarks.accuracy.page import PLACE

ROOT = Path(__file__).parents[3]


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
