from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.accuracy import arms
from benchmarks.accuracy.arms import LAYERS, PRECISION, SIZES, STUDENT, Models, Run, all_arms, base, usual_precision
from benchmarks.accuracy.corpora import Case
from pipeline.config.settings import AugmentSettings, InferenceSettings
from pipeline.config import params as config
from pipeline.config.errors import PipelineError
from pipeline.config.params import Settings
from pipeline.config.settings import RuntimeSettings
from pipeline.distill.dataset import check_use
from pipeline.config.settings import SurrogateSettings, StudentSettings
from pipeline.config.settings import EvaluationSettings
from pipeline.config.settings import TrainingSettings


class Needs(Settings):
    """What the stages read."""

    teach: TrainingSettings
    score: InferenceSettings
    augment: AugmentSettings
    scout: SurrogateSettings
    student: StudentSettings
    evaluate: EvaluationSettings
    runtime: RuntimeSettings


RUNS = [
    (arm, student) for arm in all_arms() for student in SIZES if student == "half" or "layers" not in all_arms()[arm].student
]
CORPUS = {"files": "train.csv", "text": "text", "label": "label", "duplicates": "drop"}
MODELS = Models("pretrained-model", "masked-lm")


@pytest.mark.parametrize(("arm", "student"), RUNS)
def test_every_arm_is_a_parameter_file_that_the_stages_read(arm: str, student: str, tmp_path: Path) -> None:
    run = Run(Case("trec", 500, 3), arm, student, 18)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(run.params(CORPUS, MODELS, tmp_path)))
    needs = config.load(
        path,
        Needs,
        student=("distill", f"students.{STUDENT}"),
        scout=("distill", "scout"),
        **{name: name for name in ("teach", "score", "augment", "evaluate", "runtime")},
    )
    assert needs.student.optimiser.num_train_epochs == run.all_epochs
    assert {needs.teach.seed, needs.augment.seed, needs.student.optimiser.seed} == {3}
    stored = all_arms()[arm].augment is not None
    assert (needs.student.variants != "none") == stored
    if stored:
        snapshots = needs.scout.snapshots if all_arms()[arm].scout is not None else 0
        check_use(needs.student.variants, needs.augment.aimed_at(snapshots), snapshots)


def test_a_run_is_what_differs_from_the_base_and_a_hash_of_that(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, other = (Run(Case("trec", 500, 3), arm, "half", 18).settings() for arm in ("kd", "kd_mse"))
    assert plain == {"student": {}, "size": {"layers": 3}, "epochs": 18, "base": plain["base"]}
    assert other == plain | {"student": {"objective": {"form": "mse"}}}
    assert Run(Case("trec", 500, 3), "kd_long", "half", 10).settings()["epochs"] == 10 * all_arms()["kd_long"].times
    name = Run(Case("trec", 500, 3), "kd", "half", 18).name
    monkeypatch.setitem(base(), "teach", base()["teach"] | {"learning_rate": 1.0})
    assert Run(Case("trec", 500, 3), "kd", "half", 18).settings()["base"] != plain["base"]
    assert Run(Case("trec", 500, 3), "kd", "half", 18).name != name


def test_who_learns_from_labels_alone_starts_from_the_pretrained_model() -> None:
    student = Run(Case("trec", 500, 3), "ft", "half", 18).params(CORPUS, MODELS, Path())["students"][STUDENT]
    assert student["start"] == {"checkpoint": "pretrained-model"}


def test_who_has_learnt_layers_starts_from_what_it_has_learnt() -> None:
    run = Run(Case("trec", 500, 3), "tinybert", "half", 18)
    params = run.params(CORPUS, MODELS, Path("case"))
    assert params["students"][STUDENT]["start"] == {"checkpoint": f"case/{run.name}/{LAYERS}"}
    assert params[LAYERS] == base()["distill"]["optimiser"] | {"num_train_epochs": 20, "learning_rate": 5e-5, "seed": 3}
    assert LAYERS not in Run(Case("trec", 500, 3), "general_all", "half", 18).params(CORPUS, MODELS, Path("case"))


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ("kd", None),
        ("general", {"model": "masked-lm", "fit": False}),
        ("words", {"model": "pretrained-model", "fit": True}),
        ("words_teacher", {"model": "case/teacher", "fit": True}),
    ],
)
def test_whose_words_an_arm_takes(arm: str, words: dict[str, Any] | None) -> None:
    task = Run(Case("trec", 500, 3), arm, "half", 18).params(CORPUS, MODELS, Path("case"))["tasks"]["trec"]
    assert (task["words"], task["teacher"]["model"]) == (words, "pretrained-model")


def test_an_arm_that_names_layers_is_for_the_student_that_has_as_many() -> None:
    with pytest.raises(PipelineError, match="the arm kd_bottom names the layers of the student half; tiny has others"):
        Run(Case("trec", 500, 3), "kd_bottom", "tiny", 18).params(CORPUS, MODELS, Path())


@pytest.mark.parametrize(("slowdown", "precision"), [(18.0, "float32"), (None, PRECISION)])
def test_trainings_are_in_float32_where_bfloat16_is_slow(
    slowdown: float | None, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arms, "slow_bfloat16", lambda: slowdown)
    assert usual_precision() == precision


def precisions(content: Any) -> set[str]:
    """Every precision in the settings."""
    if not isinstance(content, dict):
        return set()
    below = (precisions(value) for value in content.values())
    return set().union(*below) | ({content["precision"]} if "precision" in content else set())


@pytest.mark.parametrize("arm", ["kd", "words", "tinybert"])
def test_a_run_in_float32_is_another_run_which_differs_in_the_precision_alone(arm: str) -> None:
    usual, other = (Run(Case("trec", 500, 3), arm, "half", 18, precision) for precision in (PRECISION, "float32"))
    assert usual == Run(Case("trec", 500, 3), arm, "half", 18)
    assert usual.identity != other.identity
    assert usual.name != other.name
    assert usual.settings()["base"] != other.settings()["base"], "else they would share a teacher"
    assert other.settings()["precision"] == "float32"
    assert "precision" not in usual.settings(), "or runs from before would be others"
    assert precisions(other.settings()) == {"float32"}
    (params, others) = (run.params(CORPUS, MODELS, Path("case")) for run in (usual, other))
    assert precisions(params) == {PRECISION, "float32"}
    assert precisions(others) == {"float32"}
    assert str(params).replace(PRECISION, "float32").replace(usual.name, other.name) == str(others)
