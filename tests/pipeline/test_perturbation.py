from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from pipeline.perturbation import (
    Effect,
    Norm,
    PerturbationSettings,
    Perturbed,
    divergence,
    flipped,
    perturb,
    project,
    radius_of,
    random_start,
    steepest,
)
from pipeline.tasks import Kind

NORMS: tuple[Norm, ...] = ("l2", "linf")
ROWS, TOKENS, WIDTH, OUTPUTS = 32, 6, 8, 3
RADIUS = 0.3
norms = pytest.mark.parametrize("norm", NORMS)


class SmallModel:
    """Random weights that mix the tokens of a row, never the rows; it notes every δ that it is given."""

    def __init__(self, seed: int = 0, outputs: int = OUTPUTS, rows: int = ROWS) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.words = torch.randn(rows, TOKENS, WIDTH, generator=generator)
        self.mixing = torch.randn(TOKENS, TOKENS, generator=generator) / TOKENS**0.5
        self.hidden = torch.randn(WIDTH, 16, generator=generator)
        self.out = torch.randn(16, outputs, generator=generator)
        self.noise = torch.randn(rows, TOKENS, WIDTH, generator=generator)
        self.free = torch.arange(TOKENS) < torch.randint(1, TOKENS + 1, (rows, 1), generator=generator)
        self.free[:, 0] = False
        self.free[:, 1] = True
        self.seen: list[Tensor] = []

    def __call__(self, delta: Tensor) -> Tensor:
        self.seen.append(delta.detach().clone())
        return self.of_rows(delta, slice(None))

    def of_rows(self, delta: Tensor, rows: slice) -> Tensor:
        mixed = torch.einsum("st,rtw->rsw", self.mixing, self.words[rows] + delta)
        return (mixed @ self.hidden).tanh().mean(dim=1) @ self.out

    @property
    def clean(self) -> Tensor:
        return self.of_rows(torch.zeros_like(self.words), slice(None))

    def perturbed(self, kind: Kind = "classification", radius: float = RADIUS, **changed: Any) -> Perturbed:
        return perturb(self, self.clean, self.noise, self.free, radius, settings_of(**changed), kind)


def settings_of(**changed: Any) -> PerturbationSettings:
    usual = {
        "objective": "divergence",
        "norm": "l2",
        "radius": 0.1,
        "steps": 1,
        "step_size": 1.0,
        "start": 0.5,
        "special_tokens": False,
    }
    return PerturbationSettings.model_validate(usual | changed)


def lengths_of(delta: Tensor, norm: Norm) -> Tensor:
    return delta.norm(dim=-1) if norm == "l2" else delta.abs().amax(dim=-1)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 1.0, 30.0]), st.integers(2, 5))
@settings(deadline=None, max_examples=40)
def test_divergence_is_the_kl_of_the_perturbed_from_the_clean_output(seed: int, size: float, outputs: int) -> None:
    clean, perturbed = size * torch.randn(2, 7, outputs, generator=torch.Generator().manual_seed(seed))
    reference = functional.kl_div(perturbed.log_softmax(-1), clean.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(divergence(clean, perturbed, "classification"), reference, rtol=1e-4, atol=1e-5)


def test_divergence_and_flips_of_a_regression_are_the_squared_error_and_none() -> None:
    clean, perturbed = torch.tensor([[1.0], [-2.0]]), torch.tensor([[3.0], [-2.5]])
    assert divergence(clean, perturbed, "regression").tolist() == [4.0, 0.25]
    assert flipped(clean, perturbed, "regression").tolist() == [False, False]


def test_a_row_is_flipped_where_its_greatest_logit_is_another() -> None:
    clean, perturbed = (
        torch.tensor([[1.0, 2.0], [3.0, 2.0], [0.0, 5.0]]),
        torch.tensor([[2.0, 1.0], [9.0, 2.0], [0.0, 0.1]]),
    )
    assert flipped(clean, perturbed, "classification").tolist() == [True, False, False]


def test_a_radius_is_a_fraction_of_the_mean_length_of_a_word_and_a_corner_reaches_as_far() -> None:
    table = torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 15.0]])
    assert radius_of(0.1, "l2", table) == pytest.approx(1.0)
    assert torch.full((4,), radius_of(0.1, "linf", table)).norm().item() == pytest.approx(1.0)


@given(st.integers(0, 2**32 - 1), st.sampled_from(NORMS), st.sampled_from([0.01, 1.0, 5.0]))
@settings(deadline=None, max_examples=40)
def test_projection_gives_the_nearest_point_of_the_ball(seed: int, norm: Norm, radius: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    delta = 2 * torch.randn(5, 3, WIDTH, generator=generator)
    nearest = project(delta, radius, norm)
    assert (lengths_of(nearest, norm) <= radius * (1 + 1e-6)).all()
    inside = lengths_of(delta, norm) <= radius
    assert torch.equal(nearest[inside], delta[inside])
    others = torch.randn(500, 5, 3, WIDTH, generator=generator)
    others = others / lengths_of(others, norm).unsqueeze(-1) * radius * torch.rand(500, 5, 3, 1, generator=generator)
    beside = project(nearest + 0.05 * radius * torch.randn(500, 5, 3, WIDTH, generator=generator), radius, norm)
    for candidates in (others, beside):
        assert ((delta - candidates).norm(dim=-1) >= (delta - nearest).norm(dim=-1) - 1e-5).all()


@norms
def test_a_token_at_zero_is_projected_to_zero(norm: Norm) -> None:
    assert project(torch.zeros(2, 2, WIDTH), 0.1, norm).eq(0).all()


@given(st.integers(0, 2**32 - 1), st.sampled_from(NORMS))
@settings(deadline=None, max_examples=40)
def test_no_direction_in_the_unit_ball_rises_faster_than_the_steepest(seed: int, norm: Norm) -> None:
    generator = torch.Generator().manual_seed(seed)
    gradient = torch.randn(4, WIDTH, generator=generator)
    best = steepest(gradient, norm)
    torch.testing.assert_close(lengths_of(best, norm), torch.ones(4))
    others = torch.randn(500, 4, WIDTH, generator=generator)
    others = others / lengths_of(others, norm).unsqueeze(-1)
    assert ((gradient * best).sum(-1) >= (gradient * others).sum(-1) - 1e-5).all()


@norms
@pytest.mark.parametrize("size", [1e-45, 1e-30, 1e-12, 1.0, 1e30])
def test_gradients_of_any_size_give_unit_directions(norm: Norm, size: float) -> None:
    gradient = torch.tensor([[3.0, -4.0, 0.0], [2.0, -1.0, 2.0]]) * size
    units = steepest(gradient, norm)
    torch.testing.assert_close(lengths_of(units, norm), torch.ones(2))
    if norm == "l2":
        torch.testing.assert_close(units, torch.tensor([[0.6, -0.8, 0.0], [2 / 3, -1 / 3, 2 / 3]]))


@norms
def test_a_token_without_a_gradient_has_no_direction(norm: Norm) -> None:
    assert steepest(torch.zeros(2, 3, WIDTH), norm).tolist() == torch.zeros(2, 3, WIDTH).tolist()


@given(st.lists(st.integers(1, 9), min_size=2, max_size=6), st.integers(1, 12), st.integers(0, 5))
@settings(deadline=None, max_examples=40)
def test_the_random_start_of_a_row_depends_on_its_names_alone(lengths: list[int], width: int, first: int) -> None:
    names: list[tuple[str | int, ...]] = [(first, f"example {number}", 1) for number in range(len(lengths))]
    together = random_start(names, lengths, width)
    backwards = random_start(names[::-1], lengths[::-1], width).flip(0)
    assert torch.equal(together, backwards)
    for row, length in enumerate(lengths):
        assert torch.equal(together[row, :length], random_start([names[row]], [length], width)[0])
        assert together[row, length:].eq(0).all()


def test_every_name_changes_the_random_start() -> None:
    names: list[tuple[str | int, ...]] = [(1, "a", 1), (2, "a", 1), (1, "b", 1), (1, "a", 2)]
    starts = random_start(names, [50] * 4, 40).flatten(1)
    assert (starts.corrcoef() - torch.eye(4)).abs().max() < 0.1


def test_the_random_start_is_standard_normal() -> None:
    values = random_start([(1, "a")], [400], 50).flatten()
    assert values.dtype == torch.float32
    shares = torch.tensor([0.02, 0.16, 0.5, 0.84, 0.98])
    torch.testing.assert_close(values.quantile(shares), torch.distributions.Normal(0, 1).icdf(shares), atol=0.06, rtol=0)


def test_the_divergence_has_no_gradient_at_the_untouched_input_where_the_search_never_stands() -> None:
    model = SmallModel()

    def gradient_at(delta: Tensor) -> float:
        delta = delta.clone().requires_grad_(True)
        divergence(model.clean, model(delta), "classification").sum().backward()
        assert delta.grad is not None
        return float(delta.grad.norm())

    model.perturbed(steps=1)
    assert gradient_at(torch.zeros_like(model.words)) < 1e-4 * gradient_at(model.seen[0])


@norms
@pytest.mark.parametrize("start", [0.01, 0.5, 1.0])
def test_the_search_starts_on_noise_of_the_stated_length(norm: Norm, start: float) -> None:
    model = SmallModel()
    model.perturbed(norm=norm, start=start, steps=2)
    first = model.seen[0]
    torch.testing.assert_close(lengths_of(first, norm), model.free * start * RADIUS)
    assert torch.equal(first.sign(), model.noise.sign() * model.free.unsqueeze(-1))


@norms
@pytest.mark.parametrize("objective", ["divergence", "label"])
def test_one_step_of_ascent_raises_the_objective_more_than_noise_of_the_same_radius(norm: Norm, objective: str) -> None:
    model = SmallModel()
    own = model.clean.argmax(-1)

    def effect(delta: Tensor) -> Tensor:
        logits = model(delta)
        if objective == "label":
            return functional.cross_entropy(logits, own) - functional.cross_entropy(model.clean, own)
        return divergence(model.clean, logits, "classification").mean()

    stepped = model.perturbed(norm=norm, objective=objective)
    noise = model.perturbed(norm=norm, objective="noise")
    more = model.perturbed(norm=norm, objective=objective, steps=8, step_size=0.5)
    assert lengths_of(stepped.delta, norm).max() <= RADIUS * 1.000001
    assert effect(stepped.delta) > 3 * effect(noise.delta).abs()
    assert effect(more.delta) > effect(stepped.delta)


def test_the_label_objective_raises_the_cross_entropy_of_every_rows_own_answer() -> None:
    model = SmallModel()
    own = model.clean.argmax(-1)
    found = model.perturbed(objective="label", steps=3, step_size=0.5)
    before = functional.cross_entropy(model.clean, own, reduction="none")
    after = functional.cross_entropy(model(found.delta), own, reduction="none")
    assert (after > before).all()


@norms
@pytest.mark.parametrize(
    ("objective", "kind"),
    [
        ("divergence", "classification"),
        ("label", "classification"),
        ("divergence", "regression"),
        ("label", "regression"),
    ],
)
def test_the_search_is_plain_projected_ascent_of_each_row_alone(norm: Norm, objective: str, kind: Kind) -> None:
    model = SmallModel(outputs=1 if kind == "regression" else OUTPUTS, rows=5)
    found = model.perturbed(kind, norm=norm, objective=objective, steps=3, step_size=0.4, start=0.7)
    for row in range(5):
        reference = plain_ascent(model, row, norm, objective, kind)
        np.testing.assert_allclose(found.delta[row].numpy(), reference, atol=2e-4 * RADIUS)


def plain_ascent(model: SmallModel, row: int, norm: Norm, objective: str, kind: Kind) -> npt.NDArray[np.float64]:
    """Three steps of 0.4 from a start of 0.7, in numpy, token by token."""
    clean = model.clean[row : row + 1]
    free = np.flatnonzero(model.free[row].numpy())

    def gradient(delta: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        asked = torch.tensor(delta[None], dtype=torch.float32, requires_grad=True)
        logits = model.of_rows(asked, slice(row, row + 1))
        if kind == "regression":
            loss = functional.mse_loss(logits, clean, reduction="sum")
        elif objective == "label":
            loss = functional.cross_entropy(logits, clean.argmax(-1))
        else:
            loss = functional.kl_div(logits.log_softmax(-1), clean.softmax(-1), reduction="sum")
        (slope,) = torch.autograd.grad(loss, asked)
        return slope[0].double().numpy()

    def unit(vector: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return vector / np.linalg.norm(vector) if norm == "l2" else np.sign(vector)

    delta = np.zeros((TOKENS, WIDTH))
    for token in free:
        delta[token] = 0.7 * RADIUS * unit(model.noise[row, token].double().numpy())
    for _ in range(3):
        slope = gradient(delta)
        for token in free:
            moved = delta[token] + 0.4 * RADIUS * unit(slope[token])
            if norm == "linf":
                delta[token] = np.clip(moved, -RADIUS, RADIUS)
            else:
                delta[token] = moved * min(1.0, RADIUS / np.linalg.norm(moved))
    return delta


@given(
    seed=st.integers(0, 1000),
    norm=st.sampled_from(NORMS),
    objective=st.sampled_from(["divergence", "label", "noise"]),
    steps=st.integers(1, 4),
    step_size=st.floats(0.01, 3.0),
    start=st.floats(0.01, 1.0),
    radius=st.sampled_from([1e-3, 0.1, 10.0]),
    share=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
)
@settings(deadline=None, max_examples=60)
def test_delta_lies_within_the_radius_and_only_on_free_tokens(
    seed: int, norm: Norm, radius: float, share: float, **search: Any
) -> None:
    model = SmallModel(seed)
    model.free = torch.rand(ROWS, TOKENS, generator=torch.Generator().manual_seed(seed)) < share
    found = model.perturbed(norm=norm, radius=radius, **search)
    for delta in (*model.seen, found.delta):
        assert delta[~model.free].eq(0).all()
        assert (lengths_of(delta, norm) <= radius * (1 + 1e-6)).all()
    first = model.seen[0] if model.seen else found.delta  # a later step may lead back to zero, of all places
    assert (lengths_of(first, norm)[model.free] > 0).all()


def test_none_gives_zeros_and_does_not_ask_the_model() -> None:
    model = SmallModel()
    found = model.perturbed(objective="none")
    assert found.delta.shape == model.noise.shape
    assert found.delta.eq(0).all()
    assert not found.vanished.any()
    assert not model.seen


@norms
def test_noise_lies_on_the_edge_in_its_own_direction_and_does_not_ask_the_model(norm: Norm) -> None:
    model = SmallModel()
    found = model.perturbed(objective="noise", norm=norm, start=0.01)
    torch.testing.assert_close(lengths_of(found.delta, norm), model.free * RADIUS)
    assert torch.equal(found.delta.sign(), model.noise.sign() * model.free.unsqueeze(-1))
    assert not found.vanished.any()
    assert not model.seen


def constant(rows: slice, steps: slice) -> Callable[[Tensor], Tensor]:
    """A model that is constant for some rows in some steps and random otherwise."""
    model, calls = SmallModel(), iter(range(100))

    def forward(delta: Tensor) -> Tensor:
        logits = model(delta)
        if next(calls) in range(100)[steps]:
            keep = torch.ones(ROWS, 1)
            keep[rows] = 0
            logits = logits * keep
        return logits

    return forward


@norms
@pytest.mark.parametrize("objective", ["divergence", "label"])
def test_a_constant_model_leaves_the_start_and_every_row_is_counted(norm: Norm, objective: str) -> None:
    model = SmallModel()
    forward = constant(slice(None), slice(None))
    found = perturb(
        forward,
        model.clean,
        model.noise,
        model.free,
        RADIUS,
        settings_of(norm=norm, objective=objective, steps=2),
        "classification",
    )
    assert found.vanished.all()
    torch.testing.assert_close(lengths_of(found.delta, norm), model.free * 0.5 * RADIUS)


@pytest.mark.parametrize("steps", [slice(0, 1), slice(1, 2), slice(2, 3), slice(0, 3)])
def test_a_row_is_counted_once_its_gradient_vanished_in_any_step_and_no_other_row(steps: slice) -> None:
    model = SmallModel()
    found = perturb(
        constant(slice(3, 5), steps),
        model.clean,
        model.noise,
        model.free,
        RADIUS,
        settings_of(steps=3),
        "classification",
    )
    assert found.vanished.nonzero().flatten().tolist() == [3, 4]


def felt_at(token: int) -> Perturbed:
    """What is found for a model that feels δ at one token alone."""
    model = SmallModel()
    only = torch.zeros(TOKENS, 1)
    only[token] = 1
    return perturb(
        lambda delta: model(delta * only), model.clean, model.noise, model.free, RADIUS, settings_of(), "classification"
    )


def test_a_gradient_of_one_token_is_enough_not_to_have_vanished() -> None:
    assert not felt_at(1).vanished.any()


def test_a_gradient_on_tokens_that_may_not_be_touched_does_not_count() -> None:
    assert felt_at(0).vanished.all()


def test_a_confident_models_tiny_gradients_still_lead_uphill() -> None:
    model = SmallModel()
    direction = torch.randn(ROWS, TOKENS, WIDTH, generator=torch.Generator().manual_seed(3))

    def faint(delta: Tensor) -> Tensor:
        slope = (delta * direction).sum((1, 2)) * 1e-30
        return torch.stack([slope, -slope], dim=1)

    clean = torch.tensor([[0.0, 1.0]]).repeat(ROWS, 1)
    found = perturb(
        faint, clean, model.noise, model.free, RADIUS, settings_of(objective="label", step_size=2.0), "classification"
    )
    assert not found.vanished.any()
    torch.testing.assert_close(lengths_of(found.delta, "l2"), model.free * RADIUS)
    assert ((found.delta * direction).sum(-1)[model.free] > 0).all()


def test_a_row_that_breaks_does_not_break_the_others() -> None:
    model, broken = SmallModel(), SmallModel()
    broken.words[7] = float("nan")
    found = perturb(broken, model.clean, model.noise, model.free, RADIUS, settings_of(steps=2), "classification")
    others = torch.arange(ROWS) != 7
    assert torch.equal(found.delta[others], model.perturbed(steps=2).delta[others])


def test_the_search_works_where_gradients_are_off_and_leaves_none_behind() -> None:
    model = SmallModel()
    expected = model.perturbed(steps=2)
    with torch.no_grad():
        found = model.perturbed(steps=2)
    assert torch.equal(found.delta, expected.delta)
    assert not found.delta.requires_grad


@pytest.mark.parametrize("effect", [{}, {"flips": 0.1, "divergence": 0.1}])
def test_an_effect_states_exactly_one_figure(effect: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="state one effect, flips or divergence"):
        Effect.model_validate(effect)


@pytest.mark.parametrize(
    "changed",
    [
        {"start": 0.0},
        {"start": 1.5},
        {"radius": 0.0},
        {"steps": 0},
        {"step_size": 0.0},
        {"norm": "l1"},
        {"radius": {"flips": 1.0}},
    ],
)
def test_settings_that_make_no_perturbation_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changed))):
        settings_of(**changed)
