from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.augment.passes import augment, score
from pipeline.corpus.encoding import Batch, model_inputs
from pipeline.corpus.task import Split, Task
from pipeline.distill import step
from pipeline.distill.examples import VARIANT, Examples, Variants
from pipeline.distill.step import StudentLoss
from pipeline.distill.student import make_student
from pipeline.models.forward import logits_from_embeddings, word_embeddings
from pipeline.models.loading import load_classifier
from pipeline.perturbation.search import divergence
from pipeline.shards.codec import CODECS, dequantise
from pipeline.shards.reader import Row, Shards
from pipeline.training.order import MicroBatch
from tests.world import (
    SCORE_SETTINGS,
    augment_settings,
    make_task,
    runtime_at,
    save_prepared,
    save_teacher,
    student_settings,
)

Folders = tuple[Path, Path]
COUNTS: dict[Split, int] = {"train": 40, "dev": 10, "test": 10}
EDITS = {"mask": 0.5, "delete": 0.5, "swap": 0.5, "ngram": 3, "span": 0.5}
RECIPES = [[["perturb"]], [["mask"]], [["mask", "perturb"]], [["mix"]], [["delete", "perturb"], ["mix"], ["swap"]]]
"""Alone, and in turn over the epochs."""


@pytest.fixture(scope="module", params=[False, True], ids=["single", "pair"])
def kin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A teacher of single texts or of pairs, and its scores."""
    folder, task = tmp_path_factory.mktemp("kin"), make_task(pair=request.param)
    teacher = save_teacher(folder / "teacher", task)
    score(save_prepared(folder / "prepared", task, COUNTS), teacher, SCORE_SETTINGS, runtime_at(folder), folder / "scores")
    return teacher, folder / "scores"


@dataclass
class Seen:
    """What a student is given, and what it is asked to imitate."""

    embeddings: list[torch.Tensor] = field(default_factory=list)
    answers: list[torch.Tensor] = field(default_factory=list)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Watches what reaches the student's embeddings, and what it answers."""
    watched = Seen()

    def logits(model: Any, batch: Any, embeddings: torch.Tensor) -> torch.Tensor:
        watched.embeddings.append(embeddings.detach())
        watched.answers.append(logits_from_embeddings(model, batch, embeddings))
        return watched.answers[-1]

    monkeypatch.setattr(step, "logits_from_embeddings", logits)
    return watched


def everything(epoch: int, rows: int) -> MicroBatch:
    return MicroBatch(np.arange(rows), epoch, progress=0.0, weight=1.0)


def stored(kin: Folders, recipes: list[list[str]], folder: Path, use: Any = "rotate") -> tuple[Examples, list[list[Row]]]:
    """The train split with variants of these recipes, and of every variant its rows in the order of the examples."""
    teacher, scores = kin
    made = augment_settings(recipes=recipes, variants=len(recipes), text_edits=EDITS)
    augment(scores, teacher, None, made, runtime_at(folder), folder / "shards")
    known, shards = Shards(scores), Shards(folder / "shards")
    rows = known.rows("train", 0)
    variants = []
    for number in range(1, len(recipes) + 1):
        found = {row.example_id: row for row in shards.rows("train", number)}
        variants.append([found[row.example_id] for row in rows])
    return Examples(known, "train", 3, Variants(shards, rows, student_settings(variants=use).variants)), variants


@pytest.mark.parametrize("recipes", RECIPES)
def test_a_student_that_is_the_teacher_answers_every_variant_as_it_was_labelled(
    kin: Folders, recipes: list[list[str]], tmp_path: Path, seen: Seen
) -> None:
    """Were one of ids, types, partner, share, δ or mask another than the teacher saw, an answer would be."""
    student = make_student(kin[0], student_settings(layers=None), seed=0)
    loss = StudentLoss(student, student_settings().objective, Task.read(kin[0]).kind)
    examples, variants = stored(kin, recipes, tmp_path)
    for epoch, rows in enumerate(variants):
        batch = examples.batch(everything(epoch, len(rows)))
        loss(student.model.eval(), batch)
        labelled = np.stack([row.perturbed_logits for row in rows])  # type: ignore[misc]
        np.testing.assert_array_equal(batch["variant_logits"].numpy(), labelled)
        np.testing.assert_allclose(seen.answers[-1].detach().numpy(), labelled, atol=1e-5)
        untouched = np.stack([row.teacher_logits for row in rows])
        assert np.median(np.abs(labelled - untouched).max(axis=1)) > 1e-3, "the variants are others than the untouched inputs"


@pytest.mark.parametrize("recipes", RECIPES)
def test_a_narrower_student_is_given_what_the_teacher_was_carried_over_by_the_map(
    kin: Folders, recipes: list[list[str]], tmp_path: Path, seen: Seen
) -> None:
    """map(λ E_T[ids] + (1 − λ) E_T[partner] + δ), computed here from the stored rows one by one."""
    narrow = student_settings(hidden=16, heads=2, intermediate=32)
    student, table = make_student(kin[0], narrow, seed=0), word_embeddings(load_classifier(kin[0]))
    loss = StudentLoss(student, narrow.objective, Task.read(kin[0]).kind)
    assert student.map is not None
    examples, variants = stored(kin, recipes, tmp_path)
    for epoch, rows in enumerate(variants):
        loss(student.model.eval(), examples.batch(everything(epoch, len(rows))))
        for row, given in zip(rows, seen.embeddings[-1], strict=True):
            words = table[torch.tensor(row.input_ids.tolist())]
            if row.partner_ids is not None and row.own_weight is not None:
                words = row.own_weight * words + (1 - row.own_weight) * table[torch.tensor(row.partner_ids.tolist())]
            if row.delta is not None:
                words = words + torch.tensor(CODECS["int8"].unpack(row.delta, 32) * row.delta_scale[:, None])  # type: ignore[index]
            torch.testing.assert_close(given[: len(words)], words @ student.map, atol=1e-5, rtol=1e-5)


def test_rows_without_a_perturbation_have_none_beside_rows_that_have_one(kin: Folders, tmp_path: Path) -> None:
    examples, variants = stored(kin, [["perturb"], ["mask"], ["mix"]], tmp_path, use="all")
    batch = examples.batch(everything(0, len(examples)))
    rows = [row for variant in variants for row in variant]
    delta = dequantise(batch["variant_codes"], batch["variant_scales"])
    assert [bool(moved.any()) for moved in delta] == [row.delta is not None for row in rows]
    shares = [1.0 if row.own_weight is None else row.own_weight for row in rows]
    assert batch["variant_own_weight"].tolist() == pytest.approx(shares)
    assert {row.variant for row in rows} == {1, 2, 3}


def parts(kin: Folders, folder: Path, use: Any) -> tuple[StudentLoss, Batch, int]:
    """A loss of stored variants alone, and a batch for it."""
    student = make_student(kin[0], student_settings(layers=1), seed=0)
    student.model.eval()
    objective = student_settings().objective.model_copy(update={"soft": 0.0})
    examples, _ = stored(kin, [["perturb"], ["mask"], ["swap"]], folder, use)
    loss = StudentLoss(student, objective, "classification", use=student_settings(variants=use).variants)
    return loss, examples.batch(everything(0, 12)), 12


def test_an_untouched_input_of_which_nothing_is_learnt_is_not_asked_for(
    kin: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, batch, _ = parts(kin, tmp_path, "rotate")
    model, whole = loss.student.model.eval(), loss.objective.model_copy(update={"soft": 1.0})
    untouched = replace(loss, objective=whole, stored=0.0)(model, batch)
    asked = list[int]()
    answer = step.logits_from_embeddings
    monkeypatch.setattr(step, "logits_from_embeddings", lambda *given: asked.append(1) or answer(*given))
    alone = replace(loss, objective=loss.objective.model_copy(update={"soft": 0.0}))(model, batch)
    assert len(asked) == 1
    torch.testing.assert_close(replace(loss, objective=whole)(model, batch), untouched + alone)
    assert len(asked) == 1 + 2


def test_all_is_the_mean_over_the_variants_of_each_row(kin: Folders, tmp_path: Path) -> None:
    loss, batch, rows = parts(kin, tmp_path, "all")
    variant = {name.removeprefix(VARIANT): value for name, value in batch.items() if name.startswith(VARIANT)}
    away = divergence(variant["logits"], loss.on_variant(loss.student.model, variant), "classification")
    torch.testing.assert_close(loss(loss.student.model, batch), away.reshape(3, rows).mean(dim=0))


def test_worst_of_learns_from_the_variant_that_this_student_answers_worst(kin: Folders, tmp_path: Path) -> None:
    loss, batch, rows = parts(kin, tmp_path, {"worst_of": 2})
    variant = {name.removeprefix(VARIANT): value for name, value in batch.items() if name.startswith(VARIANT)}
    assert len(variant["logits"]) == 2 * rows
    away = divergence(variant["logits"], loss.on_variant(loss.student.model, variant), "classification")
    worst = away.reshape(2, rows)
    assert 0 < int(worst.argmax(dim=0).sum()) < rows, "now one is the worst, now the other"
    torch.testing.assert_close(loss(loss.student.model, batch), worst.amax(dim=0))


def test_choosing_the_worst_leaves_no_gradient_and_the_model_in_training(kin: Folders, tmp_path: Path) -> None:
    loss, batch, _ = parts(kin, tmp_path, {"worst_of": 2})
    model = loss.student.model.train()
    state = torch.get_rng_state()
    loss(model, batch).mean().backward()
    assert model.training
    assert not torch.equal(torch.get_rng_state(), state), "dropout is drawn for what is learnt from"


@pytest.fixture(scope="module")
def with_states(kin: Folders, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The same teacher, and scores that hold its states after both layers."""
    folder = tmp_path_factory.mktemp("states")
    prepared = save_prepared(folder / "prepared", Task.read(kin[0]), COUNTS)
    settings = SCORE_SETTINGS.model_copy(update={"hidden": [1, 2]})
    score(prepared, kin[0], settings, runtime_at(folder), folder / "scores")
    return kin[0], folder / "scores"


def test_a_student_that_is_the_teacher_has_its_states(with_states: Folders) -> None:
    teacher, scores = with_states
    student = make_student(teacher, student_settings(layers=None), seed=0)
    objective = student_settings().objective.model_copy(update={"soft": 0.0, "hidden": 2.0})
    batch = Examples(Shards(scores), "train", 3, hidden=True).batch(everything(0, 12))
    for layers, same in (([1, 2], True), ([2, 1], False), ([2, 2], False)):
        found = StudentLoss(student, objective, "classification", layers=layers)(student.model.eval(), batch)
        assert bool((found.abs() < 1e-5).all()) == same, layers


def test_a_narrower_student_is_compared_with_the_teachers_states_as_the_map_carries_them(with_states: Folders) -> None:
    teacher, scores = with_states
    student = make_student(teacher, student_settings(layers=1, hidden=16, heads=2, intermediate=32), seed=0)
    objective = student_settings().objective.model_copy(update={"soft": 0.0, "hidden": 1.0})
    examples = Examples(Shards(scores), "train", 3, hidden=True)
    batch = examples.batch(everything(0, 12))
    found = StudentLoss(student, objective, "classification", layers=[1, 1])(student.model.eval(), batch)
    states = student.model(**model_inputs(batch), output_hidden_states=True).hidden_states[1][:, 0]
    stored = torch.tensor(examples.rows.matrix("hidden")[:12]).reshape(12, 2, 32) @ student.map
    own = torch.nn.functional.normalize(states, dim=-1)
    away = [(own - torch.nn.functional.normalize(stored[:, layer], dim=-1)).square().sum(dim=-1) for layer in (0, 1)]
    torch.testing.assert_close(found, (away[0] + away[1]) / 2, atol=1e-5, rtol=1e-4)
