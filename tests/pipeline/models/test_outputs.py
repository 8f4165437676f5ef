import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from pipeline.models.forward import head_of, logits_from_ids
from pipeline.models.outputs import Scale, divergence, flipped
from tests.architectures import CONFIGURATIONS, assert_as_plain, of_type, rows_of

VALUES = np.array([380.0, 510.0, 720.0, 390.0])


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 1.0, 30.0]), st.integers(2, 5))
@settings(deadline=None, max_examples=40)
def test_divergence_is_the_kl_of_the_perturbed_from_the_clean_output(seed: int, size: float, outputs: int) -> None:
    clean, perturbed = size * torch.randn(2, 7, outputs, generator=torch.Generator().manual_seed(seed))
    reference = functional.kl_div(perturbed.log_softmax(-1), clean.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(divergence(clean, perturbed, "classification"), reference, rtol=1e-4, atol=1e-5)


def test_divergence_of_a_regression_is_the_squared_error_and_only_classes_flip() -> None:
    clean, after = torch.tensor([[1.0], [-2.0]]), torch.tensor([[3.0], [-2.5]])
    assert divergence(clean, after, "regression").tolist() == [4.0, 0.25]
    assert not flipped(clean, after, "regression").any()
    clean, after = torch.tensor([[1.0, 2.0], [3.0, 2.0], [0.0, 5.0]]), torch.tensor([[2.0, 1.0], [9.0, 2.0], [0.0, 0.1]])
    assert flipped(clean, after, "classification").tolist() == [True, False, False]


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_a_regression_of_every_type_is_run_as_by_transformers_and_gives_real_values(kind: str) -> None:
    model, batch = of_type(kind, num_labels=1), rows_of(kind)
    assert_as_plain(model, batch)
    scale, before = Scale.of(VALUES, model), logits_from_ids(model, batch)
    scale.put_into(model)
    torch.testing.assert_close(logits_from_ids(model, batch), scale.mean + scale.deviation * before)
    scale.take_out_of(model)
    torch.testing.assert_close(logits_from_ids(model, batch), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "mean"), [("bert", VALUES.mean()), ("gpt2", 0.0)])
def test_reduced_values_have_deviation_1_about_a_mean_that_the_head_can_add(kind: str, mean: float) -> None:
    model = of_type(kind, num_labels=1)
    assert (head_of(model).bias is None) == (kind == "gpt2")
    scale = Scale.of(VALUES, model)
    assert scale.mean == mean
    assert np.sqrt(np.square(scale.reduced(VALUES)).mean()) == pytest.approx(1.0)


@pytest.mark.parametrize("values", [np.full(4, 7.0), np.nextafter(np.float32(3.1), np.float32([0.0, 9.0, 0.0, 9.0]))])
def test_values_that_differ_by_rounding_alone_are_only_shifted(values: np.ndarray) -> None:
    scale = Scale.of(values.astype(np.float64), of_type("bert", num_labels=1))
    assert (scale.mean, scale.deviation) == (pytest.approx(values.mean()), 1.0)


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
def test_a_large_mean_costs_no_digit_of_the_answer_in_half_precision(kind: str) -> None:
    model, batch = of_type(kind, num_labels=1), rows_of(kind, (5, 9, 3, 7, 2, 11))
    (Scale(0.0, 1e5) if head_of(model).bias is None else Scale(500.0, 1.0)).put_into(model)
    wanted = logits_from_ids(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = logits_from_ids(model, batch)
    assert found.dtype == torch.float32
    assert (found - wanted).abs().max() < 0.1 * wanted.std()
