from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.accuracy.adversary import OwnGradient
from benchmarks.accuracy.online import Aim, OnlineLoss
from pipeline.augment.teacher import FrozenTeacher
from pipeline.corpus.encoding import Batch, model_inputs, ordinary_tokens
from pipeline.distill.dataset import Examples
from pipeline.distill.student import Student, make_student
from pipeline.models.folder import load_tokenizer
from pipeline.models.forward import embed, logits_from_embeddings, word_embeddings
from pipeline.models.outputs import divergence
from pipeline.perturbation.search import radius_of
from pipeline.shards.reader import Shards
from pipeline.training.order import MicroBatch
from tests.world import AUGMENT_SETTINGS, student_settings


@pytest.fixture
def batch(scores: Path) -> Batch:
    return Examples(Shards(scores), "train").batch(MicroBatch(np.arange(12), 0, 0.0, 1.0))


def loss_of(teacher: Path, aim: Aim, student: Student, soft: float = 1.0) -> OnlineLoss:
    """With a perturbation that is large enough to be seen, from the untouched input on."""
    search = AUGMENT_SETTINGS.perturbation.model_copy(update={"objective": "label", "radius": 0.5, "start": 0.0})
    table = word_embeddings(student.model).detach()
    own = OwnGradient(radius_of(0.5, "l2", table), "classification", load_tokenizer(teacher)) if aim == "student" else None
    objective = student_settings().objective.model_copy(update={"soft": soft})
    return OnlineLoss(FrozenTeacher(teacher), student.map, objective, search, own)


def test_each_ordinary_token_moves_by_the_radius_away_from_the_teachers_answer(teacher: Path, batch: Batch) -> None:
    student = make_student(teacher, student_settings(layers=2), seed=0)
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
    torch.testing.assert_close(delta.norm(dim=-1), own.radius * ordinary.float())
    assert bool((away(words + 1e-3 * delta) > away(words)).all())


@pytest.mark.parametrize("aim", ["student", "teacher"])
def test_the_teacher_labels_the_perturbed_input(teacher: Path, batch: Batch, aim: Aim) -> None:
    """So a student that is the teacher has nothing to learn from it, which the answer to the untouched input would give it."""
    student = make_student(teacher, student_settings(layers=None), seed=0)
    found = loss_of(teacher, aim, student)(student.model.eval(), batch)
    assert found.shape == (12,)
    torch.testing.assert_close(found, torch.zeros(12), atol=1e-5, rtol=0.0)
