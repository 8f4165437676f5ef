from dataclasses import replace

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
    assert {replace(run, arm=all_arms()[run.arm].control) for run in runs} <= set(runs), "every arm has its control"


def test_a_study_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(PipelineError, match="there is no study nothing; there are "):
        runs_of("nothing")
