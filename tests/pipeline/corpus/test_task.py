from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.errors import PipelineError
from pipeline.corpus.task import TASK_FILE, Floats, Kind, Metric, Task, fitting_metrics, measure, one_answer

rows = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def task(metric: Metric, labels: int = 2) -> Task:
    kind: Kind = "regression" if metric in fitting_metrics("regression") else "classification"
    names = tuple(f"label{number}" for number in range(labels)) if kind == "classification" else ()
    return Task(name="t", kind=kind, metric=metric, labels=names, pair=False)


def one_hot(answers: Floats, outputs: int) -> Floats:
    """Logits whose highest is that of the answer."""
    logits: Floats = np.eye(outputs)[answers.astype(int)] * 3 - 1
    return logits


@given(generator=rows, count=st.integers(2, 4))
@settings(max_examples=8)
def test_classification_is_measured_as_scikit_learn_does(generator: np.random.Generator, count: int) -> None:
    labels, logits = generator.integers(0, count, 40), generator.normal(size=(40, count)).astype(np.float32)
    answers = logits.argmax(axis=1)
    wanted = {
        "accuracy": sklearn.metrics.accuracy_score(labels, answers),
        "macro_f1": sklearn.metrics.f1_score(labels, answers, average="macro"),
        "mcc": sklearn.metrics.matthews_corrcoef(labels, answers),
    }
    wanted |= {"f1": sklearn.metrics.f1_score(labels, answers)} if count == 2 else {}
    assert {metric: measure(task(metric, count), labels, logits) for metric in wanted} == pytest.approx(wanted)  # type: ignore[arg-type]
    assert {*wanted, "f1"} == {*fitting_metrics("classification")}


@given(generator=rows)
def test_regression_is_measured_as_scipy_does(generator: np.random.Generator) -> None:
    labels = generator.normal(size=30)
    logits = (labels + generator.normal(size=30))[:, None] ** 3
    assert measure(task("pearson"), labels, logits) == pytest.approx(scipy.stats.pearsonr(labels, logits[:, 0])[0])
    assert measure(task("spearman"), labels, logits) == pytest.approx(scipy.stats.spearmanr(labels, logits[:, 0])[0])


LABELS, ANSWERS = np.array([1, 1, 1, 0]), np.array([1, 1, 0, 0])
"""F1 is 4/5 for the second label and 2/3 for the first."""


@pytest.mark.parametrize("metric", fitting_metrics("regression"))
@pytest.mark.filterwarnings("error")
def test_a_correlation_with_equal_answers_or_equal_labels_is_zero_and_no_warning(metric: Metric) -> None:
    varied, equal = np.array([1.0, 2.0, 4.0]), np.full(3, 0.3)
    for labels, answers in ((varied, equal), (equal, varied), (equal, equal), (equal[:1], varied[:1])):
        assert measure(task(metric), labels, answers[:, None]) == 0


@pytest.mark.parametrize("metric", ["accuracy", "f1", "macro_f1", "mcc"])
def test_one_answer_to_all_is_the_one_that_is_worth_most(metric: Metric) -> None:
    """Of F1 that is the second label, however rare it is."""
    labels = np.array([0.0] * 6 + [1.0] * 4)
    found = one_answer(task(metric), labels)
    assert found.shape == (10, 2)
    assert len(np.unique(found, axis=0)) == 1
    always = [measure(task(metric), labels, np.tile(np.eye(2)[label], (10, 1))) for label in (0, 1)]
    assert measure(task(metric), labels, found) == max(always)
    assert (metric == "f1") <= bool(found[0].argmax() == 1)


def test_a_folder_that_no_stage_made_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=rf"^{tmp_path} has no {TASK_FILE}; .* dvc repro$"):
        Task.read(tmp_path)


def test_an_answer_that_no_row_has_costs_macro_f1_one_error_and_not_a_whole_label() -> None:
    answers = np.array([0, 2, 1, 1])
    assert measure(task("macro_f1", 3), np.array([0, 0, 1, 1]), one_hot(answers, 3)) == pytest.approx((2 / 3 + 1) / 2)
