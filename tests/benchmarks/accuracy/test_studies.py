import pytest

from benchmarks.accuracy.arms import HERE, SIZES, all_arms
from benchmarks.accuracy.corpora import CORPORA
from benchmarks.accuracy.studies import Studies, runs_of
from pipeline.config import params as config
from pipeline.config.errors import PipelineError

STUDIES = config.load(HERE / "studies.yaml", Studies, studies="studies").studies


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_names_what_there_is_and_no_run_twice(study: str) -> None:
    runs = runs_of(study)
    assert len(set(runs)) == len(runs) > 0
    assert {run.case.task for run in runs} <= set(CORPORA)
    assert {run.arm for run in runs} <= set(all_arms())
    assert {run.student for run in runs} <= set(SIZES)


@pytest.mark.parametrize("study", STUDIES)
def test_every_arm_of_a_study_has_its_control_there(study: str) -> None:
    runs = set(runs_of(study))
    for run in runs:
        control = all_arms()[run.arm].control
        assert type(run)(run.case, control, run.student, run.epochs) in runs


def test_a_study_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(PipelineError, match="there is no study nothing; there are "):
        runs_of("nothing")
