from dataclasses import replace

import pytest

from benchmarks.accuracy import arms, chain, corpora
from benchmarks.accuracy.arms import Models, Run, all_arms
from benchmarks.accuracy.chain import Place, result_of
from benchmarks.accuracy.corpora import CORPORA, Case
from pipeline.config.errors import PipelineError
from tests.benchmarks.accuracy.sets import save_set
from tests.world import FIT, MAX_LENGTH, make_task, save_masked_lm, save_teacher

CASE = Case("trec", 40, 1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A small set and a tiny pretrained model."""
    folder = tmp_path_factory.mktemp("accuracy")
    save_set(folder / "data", "trec", 60, 12, 16)
    models = Models(str(save_teacher(folder / "pretrained", make_task())), str(save_masked_lm(folder / "masked_lm")))
    return Place(folder / "data", models, folder / "work")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Students and schedules that fit the tiny model."""
    for name, size in {"half": {"layers": 2}, "narrow": {"layers": 2, "hidden": 16, "heads": 2, "intermediate": 32}}.items():
        monkeypatch.setitem(arms.SIZES, name, size)
    monkeypatch.setattr(chain, "TEACHER_STEPS", 2)
    for arm in ("words", "words_teacher", "words_long", "tinybert"):
        monkeypatch.setitem(all_arms(), arm, all_arms()[arm].model_copy(update={"fit": FIT}))
    monkeypatch.setitem(CORPORA, "trec", replace(CORPORA["trec"], max_length=MAX_LENGTH))


@pytest.mark.parametrize("arm", ["words_teacher", "scout", "online_own"])
def test_an_arm_goes_through_the_stages_and_leaves_a_row(place: Place, arm: str) -> None:
    run = Run(CASE, arm, "half", 4)  # eight steps: as many as a teacher has snapshots
    result, curve = result_of(run, place)
    assert (result.task, result.rows, result.seed, result.arm, result.epochs) == ("trec", 40, 1, arm, 4)
    assert 0 <= result.value <= 1
    assert result.test_rows == 16 + 20
    assert result.steps == 2 * 4
    assert [epoch["epoch"] for epoch in curve] == list(range(1, 5))
    assert not (place.work / CASE.name / run.name).exists(), "a finished run leaves nothing that fills the disk"


def test_arms_of_a_case_share_teacher_and_scores_and_differ_in_what_they_learn_from(place: Place) -> None:
    plain, again, varied = (result_of(Run(CASE, arm, "half", 2), place)[0] for arm in ("kd", "kd_mse", "tokens"))
    assert plain.manifest == again.manifest != varied.manifest
    assert plain.teacher_value == again.teacher_value == varied.teacher_value
    assert plain.bytes == again.bytes < varied.bytes
    assert plain.stage_one_seconds == 0 < varied.stage_one_seconds
    later = result_of(Run(CASE, "tokens", "half", 1), place)[0]
    assert later.manifest == varied.manifest
    assert later.stage_one_seconds == varied.stage_one_seconds, "what it took to make them, not to find them"


def test_texts_without_labels_are_more_rows_of_the_same_teacher(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "TEST_ROWS", 20)
    case = Case("trec", 40, 2)
    plain = result_of(Run(case, "kd", "half", 4), place)[0]
    more = result_of(Run(case, "unlabelled_edits", "half", 4), place)[0]
    assert (plain.train_rows, more.train_rows) == (40, 40 + 16)
    assert (plain.teacher, plain.test_rows) == (more.teacher, more.test_rows)
    assert (plain.steps, more.steps) == (4 * 2, 2 * 2)
    assert result_of(Run(case, "kd", "half", 4), place)[0].manifest == plain.manifest


def test_what_other_code_made_is_not_built_upon(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(CASE, "kd", "half", 1)
    result_of(run, place)
    monkeypatch.setattr(chain, "_code", lambda: "changed")
    with pytest.raises(PipelineError, match=r"trec-40-1 was made by other code, .*; name another --work"):
        result_of(run, place)
