import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluation.facts import TaskReport, gather
from pipeline.evaluation.page import page
from pipeline.evaluation.provenance import flattened, in_words, student_settings
from pipeline.evaluation.quality import EvaluationSettings
from tests.fake_run import OTHERS, STUDENT, STUDENTS, params, write_run

SETTINGS = EvaluationSettings.model_validate(params("movies")["evaluate"])


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> TaskReport:
    folder, students = tmp_path_factory.mktemp("data"), STUDENTS | OTHERS
    write_run(folder, students=students)
    (folder / "training" / "movies" / "tiny.json").unlink()
    return gather(folder, "movies", list(students), 20)


def shown(report: TaskReport) -> dict[str, dict[str, Any]]:
    """What the table of students says, by setting and student; a common value for all of them."""
    common, differing = student_settings(report)
    rows = {name: dict(zip(report.lineages, values, strict=True)) for name, values in differing}
    return {name: dict.fromkeys(report.lineages, value) for name, value in common} | rows


def test_nested_settings_become_dotted_names() -> None:
    assert flattened({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == [("a.b", 1), ("a.c.d", [2]), ("e", None)]


@pytest.mark.parametrize(("variants", "shown"), [("all", True), ("none", False)])
def test_the_weight_of_variants_is_shown_only_for_a_student_that_sees_some(variants: str, shown: bool) -> None:
    assert ("perturbed" in in_words(STUDENT | {"variants": variants})["objective"]) == shown


def test_a_mapping_that_stands_for_one_value_is_one_cell(report: TaskReport) -> None:
    rows = shown(report)
    assert rows["start"]["elsewhere"] == "checkpoint data/raw/small"
    assert (rows["variants"]["half"], rows["variants"]["worst"]) == ("rotate", "worst of 2")
    assert (rows["objective.perturbed"]["half"], rows["objective.perturbed"]["half-plain"]) == (1.0, "–")
    assert not any(isinstance(value, dict) for row in rows.values() for value in row.values())


def test_how_a_training_ended_stands_below_the_settings(report: TaskReport) -> None:
    rows = shown(report)
    assert list(rows)[-6:] == ["steps", "best epoch", "dev", "start.layers", "start.parameters copied", "start.embedding error"]
    assert (rows["steps"]["half"], rows["steps"]["tiny"], rows["best epoch"]["tiny"]) == (320, "–", 5)
    assert "start.start" not in rows, "the setting says it"


def test_a_student_from_scratch_has_a_column_like_any_other(report: TaskReport) -> None:
    random = dict(report.lineages["worst"]) | {"start": {"start": "scratch"}}
    rows = shown(replace(report, lineages={"half": report.lineages["half"], "worst": random}))
    assert rows["start.layers"] == {"half": [0, 2, 4], "worst": "–"}


def origins(folder: Path, *recipes: list[str], variants: int = 2, **details: Any) -> str:
    """The definition tables of a set of variants made by these recipes, as text."""
    write_run(folder, variants=variants, students={"half": STUDENT}, recipes=recipes)
    report = gather(folder, "movies", ["half"], 20)
    shown = report.perturbations.model_copy(update={"details": report.perturbations.details | details})
    text = page([replace(report, perturbations=shown)], SETTINGS)
    return re.sub(r"<[^>]+>", " ", text.split('<div class="origins">')[1].split('<table class="students">')[0])


def test_a_masked_language_model_is_shown_with_what_it_was_fitted_from(tmp_path: Path) -> None:
    words = {"model": "abc", "fitted": True, "perplexity": 4.25}
    settings = {"masked_lm": {"replace": 0.4, "candidates": 15, "batch_rows": 64}}
    text = origins(tmp_path, ["masked_lm"], words=words, settings=settings)
    for name, value in settings["masked_lm"].items() | words.items() - {("fitted", True)} | {("fitted", "yes")}:
        assert re.search(rf"masked_lm\.{name}\s+{value}\s", text), name


@pytest.mark.parametrize(("recipes", "variants"), [([["mask"]], 2), ([["mask"], ["swap", "perturb"]], 1)])
def test_a_set_that_is_nowhere_perturbed_is_shown_without_a_search_a_codec_or_a_radius(
    recipes: list[list[str]], variants: int, tmp_path: Path
) -> None:
    text = origins(tmp_path, *recipes, variants=variants)  # the second recipe is one that no variant has got to
    assert re.search(r"recipes\s+mask\s+text_edits.mask\s+0.12\s", text)
    for name in ("objective", "radius", "Radius", "codec", "width", "steps", "alpha", "masked_lm", "swap"):
        assert name not in text, name


def test_the_settings_of_the_steps_in_use_are_shown_and_of_no_others(tmp_path: Path) -> None:
    text = origins(tmp_path, ["delete", "perturb"], ["mix"], snapshots=3)
    assert re.search(r"recipes\s+delete \+ perturb · mix\s", text)
    shown = {"objective", "norm", "Radius found", "codec", "text_edits.delete", "mixing.alpha"}
    assert {name for name in shown if name in text} == shown
    assert re.search(r"snapshots of the scout\s+3\s", text)
    for name in ("text_edits.mask", "masked_lm", "seed"):
        assert name not in text, name
