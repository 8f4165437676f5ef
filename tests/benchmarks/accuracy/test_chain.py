from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.accuracy import arms, chain, corpora
from benchmarks.accuracy.arms import Models, Run, all_arms
from benchmarks.accuracy.chain import Place, result_of, seconds_of
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
    fewer = all_arms()["kd_hidden"].model_copy(update={"score": {"hidden": [2, 4]}})
    monkeypatch.setitem(all_arms(), "kd_hidden", fewer)
    for arm in ("words", "words_teacher", "words_long", "tinybert"):
        monkeypatch.setitem(all_arms(), arm, all_arms()[arm].model_copy(update={"fit": FIT}))
    monkeypatch.setitem(CORPORA, "trec", replace(CORPORA["trec"], max_length=MAX_LENGTH))


@pytest.mark.parametrize(
    "arm", ["kd", "own", "tokens", "general", "words", "words_teacher", "scout", "kd_hidden", "online_own", "online_teacher"]
)
def test_an_arm_goes_through_the_stages_and_leaves_a_row(place: Place, arm: str) -> None:
    run = Run(CASE, arm, "half", 9)
    result, curve = result_of(run, place)
    assert (result.task, result.rows, result.seed, result.arm, result.epochs) == ("trec", 40, 1, arm, 9)
    assert 0 <= result.value <= 1
    assert result.test_rows == 16 + 20
    assert result.steps == 2 * 9
    assert [epoch["epoch"] for epoch in curve] == list(range(1, 10))
    assert not (place.work / CASE.name / run.name).exists(), "a finished run leaves nothing that fills the disk"


def test_arms_of_a_case_share_teacher_and_scores_and_differ_in_what_they_learn_from(place: Place) -> None:
    plain, again, varied = (result_of(Run(CASE, arm, "half", 2), place)[0] for arm in ("kd", "own", "tokens"))
    assert plain.manifest == again.manifest != varied.manifest
    assert plain.teacher_value == again.teacher_value == varied.teacher_value
    assert plain.bytes == again.bytes < varied.bytes
    assert plain.stage_one_seconds == 0 < varied.stage_one_seconds
    later = result_of(Run(CASE, "tokens", "half", 1), place)[0]
    assert later.manifest == varied.manifest
    assert later.stage_one_seconds == varied.stage_one_seconds, "what it took to make them, not to find them"


@pytest.mark.parametrize("arm", ["unlabelled", "unlabelled_edits"])
def test_texts_without_labels_are_more_rows_of_the_same_teacher(
    place: Place, arm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "TEST_ROWS", 20)
    case = Case("trec", 40, 2)
    plain = result_of(Run(case, "kd", "half", 4), place)[0]
    more = result_of(Run(case, arm, "half", 4), place)[0]
    assert (plain.train_rows, more.train_rows) == (40, 40 + 16)
    assert (plain.teacher, plain.test_rows) == (more.teacher, more.test_rows)
    assert (plain.steps, more.steps) == (4 * 2, 2 * 2)
    assert result_of(Run(case, "kd", "half", 4), place)[0].manifest == plain.manifest


def test_what_other_code_made_is_not_built_upon(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(Case("trec", 40, 3), "kd", "half", 1)
    result_of(run, place)
    monkeypatch.setattr(chain, "_code", lambda: "changed")
    with pytest.raises(PipelineError, match=r"trec-40-3 was made by other code, .*; name another --work"):
        result_of(run, place)


def test_shards_cost_what_it_took_to_make_them_whichever_runs_did(tmp_path: Path) -> None:
    notes, seconds = tmp_path / "seconds.json", 0.5
    assert seconds_of({"a", "b"}, {"a", "b"}, 20.0, notes) == pytest.approx(20)
    assert seconds_of({"a", "b"}, set(), seconds, notes) == pytest.approx(20), "found, not made"
    assert seconds_of({"a", "b", "c", "d"}, {"c", "d"}, 40.0, notes) == pytest.approx(60), "half of them by the first run"
    assert seconds_of({"c", "x"}, set(), seconds, notes) == pytest.approx(40), "x is of a run that was killed"
    assert seconds_of({"y"}, set(), seconds, notes) == seconds


def test_a_student_that_first_learns_layers_goes_on_from_them_and_its_row_counts_both_phases(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {
        "layers_first": {"num_train_epochs": 2, "learning_rate": 1e-3},
        "augment": all_arms()["tinybert"].augment | {"variants": 3},
    }
    monkeypatch.setitem(all_arms(), "tinybert", all_arms()["tinybert"].model_copy(update=short))
    result, _ = result_of(Run(CASE, "tinybert", "half", 3), place)
    assert result.steps == 2 * 3 * 40 // 32 + 1 + 2 * 10, "two epochs of three copies of each row, then ten of one of them"


def test_the_same_run_gives_the_same_value(place: Place) -> None:
    one, again = (result_of(Run(CASE, "kd", "half", 3), place)[0] for _ in range(2))
    assert one.model_dump(exclude={"seconds"}) == again.model_dump(exclude={"seconds"})


def test_a_narrower_student_has_no_online_reference(place: Place) -> None:
    with pytest.raises(PipelineError, match="only label perturbations of a student that is as wide as itself"):
        result_of(Run(CASE, "online_own", "narrow", 2), place)


def test_an_arm_that_needs_a_masked_lm_says_where_to_get_one(place: Place) -> None:
    with pytest.raises(
        PipelineError, match="the arm general edits texts with a masked language model; name one with --masked-lm"
    ):
        result_of(Run(CASE, "general", "half", 2), replace(place, models=replace(place.models, masked_lm=None)))
