from pathlib import Path

import pytest
import yaml

from benchmarks.accuracy.arms import SIZES, STUDENT, Models, Run, all_arms, base
from benchmarks.accuracy.corpora import CORPORA, Case
from pipeline import config
from pipeline.augment.recipes import AugmentSettings, ScoreSettings
from pipeline.config import Settings
from pipeline.distill.settings import ScoutSettings, StudentSettings
from pipeline.distill.uses import check_use
from pipeline.evaluation import EvaluationSettings
from pipeline.finetuning import OptimiserSettings
from pipeline.runtime import RuntimeSettings


class Needs(Settings):
    """What the stages read."""

    teach: OptimiserSettings
    score: ScoreSettings
    augment: AugmentSettings
    scout: ScoutSettings
    student: StudentSettings
    evaluate: EvaluationSettings
    runtime: RuntimeSettings


@pytest.mark.parametrize("student", SIZES)
@pytest.mark.parametrize("arm", all_arms())
def test_every_arm_is_a_parameter_file_that_the_stages_read(arm: str, student: str, tmp_path: Path) -> None:
    run = Run(Case("trec", 500, 3), arm, student, 18)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(run.params(Models("teacher", "masked_lm"), tmp_path, tmp_path)))
    needs = config.load(
        path,
        Needs,
        student=("distill", f"students.{STUDENT}"),
        scout=("distill", "scouts.trec"),
        **{name: name for name in ("teach", "score", "augment", "evaluate", "runtime")},
    )
    assert needs.student.optimiser.epochs == run.all_epochs
    assert {needs.teach.seed, needs.augment.seed, needs.student.optimiser.seed} == {3}
    stored = all_arms()[arm].augment is not None
    assert bool(needs.student.adversary.shards) == stored
    if stored:
        check_use(
            needs.student.variants, needs.augment.variants, needs.scout.snapshots if all_arms()[arm].scout is not None else 0
        )
    assert bool(needs.student.objective.hidden) == bool(needs.score.hidden)


def test_a_run_is_what_differs_from_the_base() -> None:
    plain, own = (Run(Case("trec", 500, 3), arm, "half", 18).settings() for arm in ("kd", "own"))
    assert plain == {"student": {}, "size": {"layers": 3}, "epochs": 18}
    assert own == plain | {"student": {"adversary": "student"}}
    assert Run(Case("trec", 500, 3), "kd_long", "half", 10).settings()["epochs"] == 10 * all_arms()["kd_long"].times


def test_arms_change_neither_seed_nor_store() -> None:
    assert base()["augment"]["seed"] == 1
    assert set(CORPORA) >= {"trec", "cr", "mrpc", "sst2_sent", "subj", "banking77", "stsb", "cola", "rte"}
