import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from pipeline.corpus.task import Kind
from pipeline.distill.objective import ObjectiveSettings, hidden_loss, imitation_loss, soft_loss, untouched_loss

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.3, -0.7]])
TEACHER = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 2.0, 0.1]])
LABELS = torch.tensor([0.0, 1.0])


def settings(**changes: object) -> ObjectiveSettings:
    values = {"hard": 0.0, "soft": 1.0, "perturbed": 1.0, "hidden": 0.0, "form": "kl", "temperature": 1.0} | changes
    return ObjectiveSettings.model_validate(values)


def test_the_soft_loss_is_the_divergence_from_teacher_to_student_in_nats() -> None:
    p, q = TEACHER.double().softmax(1), LOGITS.double().softmax(1)
    expected = (p * (p / q).log()).sum(1)
    assert soft_loss(LOGITS, TEACHER, 1.0).tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_the_soft_loss_is_zero_only_where_student_and_teacher_agree() -> None:
    assert soft_loss(TEACHER + 3.0, TEACHER, 2.0).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    assert soft_loss(LOGITS, TEACHER, 2.0).min() > 0.01


def test_a_high_temperature_keeps_the_size_of_the_gradient() -> None:
    """T² · KL tends to the squared difference of centred logits / (2 · classes) (Hinton et al. 2015, §2.1)."""
    centred = (LOGITS - LOGITS.mean(1, keepdim=True)) - (TEACHER - TEACHER.mean(1, keepdim=True))
    expected = centred.square().sum(1) / (2 * LOGITS.shape[1])
    assert soft_loss(LOGITS.double(), TEACHER.double(), 1000.0).tolist() == pytest.approx(expected.tolist(), rel=1e-2)


@pytest.mark.parametrize(("form", "kind", "outputs"), [("mse", "classification", 3), ("kl", "regression", 1)])
def test_mse_compares_logits_and_a_regression_always_does(form: str, kind: Kind, outputs: int) -> None:
    own, teacher = LOGITS[:, :outputs], TEACHER[:, :outputs]
    expected = functional.mse_loss(own, teacher, reduction="none").mean(dim=1)
    assert imitation_loss(own, teacher, settings(form=form), kind, 0.5).tolist() == pytest.approx(expected.tolist())


def test_the_untouched_loss_is_the_weighted_sum_of_its_terms_row_by_row() -> None:
    found = untouched_loss(LOGITS, TEACHER, LABELS, settings(hard=0.5, soft=2.0), "classification", 0.0)
    expected = 0.5 * functional.cross_entropy(LOGITS, LABELS.long(), reduction="none") + 2.0 * soft_loss(LOGITS, TEACHER, 1.0)
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_rows_without_a_label_still_learn_from_the_teacher() -> None:
    unknown = torch.tensor([float("nan"), 1.0])
    found = untouched_loss(LOGITS, TEACHER, unknown, settings(hard=1.0), "classification", 0.0)
    soft, hard = soft_loss(LOGITS, TEACHER, 1.0), functional.cross_entropy(LOGITS, LABELS.long(), reduction="none")
    assert found.tolist() == pytest.approx([soft[0].item(), (soft + hard)[1].item()], rel=1e-6)


@pytest.mark.parametrize(("progress", "temperature"), [(0.0, 4.0), (0.25, 3.25), (1.0, 1.0)])
def test_an_annealed_temperature_changes_evenly_over_the_training(progress: float, temperature: float) -> None:
    annealed = settings(temperature={"first": 4.0, "last": 1.0})
    assert annealed.temperature_at(progress) == pytest.approx(temperature)
    found = imitation_loss(LOGITS, TEACHER, annealed, "classification", torch.tensor(progress))
    assert found.tolist() == pytest.approx(soft_loss(LOGITS, TEACHER, temperature).tolist())


@pytest.mark.parametrize("temperature", [0.0, {"first": 1.0}, {"first": 2.0, "last": 0.0}, "warm"])
def test_a_temperature_that_is_none_is_refused(temperature: object) -> None:
    with pytest.raises(ValidationError, match="temperature"):
        settings(temperature=temperature)


def test_the_hidden_loss_compares_directions_and_not_lengths() -> None:
    states = torch.tensor([[[3.0, 0.0], [0.0, 2.0]], [[1.0, 1.0], [5.0, 0.0]]])
    teacher = torch.tensor([[[1.0, 0.0], [0.0, 7.0]], [[-1.0, -1.0], [0.0, 1.0]]])
    assert hidden_loss(states, teacher).tolist() == pytest.approx([0.0, (4.0 + 2.0) / 2])
