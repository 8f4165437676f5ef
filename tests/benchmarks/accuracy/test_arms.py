from pathlib import Path

import pytest
import yaml

from benchmarks.accuracy.arms import PRECISION, SIZES, STUDENT, Models, Run, all_arms, base
from benchmarks.accuracy.corpora import Case
from pipeline.augment.recipes import followed_by
from pipeline.config import params as config
from pipeline.config.errors import PipelineError
from pipeline.config.params import Settings
from pipeline.config.sections import MASKED_LM, SURROGATE, TEACH, augment_places, student_places
from pipeline.config.settings import (
    AugmentSettings,
    EvaluationSettings,
    InferenceSettings,
    MaskedLMSettings,
    RuntimeSettings,
    StudentSettings,
    SurrogateSettings,
    TrainingSettings,
)
from pipeline.distill.dataset import check_policy


class Needs(Settings):
    """What the stages read."""

    teach: TrainingSettings
    masked_lm: MaskedLMSettings
    inference: InferenceSettings
    augment: AugmentSettings
    surrogate: SurrogateSettings
    student: StudentSettings
    evaluate: EvaluationSettings
    runtime: RuntimeSettings


RUNS = [*((arm, "half") for arm in all_arms()), *(("kd", student) for student in SIZES if student != "half")]
CORPUS = {"files": "train.csv", "text": "text", "label": "label", "duplicates": "drop"}
MODELS = Models("pretrained-model", "masked-lm")


@pytest.mark.parametrize(("arm", "student"), RUNS)
def test_every_arm_is_a_parameter_file_that_the_stages_read(arm: str, student: str, tmp_path: Path) -> None:
    run = Run(Case("trec", 500, 3), arm, student, 18)
    path = tmp_path / "params.yaml"
    params = run.params(CORPUS, MODELS, tmp_path)
    path.write_text(yaml.safe_dump(params))
    needs = config.load(
        path,
        Needs,
        teach=TEACH,
        masked_lm=MASKED_LM,
        surrogate=SURROGATE,
        student=student_places(params, STUDENT),
        augment=augment_places(params, "trec"),
        **{name: name for name in ("inference", "evaluate", "runtime")},
    )
    assert needs.student.training.num_train_epochs == run.all_epochs
    assert {needs.teach.seed, needs.augment.seed, needs.student.training.seed} == {3}
    stored = all_arms()[arm].augment is not None
    assert (needs.student.variant_policy != "none") == stored
    if stored:
        checkpoints = needs.surrogate.checkpoints if needs.augment.needs_surrogate() else 0
        check_policy(needs.student.variant_policy, followed_by(needs.augment, checkpoints), checkpoints)


def test_a_run_is_what_differs_from_the_base_and_a_hash_of_that(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, other = (Run(Case("trec", 500, 3), arm, "half", 18).settings() for arm in ("kd", "kd_mse"))
    assert plain == {"student": {}, "size": {"num_hidden_layers": 3}, "epochs": 18, "base": plain["base"]}
    assert other == plain | {"student": {"loss": {"form": "mse"}}}
    assert Run(Case("trec", 500, 3), "kd_long", "half", 10).settings()["epochs"] == 10 * all_arms()["kd_long"].times
    name = Run(Case("trec", 500, 3), "kd", "half", 18).name
    monkeypatch.setitem(base(), "teach", {"num_train_epochs": 4})
    assert Run(Case("trec", 500, 3), "kd", "half", 18).settings()["base"] != plain["base"]
    assert Run(Case("trec", 500, 3), "kd", "half", 18).name != name


def test_an_arm_that_names_layers_is_for_the_student_that_has_as_many() -> None:
    with pytest.raises(PipelineError, match="the arm kd_bottom names the layers of the student half; tiny has others"):
        Run(Case("trec", 500, 3), "kd_bottom", "tiny", 18).params(CORPUS, MODELS, Path())


@pytest.mark.parametrize("arm", ["kd", "words", "tinybert"])
def test_a_run_in_float32_is_another_run_which_differs_in_the_precision_alone(arm: str) -> None:
    usual, other = (Run(Case("trec", 500, 3), arm, "half", 18, precision) for precision in (PRECISION, "float32"))
    assert usual == Run(Case("trec", 500, 3), arm, "half", 18)
    assert usual.identity != other.identity
    assert usual.name != other.name
    assert usual.settings()["base"] != other.settings()["base"], "else they would share a teacher"
    params, others = (str(run.params(CORPUS, MODELS, Path("case"))) for run in (usual, other))
    assert PRECISION in params
    assert params.replace(PRECISION, "float32").replace(usual.name, other.name) == others
