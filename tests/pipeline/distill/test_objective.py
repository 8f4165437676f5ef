import pytest
import torch
from torch.nn import functional

from pipeline.distill.objective import ObjectiveSettings, distillation_loss, imitation_loss, soft_loss

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.3, -0.7]])
TEACHER = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 2.0, 0.1]])
LABELS = torch.tensor([0.0, 1.0])


def settings(**changes: object) -> ObjectiveSettings:
    values = {"hard": 0.0, "soft": 1.0, "perturbed": 1.0, "form": "kl", "temperature": 1.0} | changes
    return ObjectiveSettings.model_validate(values)


def test_the_soft_loss_is_the_divergence_from_teacher_to_student_in_nats() -> None:
    p, q = TEACHER.double().softmax(1), LOGITS.double().softmax(1)
    expected = (p * (p / q).log()).sum(1).mean()
    assert soft_loss(LOGITS, TEACHER, 1.0).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_soft_loss_is_zero_only_where_student_and_teacher_agree() -> None:
    assert soft_loss(TEACHER + 3.0, TEACHER, 2.0).item() == pytest.approx(0.0, abs=1e-6)
    assert soft_loss(LOGITS, TEACHER, 2.0).item() > 0.01


def test_a_high_temperature_keeps_the_size_of_the_gradient() -> None:
    """T² · KL tends to the squared difference of centred logits / (2 · classes) (Hinton et al. 2015, §2.1)."""
    centred = (LOGITS - LOGITS.mean(1, keepdim=True)) - (TEACHER - TEACHER.mean(1, keepdim=True))
    expected = centred.square().sum(1).mean() / (2 * LOGITS.shape[1])
    assert soft_loss(LOGITS.double(), TEACHER.double(), 1000.0).item() == pytest.approx(expected.item(), rel=1e-2)


def test_mse_compares_logits_and_a_regression_always_does() -> None:
    expected = functional.mse_loss(LOGITS, TEACHER).item()
    assert imitation_loss(LOGITS, TEACHER, settings(form="mse"), "classification").item() == pytest.approx(expected)
    assert imitation_loss(LOGITS[:, :1], TEACHER[:, :1], settings(form="kl"), "regression").item() == pytest.approx(
        functional.mse_loss(LOGITS[:, :1], TEACHER[:, :1]).item()
    )


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    other = (LOGITS.flip(0), TEACHER * 2)
    found = distillation_loss(LOGITS, TEACHER, LABELS, other, settings(hard=0.5, soft=2.0, perturbed=3.0), "classification")
    expected = (
        0.5 * functional.cross_entropy(LOGITS, LABELS.long())
        + 2.0 * soft_loss(LOGITS, TEACHER, 1.0)
        + 3.0 * soft_loss(*other, 1.0)
    )
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_rows_without_a_label_still_learn_from_the_teacher() -> None:
    unknown = torch.full((2,), float("nan"))
    found = distillation_loss(LOGITS, TEACHER, unknown, None, settings(hard=1.0), "classification")
    assert found.item() == pytest.approx(soft_loss(LOGITS, TEACHER, 1.0).item(), rel=1e-6)
