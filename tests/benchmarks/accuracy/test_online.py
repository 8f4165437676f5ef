from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.accuracy.adversary import OwnGradient
from benchmarks.accuracy.online import GradientOwner, OnlineLoss
from pipeline.augment.teacher import FrozenTeacher
from pipeline.corpus.encoding import Batch, model_inputs, ordinary_tokens
from pipeline.distill.dataset import Examples
from pipeline.distill.student import Student, make_student
from pipeline.models.folder import ModelFolder
from pipeline.models.forward import divergence, embed, logits_from_embeddings, word_embeddings
from pipeline.perturbation.search import scaled_epsilon
from pipeline.shards.reader import Shards
from pipeline.training.order import MicroBatch
from tests.world import AUGMENT_SETTINGS, student_settings


@pytest.fixture
def batch(soft_labels: Path) -> Batch:
    return Examples(Shards(soft_labels), "train").batch(MicroBatch(np.arange(12), 0, 0.0, 1.0))


def loss_of(teacher: Path, owner: GradientOwner, student: Student) -> OnlineLoss:
    """With a perturbation that is large enough to be seen."""
    search = AUGMENT_SETTINGS.perturbation.model_copy(update={"epsilon": 0.5})
    table = word_embeddings(student.model).detach()
    own = (
        OwnGradient(scaled_epsilon(0.5, "l2", table), "classification", ModelFolder(teacher).tokenizer)
        if owner == "student"
        else None
    )
    return OnlineLoss(FrozenTeacher(ModelFolder(teacher)), student.map, student_settings().loss, search, own)


def test_each_ordinary_token_moves_by_the_epsilon_away_from_the_teachers_output(teacher: Path, batch: Batch) -> None:
    student = make_student(ModelFolder(teacher), student_settings(num_hidden_layers=2), seed=0)
    model = student.model.eval()
    own = loss_of(teacher, "student", student).own
    assert own is not None
    words = embed(model, batch["input_ids"])

    def away(embeddings: torch.Tensor) -> torch.Tensor:
        logits = logits_from_embeddings(model, model_inputs(batch), embeddings)
        return divergence(batch["teacher_logits"], logits, "classification")

    logits = logits_from_embeddings(model, model_inputs(batch), words)
    delta = own.delta(words, logits, batch)
    ordinary = ordinary_tokens(batch, own.tokenizer)
    torch.testing.assert_close(delta.norm(dim=-1), own.epsilon * ordinary.float())
    assert bool((away(words + 1e-3 * delta) > away(words)).all())


@pytest.mark.parametrize("owner", ["student", "teacher"])
def test_the_teacher_labels_the_perturbed_input(teacher: Path, batch: Batch, owner: GradientOwner) -> None:
    """So a student that is the teacher has nothing to learn from it, which the output on the clean input would give it."""
    student = make_student(ModelFolder(teacher), student_settings(num_hidden_layers=None), seed=0)
    found = loss_of(teacher, owner, student)(student.model.eval(), batch)
    assert found.shape == (12,)
    torch.testing.assert_close(found, torch.zeros(12), atol=1e-5, rtol=0.0)
