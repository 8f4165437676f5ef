from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional
from transformers import PreTrainedModel

from pipeline.augment.passes import augment, soft_label
from pipeline.augment.plans import Augmentation
from pipeline.config.corpus import Kind, Split
from pipeline.config.settings import LossSettings
from pipeline.corpus.encoding import Batch
from pipeline.corpus.task import Task
from pipeline.distill import losses
from pipeline.distill.dataset import VARIANT, Examples, Variants
from pipeline.distill.losses import StudentLoss, clean_loss, imitation_loss, soft_loss
from pipeline.distill.student import make_student
from pipeline.models.folder import ModelFolder
from pipeline.models.forward import divergence, logits_from_embeddings, word_embeddings
from pipeline.models.loading import load_classifier
from pipeline.shards.codec import CODECS
from pipeline.shards.reader import Row, Shards
from pipeline.training.order import MicroBatch
from tests.world import (
    INFERENCE,
    augment_settings,
    make_task,
    runtime_at,
    save_prepared,
    save_teacher,
    student_settings,
)

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.3, -0.7]])
TEACHER = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 2.0, 0.1]])
LABELS = torch.tensor([0.0, 1.0])

Folders = tuple[Path, Path]
COUNTS: dict[Split, int] = {"train": 40, "dev": 10, "test": 10}
EDITS = {"mask": 0.5, "delete": 0.5, "swap": 0.5, "span": 0.5}
RECIPES = [[["perturb"]], [["mask", "perturb"]], [["delete", "perturb"], ["swap"]]]
"""Alone, and in turn over the epochs."""


@pytest.fixture(scope="module", params=[False, True], ids=["single", "pair"])
def kin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A teacher of single texts or of pairs, and its soft labels."""
    folder, task = tmp_path_factory.mktemp("kin"), make_task(pair=request.param)
    teacher = save_teacher(folder / "teacher", task)
    soft_label(save_prepared(folder / "prepared", task, COUNTS), teacher, INFERENCE, runtime_at(folder), folder / "soft_labels")
    return teacher, folder / "soft_labels"


@dataclass
class Seen:
    """What a student is given, and what it is asked to imitate."""

    embeddings: list[torch.Tensor] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Watches what reaches the student's embeddings, and the logits that it gives."""
    watched = Seen()

    def logits(model: Any, batch: Any, embeddings: torch.Tensor) -> torch.Tensor:
        watched.embeddings.append(embeddings.detach())
        watched.logits.append(logits_from_embeddings(model, batch, embeddings))
        return watched.logits[-1]

    monkeypatch.setattr(losses, "logits_from_embeddings", logits)
    return watched


def everything(epoch: int, rows: int) -> MicroBatch:
    return MicroBatch(np.arange(rows), epoch, progress=0.0, weight=1.0)


def stored(kin: Folders, recipes: list[list[str]], use: Any = "rotate") -> tuple[Examples, list[list[Row]]]:
    """The train split with variants of these recipes, and of every variant its rows in the order of the examples."""
    teacher, soft_labels = kin
    folder = soft_labels.parent / str(recipes)
    if not folder.exists():
        made = augment_settings(recipes=recipes, variants=len(recipes), text_edits=EDITS)
        augment(Augmentation.of(soft_labels, teacher, made), runtime_at(soft_labels.parent), folder)
    known, shards = Shards(soft_labels), Shards(folder)
    rows = known.rows("train", 0)
    variants = []
    for number in range(1, len(recipes) + 1):
        found = {row.example_id: row for row in shards.rows("train", number)}
        variants.append([found[row.example_id] for row in rows])
    return Examples(known, "train", Variants(shards, known, student_settings(variant_policy=use).variant_policy)), variants


@pytest.mark.parametrize("recipes", RECIPES)
def test_a_student_that_is_the_teacher_has_the_stored_logits_on_every_variant(
    kin: Folders, recipes: list[list[str]], seen: Seen
) -> None:
    """Were one of ids, types, δ or mask another than the teacher saw, a logit would differ."""
    student = make_student(ModelFolder(kin[0]), student_settings(num_hidden_layers=None), seed=0)
    loss = StudentLoss(student.map, student_settings().loss, Task.read(kin[0]).kind)
    examples, variants = stored(kin, recipes)
    for epoch, rows in enumerate(variants):
        batch = examples.batch(everything(epoch, len(rows)))
        loss(student.model.eval(), batch)
        labelled = np.stack([row.perturbed_logits for row in rows])
        np.testing.assert_array_equal(batch["variant_logits"].numpy(), labelled)
        np.testing.assert_allclose(seen.logits[-1].detach().numpy(), labelled, atol=1e-5)
        clean = np.stack([row.teacher_logits for row in rows])
        assert np.median(np.abs(labelled - clean).max(axis=1)) > 1e-3, "the variants are others than the clean inputs"


@pytest.mark.parametrize("recipes", RECIPES)
def test_a_narrower_student_is_given_what_the_teacher_was_mapped_by_the_students_map(
    kin: Folders, recipes: list[list[str]], seen: Seen
) -> None:
    """map(E_T[ids] + δ), computed here from the stored rows one by one."""
    narrow = student_settings(hidden_size=16, num_attention_heads=2, intermediate_size=32)
    student, table = make_student(ModelFolder(kin[0]), narrow, seed=0), word_embeddings(load_classifier(ModelFolder(kin[0])))
    loss = StudentLoss(student.map, narrow.loss, Task.read(kin[0]).kind)
    assert student.map is not None
    examples, variants = stored(kin, recipes)
    for epoch, rows in enumerate(variants):
        loss(student.model.eval(), examples.batch(everything(epoch, len(rows))))
        for row, given in zip(rows, seen.embeddings[-1], strict=True):
            words = table[torch.tensor(row.input_ids.tolist())]
            if row.delta is not None:
                words = words + torch.tensor(CODECS["int8"].unpack(row.delta, 32) * row.delta_scale[:, None])
            torch.testing.assert_close(given[: len(words)], words @ student.map, atol=1e-5, rtol=1e-5)


def parts(kin: Folders, use: Any, rows: int = 12) -> tuple[PreTrainedModel, StudentLoss, Batch]:
    """A student in evaluation mode, a loss of stored variants alone, and a batch for it."""
    student = make_student(ModelFolder(kin[0]), student_settings(num_hidden_layers=1), seed=0)
    weights = student_settings().loss.model_copy(update={"soft_labels": 0.0})
    examples, _ = stored(kin, [["delete", "perturb"], ["swap"]], use)
    loss = StudentLoss(student.map, weights, "classification")
    return student.model.eval(), loss, examples.batch(everything(0, rows))


def distances(model: PreTrainedModel, loss: StudentLoss, batch: Batch) -> torch.Tensor:
    """KL(teacher ‖ student) on each variant of each row, [variants, rows]."""
    variants = {name.removeprefix(VARIANT): value for name, value in batch.items() if name.startswith(VARIANT)}
    found = divergence(variants["logits"], loss.logits_on(model, variants), "classification")
    return found.reshape(-1, len(batch["labels"]))


def test_the_loss_is_the_sum_of_both_terms_and_a_term_without_weight_costs_no_pass(kin: Folders) -> None:
    model, variants, batch = parts(kin, "rotate")
    passes = list[int]()
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    both = replace(variants, settings=variants.settings.model_copy(update={"soft_labels": 2.0, "variants": 0.5}))
    clean = {name: value for name, value in batch.items() if not name.startswith(VARIANT)}
    torch.testing.assert_close(both(model, batch), both(model, clean) + 0.5 * variants(model, batch))
    assert len(passes) == 2 + 1 + 1


def test_all_is_the_mean_over_the_variants_of_each_row(kin: Folders) -> None:
    model, loss, batch = parts(kin, "all")
    torch.testing.assert_close(loss(model, batch), distances(model, loss, batch).mean(dim=0))


def settings(**changes: object) -> LossSettings:
    values = {"labels": 0.0, "soft_labels": 1.0, "variants": 1.0, "form": "kl", "temperature": 1.0} | changes
    return LossSettings.model_validate(values)


def test_the_soft_loss_is_the_divergence_from_teacher_to_student_in_nats() -> None:
    p, q = TEACHER.double().softmax(1), LOGITS.double().softmax(1)
    expected = (p * (p / q).log()).sum(1)
    assert soft_loss(LOGITS, TEACHER, 1.0).tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert soft_loss(TEACHER + 3.0, TEACHER, 2.0).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


def test_a_high_temperature_keeps_the_size_of_the_gradient() -> None:
    """T² · KL tends to the squared difference of centred logits / (2 · classes) (Hinton et al. 2015, §2.1)."""
    centred = (LOGITS - LOGITS.mean(1, keepdim=True)) - (TEACHER - TEACHER.mean(1, keepdim=True))
    expected = centred.square().sum(1) / (2 * LOGITS.shape[1])
    found = imitation_loss(LOGITS.double(), TEACHER.double(), settings(temperature=1000.0), "classification")
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-2)


@pytest.mark.parametrize(("form", "kind", "outputs"), [("mse", "classification", 3), ("kl", "regression", 1)])
def test_mse_compares_logits_and_a_regression_always_does(form: str, kind: Kind, outputs: int) -> None:
    own, teacher = LOGITS[:, :outputs], TEACHER[:, :outputs]
    expected = functional.mse_loss(own, teacher, reduction="none").mean(dim=1)
    assert imitation_loss(own, teacher, settings(form=form), kind).tolist() == pytest.approx(expected.tolist())


@pytest.mark.parametrize("labels", [LABELS, torch.tensor([float("nan"), 1.0])], ids=["labelled", "one without"])
def test_the_clean_loss_is_the_weighted_sum_of_its_terms_row_by_row(labels: torch.Tensor) -> None:
    found = clean_loss(LOGITS, TEACHER, labels, settings(labels=0.5, soft_labels=2.0), "classification")
    hard = functional.cross_entropy(LOGITS, LABELS.long(), reduction="none").where(~labels.isnan(), 0.0)
    assert found.tolist() == pytest.approx((0.5 * hard + 2.0 * soft_loss(LOGITS, TEACHER, 1.0)).tolist(), rel=1e-6)


@pytest.mark.parametrize("changes", [{"temperature": 0.0}, {"labels": -1.0}, {"soft_labels": 0.0, "variants": 0.0}])
def test_a_loss_that_is_none_is_rejected(changes: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=r"greater than|must be above 0"):
        settings(**changes)
