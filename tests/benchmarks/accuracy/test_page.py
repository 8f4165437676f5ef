import re
from pathlib import Path

from click.testing import CliRunner

from benchmarks.accuracy.__main__ import PAGES, main
from benchmarks.accuracy.page import PLACE

ROOT = Path(__file__).parents[3]
COMMITTED = {page.name: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.replace("−", "-").strip("|").split("|")]


def test_the_tables_of_the_pages_are_what_the_finished_runs_say(tmp_path: Path) -> None:
    for name, text in COMMITTED.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    pages = [part for name in COMMITTED for part in ("--page", str(tmp_path / name))]
    results = str(ROOT / "benchmarks/results/accuracy.csv")
    made = CliRunner().invoke(main, ["fill", *pages, "--results", results], catch_exceptions=False)
    assert made.exit_code == 0
    assert len(PLACE.findall("".join(COMMITTED.values()))) >= 4
    for name, text in COMMITTED.items():
        assert (tmp_path / name).read_text(encoding="utf-8") == text, "bring it up to date: benchmarks.accuracy fill"


def test_the_summary_has_the_numbers_of_the_tables_it_is_copied_from() -> None:
    tables = [cells(line) for line in COMMITTED["ablations.md"].splitlines()]
    first = next(number for number, row in enumerate(tables) if row[:2] == ["task", "teacher"])
    last = next(number for number, row in enumerate(tables) if row[0] == "**mean**")
    by_task = [tables[first], *tables[first + 2 : last + 1]]
    medians = {arm: values for arm, *values in zip(*by_task, strict=False)}
    over_kd = {row[0]: [row[5], *row[8:]] for row in tables if row[2:4] == ["`kd`", "4: 12"]}
    page = COMMITTED["RESULTS.md"].replace(" ¹ |", " |")
    summary = [cells(line) for line in page.split("## ")[1].splitlines() if line.startswith("| ")][1:]
    assert len(summary) >= 3
    for what, *numbers in summary:
        arm = re.search(r"`\w+`", what)
        assert numbers[:5] == medians[arm[0].strip("`") if arm else what]
        assert numbers[6:] == over_kd.get(arm[0] if arm else what, [""] * 3)
