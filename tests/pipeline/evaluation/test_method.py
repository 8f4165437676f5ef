from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.augment.recipes import Step
from pipeline.config.params import overlaid
from pipeline.distill.dataset import Use
from pipeline.evaluation.facts import TaskReport, gather
from pipeline.evaluation.method import RAISED, STEPS, USES, listed, method
from pipeline.perturbation.search import CONTROLS, Objective
from tests.fake_run import OTHERS, STUDENTS, write_run


def reported(folder: Path, variants: int = 2, **changed: Any) -> TaskReport:
    students = STUDENTS | OTHERS
    write_run(folder, students=students, variants=variants, **changed)
    return gather(folder, "movies", list(students), 20)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> TaskReport:
    return reported(tmp_path_factory.mktemp("data"))


def with_settings(report: TaskReport, student: str, **changed: Any) -> list[str]:
    """The method of one student alone, some of whose settings are other ones."""
    lineage = dict(report.lineages[student])
    settings = dict(lineage["settings"])
    return method(replace(report, lineages={student: lineage | {"settings": overlaid(settings, changed)}}))


def test_every_setting_that_can_be_chosen_has_its_words() -> None:
    assert set(STEPS) == set(Step.__args__)  # type: ignore[attr-defined]
    assert set(RAISED) == set(Objective.__args__) - set(CONTROLS)  # type: ignore[attr-defined]
    assert set(USES) == set(Use.__args__[0].__args__) - {"none"}  # type: ignore[attr-defined]


def test_students_that_learn_alike_share_a_sentence_and_a_control_has_its_own(report: TaskReport) -> None:
    said = method(report)
    assert said[0] == "The teacher answered every example once, 60 training rows among them; no student ever ran it."
    variant = "the teacher’s answer to one stored variant, another each epoch"
    assert (
        f"Students half, narrow and elsewhere learn for 4 epochs: the teacher’s answer to the untouched input; {variant}."
        in said
    )
    assert "Student half-plain learns for 4 epochs: the teacher’s answer to the untouched input." in said


def test_how_variants_came_about_is_said_with_this_runs_radius(report: TaskReport) -> None:
    assert method(report)[1] == (
        "Of every training row 2 variants were stored: a perturbation δ of the word embeddings. The teacher answered each of "
        "them as it is stored. δ follows the teacher’s gradient in 3 steps to raise the divergence from the answer to the "
        "untouched input, within an L2 ball around each token, and is at most 0.104 times as long as the mean word embedding."
    )


def test_text_edits_have_no_search(tmp_path: Path) -> None:
    said = method(reported(tmp_path, recipes=(["mask"], ["delete", "swap"])))[1]
    assert said == (
        "Of every training row 2 variants were stored, in turn: masked tokens; tokens left out, then tokens that trade places. "
        "The teacher answered each of them as it is stored."
    )


@pytest.mark.parametrize(
    ("fitted", "how"), [(True, "was fitted to the training texts, without their labels"), (False, "was taken as it is")]
)
def test_where_the_words_come_from_is_said(tmp_path: Path, fitted: bool, how: str) -> None:
    report = reported(tmp_path, recipes=(["masked_lm"],))
    details = report.perturbations.details | {"words": {"model": "some", "fitted": fitted, "perplexity": None}}
    said = method(replace(report, perturbations=report.perturbations.model_copy(update={"details": details})))[1]
    assert said == (
        "Of every training row 2 variants were stored: words replaced by a masked language model’s. "
        f"The teacher answered each of them as it is stored. The masked language model {how}."
    )


def test_without_variants_none_are_mentioned(tmp_path: Path) -> None:
    assert not any("variants were stored" in paragraph for paragraph in method(reported(tmp_path, variants=0)))


def test_the_sources_of_a_student_are_those_that_weigh(report: TaskReport) -> None:
    last = with_settings(report, "half", objective={"soft": 0.0, "hard": 1.0}, variants={"worst_of": 3})[-1]
    worst = "the teacher’s answer to that of 3 stored variants which the student answers worst"
    assert last == f"Student half learns for 4 epochs: the label; {worst}."


def test_names_are_listed_as_in_a_sentence() -> None:
    assert [listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
