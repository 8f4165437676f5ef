import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.corpus.encoding import Batch, model_inputs, ordinary_tokens
from pipeline.distill.adversary import GAIN, OwnAdversary
from pipeline.distill.examples import SEEDS, Examples
from pipeline.distill.step import StudentLoss
from pipeline.distill.student import Student, make_student
from pipeline.models.folder import load_tokenizer
from pipeline.models.forward import embed, logits_from_embeddings, word_embeddings
from pipeline.perturbation.search import Effect, PerturbationSettings, divergence, radius_of
from pipeline.shards.reader import Shards
from pipeline.training.order import MicroBatch
from tests.world import student_settings

Folders = tuple[Path, Path]


@pytest.fixture
def student(teacher: Path) -> Student:
    return make_student(teacher, student_settings(layers=1), seed=0)


@pytest.fixture
def batch(made: Folders) -> Batch:
    """Twelve rows of several lengths, with seeds."""
    examples = Examples(Shards(made[0]), "train", 3, seeded=True)
    return examples.batch(MicroBatch(np.arange(12), 0, 0.0, 1.0))


def search(**changed: Any) -> PerturbationSettings:
    return student_settings().perturbation.model_copy(update=changed)


def adversary_of(student: Student, teacher: Path, **changed: Any) -> OwnAdversary:
    settings = PerturbationSettings.model_validate(search().model_dump() | changed)
    return OwnAdversary(settings, "classification", word_embeddings(student.model), load_tokenizer(teacher))


def loss_of(student: Student, adversary: OwnAdversary, **weights: float) -> StudentLoss:
    objective = student_settings().objective.model_copy(update=weights)
    return StudentLoss(student, objective, "classification", stored=0.0, own=1.0, adversary=adversary)


def delta_of(student: Student, adversary: OwnAdversary, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """δ for a batch, and every input that the student was asked about on the way."""
    model, asked = student.model, list[Tensor]()

    def forward(embeddings: Tensor) -> Tensor:
        asked.append(embeddings)
        return logits_from_embeddings(model, model_inputs(batch), embeddings)

    words = embed(model, batch["input_ids"])
    logits = logits_from_embeddings(model, model_inputs(batch), words)
    return adversary.delta(forward, words, logits, batch, batch[SEEDS].tolist()), asked


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("objective", ["gap", "label", "gold_label"])
def test_the_pass_of_the_untouched_input_gives_the_gradient_at_the_start(
    student: Student, teacher: Path, batch: Batch, norm: str, objective: str
) -> None:
    """The same δ as by a pass of its own, and no pass is made."""
    student.model.eval()
    adversary = adversary_of(student, teacher, norm=norm, objective=objective)
    delta, asked = delta_of(student, adversary, batch)
    assert not asked
    words = embed(student.model, batch["input_ids"]).detach().requires_grad_()
    logits = logits_from_embeddings(student.model, model_inputs(batch), words)
    label = batch["labels"].long() if objective == "gold_label" else batch["teacher_logits"].argmax(dim=1)
    away = divergence(batch["teacher_logits"], logits, "classification")
    rising = away.sum() if objective == "gap" else functional.cross_entropy(logits, label, reduction="sum")
    (gradient,) = torch.autograd.grad(rising, words)
    free = ordinary_tokens(batch, load_tokenizer(teacher))
    steepest = gradient.sign() if norm == "linf" else functional.normalize(gradient, dim=-1)
    expected = radius_of(0.1, norm, word_embeddings(student.model).detach()) * steepest * free.unsqueeze(-1)  # type: ignore[arg-type]
    torch.testing.assert_close(delta, expected, atol=1e-5, rtol=1e-4)
    assert not delta[~free].any(), "nothing lands on padding or special tokens"


@pytest.mark.parametrize(("start", "steps", "passes"), [(0.0, 1, 0), (0.0, 3, 2), (0.5, 1, 1), (0.5, 2, 2)])
def test_a_search_costs_a_pass_a_step_less_the_one_that_is_there(
    student: Student, teacher: Path, batch: Batch, start: float, steps: int, passes: int
) -> None:
    _, asked = delta_of(student, adversary_of(student, teacher, start=start, steps=steps), batch)
    assert len(asked) == passes


def test_a_search_gives_no_parameter_a_gradient_and_leaves_the_graph_for_the_loss(
    student: Student, teacher: Path, batch: Batch
) -> None:
    loss = loss_of(student, adversary_of(student, teacher), soft=1.0)
    words = embed(student.model, batch["input_ids"])
    logits = logits_from_embeddings(student.model, model_inputs(batch), words)
    loss.adversary.delta(lambda e: e, words, logits, batch, None)  # type: ignore[union-attr]
    assert all(parameter.grad is None for parameter in student.model.parameters())
    logits.sum().backward()
    loss(student.model, batch).mean().backward()


@pytest.mark.parametrize("objective", ["gap", "divergence", "label"])
def test_what_it_finds_raises_its_objective_more_than_noise_of_the_same_length(
    student: Student, teacher: Path, batch: Batch, objective: str
) -> None:
    model = student.model.eval()

    def away(**changed: Any) -> float:
        delta, _ = delta_of(student, adversary_of(student, teacher, **changed), batch)
        words = embed(model, batch["input_ids"])
        logits = logits_from_embeddings(model, model_inputs(batch), words + delta)
        own = logits_from_embeddings(model, model_inputs(batch), words)
        if objective == "label":
            return float(functional.cross_entropy(logits, batch["teacher_logits"].argmax(dim=1)))
        return float(divergence(own if objective == "divergence" else batch["teacher_logits"], logits, "classification").mean())

    start = 0.5 if objective == "divergence" else 0.0
    assert away(objective=objective, start=start) > away(objective="noise") + 1e-4


def test_untouched_and_perturbed_inputs_meet_the_same_dropout(student: Student, teacher: Path, batch: Batch) -> None:
    """Without a perturbation the two answers are one, though neurons are dropped; and later draws are as without it."""
    student.model.train()
    assert any(module.p for module in student.model.modules() if isinstance(module, torch.nn.Dropout))
    adversary = adversary_of(student, teacher, objective="none")
    seen: list[tuple[Tensor, Tensor]] = []
    adversary.heed = lambda logits, perturbed: seen.append((logits, perturbed))  # type: ignore[method-assign]
    torch.manual_seed(5)
    loss_of(student, adversary)(student.model, batch)
    after = torch.get_rng_state()
    ((untouched, perturbed),) = seen
    torch.testing.assert_close(untouched, perturbed)
    torch.manual_seed(5)
    plain = StudentLoss(student, student_settings().objective, "classification")
    plain(student.model, batch)
    assert torch.equal(torch.get_rng_state(), after)


def test_the_perturbed_input_is_learnt_as_the_untouched_one_is(student: Student, teacher: Path, batch: Batch) -> None:
    """From the stored score and the label of the untouched input, by their weights."""
    model = student.model.eval()
    adversary = adversary_of(student, teacher)
    delta, _ = delta_of(student, adversary, batch)
    words = embed(model, batch["input_ids"])
    untouched, perturbed = (logits_from_embeddings(model, model_inputs(batch), at) for at in (words, words + delta))
    found = loss_of(student, adversary, soft=2.0, hard=0.5, perturbed=3.0)(model, batch)

    def learnt(logits: Tensor) -> Tensor:
        label = functional.cross_entropy(logits, batch["labels"].long(), reduction="none")
        return 2.0 * divergence(batch["teacher_logits"], logits, "classification") + 0.5 * label

    torch.testing.assert_close(found, learnt(untouched) + 3.0 * learnt(perturbed), atol=1e-5, rtol=1e-4)


def test_seeds_decide_a_random_start(student: Student, teacher: Path, batch: Batch) -> None:
    adversary = adversary_of(student, teacher, objective="noise")
    one, again = delta_of(student, adversary, batch)[0], delta_of(student, adversary, batch)[0]
    other = delta_of(student, adversary, batch | {SEEDS: batch[SEEDS] + 1})[0]
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("effect", [{"divergence": 0.05}, {"flips": 0.2}])
def test_a_stated_effect_is_reached_and_held(student: Student, teacher: Path, batch: Batch, effect: dict[str, float]) -> None:
    student.model.eval()
    adversary = adversary_of(student, teacher, radius=effect)
    loss, effects = loss_of(student, adversary), list[float]()
    heed = adversary.heed

    def note(logits: Tensor, perturbed: Tensor) -> None:
        flips = (logits.argmax(dim=1) != perturbed.argmax(dim=1)).float().mean()
        effects.append(float(flips if "flips" in effect else divergence(logits, perturbed, "classification").mean()))
        heed(logits, perturbed)

    adversary.heed = note  # type: ignore[method-assign]
    for _ in range(400):
        with torch.enable_grad():
            loss(student.model, batch)
    (target,) = effect.values()
    assert np.mean(effects[300:]) == pytest.approx(target, rel=0.25)


def test_its_radius_survives_as_plain_numbers(student: Student, teacher: Path) -> None:
    adversary = adversary_of(student, teacher, radius={"divergence": 0.1})
    logits = torch.tensor([[1.0, 0.0]])
    adversary.heed(logits, logits)
    state = adversary.state()
    assert state["log_radius"] == pytest.approx(math.log(0.05) + GAIN), "no effect at all: one step further"
    other = adversary_of(student, teacher, radius={"divergence": 0.1})
    other.restore(copy.deepcopy(state))
    assert other.state() == state
    adversary_with_number = adversary_of(student, teacher)
    adversary_with_number.heed(logits, -logits)
    assert adversary_with_number.state()["log_radius"] == pytest.approx(math.log(0.1)), "a number stays what it is"


def test_an_effect_far_beyond_the_target_shortens_the_radius_by_no_more_than_half_its_logarithm(
    student: Student, teacher: Path
) -> None:
    adversary = adversary_of(student, teacher, radius={"flips": 0.001})
    adversary.heed(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    assert adversary.state()["log_radius"] == pytest.approx(math.log(0.05) - 0.5)


def test_an_effect_out_of_reach_lets_the_radius_grow_to_its_bound_and_answers_that_are_no_numbers_leave_it(
    student: Student, teacher: Path
) -> None:
    adversary = adversary_of(student, teacher, radius={"flips": 0.9})
    logits = torch.tensor([[1.0, 0.0]])
    for _ in range(2000):
        adversary.heed(logits, logits)
    assert adversary.radius == pytest.approx(10.0)
    adversary = adversary_of(student, teacher, radius={"divergence": 0.1})
    adversary.heed(logits, logits * float("nan"))
    assert adversary.radius == pytest.approx(0.05)


@pytest.mark.parametrize("turns", [1, 4])
def test_a_step_changes_the_radius_as_much_in_one_piece_as_in_many(student: Student, teacher: Path, turns: int) -> None:
    settings = search(radius=Effect(divergence=0.1))
    adversary = OwnAdversary(settings, "classification", word_embeddings(student.model), load_tokenizer(teacher), turns)
    logits = torch.tensor([[1.0, 0.0]])
    for _ in range(turns):
        adversary.heed(logits, logits)
    assert math.log(adversary.radius) == pytest.approx(math.log(0.05) + GAIN)
