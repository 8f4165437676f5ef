import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from pipeline.config.errors import PipelineError
from pipeline.corpus.encoding import Batch
from pipeline.corpus.task import Floats
from pipeline.evaluation.quality import (
    Answer,
    agreement,
    check_answers,
    check_labelled,
    control_of,
    difference_interval,
    logits_of,
    quality,
    speeds,
    value_interval,
)
from pipeline.models.forward import logits_from_ids
from pipeline.shards.reader import Rows, Shards
from pipeline.shards.schema import shard_schema
from tests.architectures import of_type
from tests.fake_run import MOVIES, SCORES, answers, labels_of, score_columns, write_shards

ROWS = 37


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=2
    )
    config.id2label = dict(enumerate(MOVIES.labels))
    return BertForSequenceClassification(config).eval()


def rows_of(folder: Path, labels: Floats, changes: dict[str, Any] | None = None) -> Rows:
    columns = score_columns(MOVIES, "test", labels, answers(MOVIES, labels, 0.5, 0)) | (changes or {})
    write_shards(folder, "scores", MOVIES, {("test", 0): columns}, {})
    return Shards(folder).rows("test", 0)


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    return rows_of(tmp_path, labels_of(MOVIES, ROWS))


def one_by_one(model: PreTrainedModel, rows: Rows) -> Floats:
    with torch.inference_mode():
        ids = [torch.from_numpy(np.array(row.input_ids, dtype=np.int64))[None] for row in rows]
        return np.concatenate([model(input_ids=one).logits.numpy() for one in ids])


@pytest.mark.parametrize("batch_rows", [8, 100])
def test_logits_are_in_row_order_whatever_the_batches(model: PreTrainedModel, rows: Rows, batch_rows: int) -> None:
    wanted = one_by_one(model, rows)
    assert np.ptp(wanted[:, 0]) > 1e-3, "rows must differ, or their order would not be seen"
    np.testing.assert_allclose(logits_of(model, rows, 0, batch_rows), wanted, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "mobilebert", "xlnet"])
def test_padding_moves_no_logit_of_a_type_that_reads_it(kind: str, rows: Rows) -> None:
    sensitive = of_type(kind, vocab_size=50)
    np.testing.assert_allclose(logits_of(sensitive, rows, 0, 100), one_by_one(sensitive, rows), atol=1e-4)
    (speed,) = speeds([partial(logits_from_ids, sensitive)], rows, 0, 4, 1)
    assert speed.latency_ms > 0


def test_token_types_reach_the_model(model: PreTrainedModel, tmp_path: Path) -> None:
    labels = labels_of(MOVIES, 3)
    columns = score_columns(MOVIES, "test", labels, answers(MOVIES, labels, 0.5, 0))
    second = {"token_type_ids": [np.ones(len(ids), dtype=np.int8) for ids in columns["input_ids"]]}
    first_text = logits_of(model, rows_of(tmp_path / "first", labels), 0, 2)
    second_text = logits_of(model, rows_of(tmp_path / "second", labels, second), 0, 2)
    assert np.abs(first_text - second_text).min() > 1e-5


def test_quality_by_hand(model: PreTrainedModel, tmp_path: Path) -> None:
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"12345")
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"678")
    (tmp_path / "training.bin").write_bytes(b"not weights")
    labels = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    student = np.array([[2, 1], [1, 2], [2, 1], [2, 1], [2, 1]], dtype=np.float32)
    teacher = np.array([[2, 1], [1, 2], [1, 2], [1, 2], [1, 2]], dtype=np.float32)
    found = quality(model, tmp_path, MOVIES, labels, student, teacher)
    assert (found.value, found.retained, found.agreement) == (0.6, pytest.approx(0.75), 0.4)
    assert found.bytes == 8
    assert found.parameters == sum(weight.numel() for weight in model.state_dict().values())


def test_agreement_of_a_regression_is_pearson_even_where_the_metric_is_spearman() -> None:
    ranked = SCORES.model_copy(update={"metric": "spearman"})
    student, teacher = np.array([[1.0], [2.0], [10.0]]), np.array([[1.0], [2.0], [3.0]])
    assert agreement(ranked, student, teacher) == pytest.approx(np.corrcoef(student[:, 0], teacher[:, 0])[0, 1])


def test_the_interval_is_paired_and_agrees_with_the_normal_approximation() -> None:
    """Unpaired resampling would give an interval several times as wide for students that mostly answer alike."""
    random = np.random.default_rng(5)
    labels = random.integers(0, 2, 2000).astype(float)
    control = answers(MOVIES, labels, 1.0, 1)
    student = control.copy()
    changed = random.choice(2000, 60, replace=False)
    student[changed] = student[changed][:, ::-1]
    low, high = difference_interval(MOVIES, labels, student, control, 1000, ["a"])
    gain = (student.argmax(1) == labels).astype(float) - (control.argmax(1) == labels)
    half = 1.96 * gain.std() / np.sqrt(2000)
    assert low == pytest.approx(gain.mean() - half, abs=0.2 * half)
    assert high == pytest.approx(gain.mean() + half, abs=0.2 * half)


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(5, 40))
def test_swapping_student_and_control_mirrors_the_interval(seed: int, count: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 2, count).astype(float)
    one, other = answers(MOVIES, labels, 1.0, seed), answers(MOVIES, labels, 1.5, seed + 1)
    low, high = difference_interval(MOVIES, labels, one, other, 100, ["same"])
    assert low <= high
    assert difference_interval(MOVIES, labels, other, one, 100, ["same"]) == pytest.approx((-high, -low))


def test_the_interval_of_a_value_agrees_with_the_normal_approximation() -> None:
    labels = labels_of(MOVIES, 2000)
    logits = answers(MOVIES, labels, 1.0, 1)
    low, high = value_interval(MOVIES, labels, logits, 1000, ["a"])
    right = (logits.argmax(1) == labels).mean()
    half = 1.96 * np.sqrt(right * (1 - right) / 2000)
    assert (low, high) == pytest.approx((right - half, right + half), abs=0.2 * half)


def test_of_a_single_row_the_interval_is_its_value_or_difference() -> None:
    right, wrong = np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]])
    assert value_interval(MOVIES, np.array([1]), right, 100, ["a"]) == (1.0, 1.0)
    assert difference_interval(MOVIES, np.array([1]), right, wrong, 100, ["a"]) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("other", "control"),
    [
        ({"variants": "none", "layers": 3}, "b"),
        ({"variants": "none", "layers": 3, "objective": {"perturbed": 0.5}}, "b"),
        ({"variants": "rotate", "layers": 3}, None),
        ({"variants": "none"}, None),
        ({"variants": "none", "layers": 3, "seed": 2}, None),
    ],
)
def test_a_control_has_every_other_setting_and_no_further_one(other: dict[str, Any], control: str | None) -> None:
    own = {"variants": {"worst_of": 2}, "layers": 3} | ({"objective": {"perturbed": 1.0}} if "objective" in other else {})
    assert control_of("a", {"a": own, "b": other}) == control
    assert control_of("b", {"a": own, "b": other}) is None


class Clock:
    """Time that passes only when somebody answers."""

    def __init__(self) -> None:
        self.now = 100.0
        self.calls: list[tuple[str, int]] = []

    def answer(self, name: str, cost: Callable[[int], float]) -> Answer:
        def answer(batch: Batch) -> None:
            rows = len(batch["input_ids"])
            self.calls.append((name, rows))
            self.now += cost(rows)

        return answer


def test_speed_is_the_median_of_turns_without_the_warm_up(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    slow_start = clock.answer("teacher", lambda rows: 9.0 if len(clock.calls) < 20 else 0.006 * rows**0.5)
    found = speeds([slow_start, clock.answer("student", lambda rows: 0.002 * rows**0.5)], rows, 0, ROWS, 3)
    assert [speed.latency_ms for speed in found] == pytest.approx([6.0, 2.0])
    assert [speed.rows_per_s for speed in found] == pytest.approx([32 / (cost * 32**0.5) for cost in (0.006, 0.002)])
    turns = [name for number, (name, _) in enumerate(clock.calls) if not number or clock.calls[number - 1][0] != name]
    assert turns == ["teacher", "student"] * 4, "a warm-up and three rounds"


def test_timing_runs_on_one_thread_and_gives_the_others_back_after_a_failure(rows: Rows) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    seen: list[int] = []

    def failing(batch: Batch) -> Any:
        seen.append(torch.get_num_threads())
        raise RuntimeError("broken")

    try:
        with pytest.raises(RuntimeError, match="broken"):
            speeds([failing], rows, 0, 4, 1)
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


def test_an_empty_or_unlabelled_test_split_is_rejected(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, labels_of(MOVIES, 4), {"label": [0, None, 1, None]})
    with pytest.raises(PipelineError, match="movies cannot be evaluated: 2 of 4 test rows have no label"):
        check_labelled(MOVIES, rows)
    with pytest.raises(PipelineError, match="its test split is empty"):
        check_labelled(MOVIES, Rows(shard_schema("scores", MOVIES.kind, False), []))


def test_a_model_with_swapped_labels_is_rejected(model: PreTrainedModel) -> None:
    swapped = MOVIES.model_copy(update={"labels": ("positive", "negative")})
    check_answers(MOVIES, model, Path("there"))
    with pytest.raises(PipelineError, match="there has the labels negative, positive, but task movies has pos"):
        check_answers(swapped, model, Path("there"))
