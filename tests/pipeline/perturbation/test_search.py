from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from pipeline.config.corpus import Kind
from pipeline.config.settings import PerturbationSettings
from pipeline.perturbation.search import Norm, Perturbed, Search, perturb, project, random_start, scaled_epsilon, steepest
from tests.world import augment_settings

NORMS: tuple[Norm, ...] = ("l2", "linf")
ROWS, TOKENS, WIDTH, OUTPUTS = 32, 6, 8, 3
EPSILON = 0.3
norms = pytest.mark.parametrize("norm", NORMS)


class SmallModel:
    """Random weights that mix the tokens of a row, never the rows; records every δ that it is called with."""

    def __init__(self, seed: int = 0, outputs: int = OUTPUTS, rows: int = ROWS) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.words, self.noise = torch.randn(2, rows, TOKENS, WIDTH, generator=generator)
        self.attention = torch.randn(TOKENS, TOKENS, generator=generator) / TOKENS**0.5
        self.hidden = torch.randn(WIDTH, 16, generator=generator)
        self.out = torch.randn(16, outputs, generator=generator)
        self.free = torch.arange(TOKENS) < torch.randint(1, TOKENS + 1, (rows, 1), generator=generator)
        self.free[:, 0], self.free[:, 1] = False, True
        self.seen: list[Tensor] = []

    def __call__(self, delta: Tensor) -> Tensor:
        self.seen.append(delta.detach().clone())
        return self.of_rows(delta, slice(None))

    def of_rows(self, delta: Tensor, rows: slice) -> Tensor:
        attended = torch.einsum("st,rtw->rsw", self.attention, self.words[rows] + delta)
        return (attended @ self.hidden).tanh().mean(dim=1) @ self.out

    @property
    def clean(self) -> Tensor:
        return self.of_rows(torch.zeros_like(self.words), slice(None))

    def perturbed(self, kind: Kind = "classification", epsilon: float = EPSILON, by: Any = None, **changed: Any) -> Perturbed:
        """The δ found by following the gradient of this model or, with ``by``, of another."""
        return perturb(by or [self], self.clean, self.noise, self.free, Search(settings_of(**changed), epsilon, kind))


def settings_of(**changed: Any) -> PerturbationSettings:
    return augment_settings(perturbation=changed).perturbation


def lengths_of(delta: Tensor, norm: Norm) -> Tensor:
    return delta.norm(dim=-1) if norm == "l2" else delta.abs().amax(dim=-1)


def test_epsilon_is_a_fraction_of_the_mean_norm_of_a_word_in_both_norms() -> None:
    table = torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 15.0]])
    assert scaled_epsilon(0.1, "l2", table) == pytest.approx(1.0)
    assert torch.full((4,), scaled_epsilon(0.1, "linf", table)).norm().item() == pytest.approx(1.0)


@given(st.integers(0, 2**32 - 1), st.sampled_from(NORMS), st.sampled_from([0.01, 1.0, 5.0]))
@settings(max_examples=40)
def test_projection_gives_the_nearest_point_of_the_ball(seed: int, norm: Norm, epsilon: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    delta = 2 * torch.randn(5, 3, WIDTH, generator=generator)
    nearest = project(delta, epsilon, norm)
    assert (lengths_of(nearest, norm) <= epsilon * (1 + 1e-6)).all()
    inside = lengths_of(delta, norm) <= epsilon
    assert torch.equal(nearest[inside], delta[inside])
    others = torch.randn(500, 5, 3, WIDTH, generator=generator)
    others = others / lengths_of(others, norm).unsqueeze(-1) * epsilon * torch.rand(500, 5, 3, 1, generator=generator)
    beside = project(nearest + 0.05 * epsilon * torch.randn(500, 5, 3, WIDTH, generator=generator), epsilon, norm)
    for candidates in (others, beside):
        assert ((delta - candidates).norm(dim=-1) >= (delta - nearest).norm(dim=-1) - 1e-5).all()


@given(st.integers(0, 2**32 - 1), st.sampled_from(NORMS))
@settings(max_examples=40)
def test_no_direction_in_the_unit_ball_rises_faster_than_the_steepest(seed: int, norm: Norm) -> None:
    generator = torch.Generator().manual_seed(seed)
    gradient = torch.randn(4, WIDTH, generator=generator)
    best = steepest(gradient, norm)
    torch.testing.assert_close(lengths_of(best, norm), torch.ones(4))
    others = torch.randn(500, 4, WIDTH, generator=generator)
    others = others / lengths_of(others, norm).unsqueeze(-1)
    assert ((gradient * best).sum(-1) >= (gradient * others).sum(-1) - 1e-5).all()


@norms
@pytest.mark.parametrize("size", [1e-45, 1e-12, 1e30])
def test_gradients_of_any_size_give_unit_directions(norm: Norm, size: float) -> None:
    gradient = torch.tensor([[3.0, -4.0, 0.0], [2.0, -1.0, 2.0]]) * size
    units = steepest(gradient, norm)
    torch.testing.assert_close(lengths_of(units, norm), torch.ones(2))
    if norm == "l2":
        torch.testing.assert_close(units, torch.tensor([[0.6, -0.8, 0.0], [2 / 3, -1 / 3, 2 / 3]]))
    assert torch.equal(project(gradient * 0, 0.1, norm), gradient * 0)
    assert torch.equal(steepest(gradient * 0, norm), gradient * 0), "no gradient, no direction"


def test_the_random_start_is_of_signs_both_equally_likely_at_every_place() -> None:
    values = random_start([(1, "a"), (1, "b")], [4000, 4000], 12, 4000)
    assert values.dtype == torch.float32
    assert values.unique().tolist() == [-1.0, 1.0], "so no element is 0"
    counts = (values > 0).sum(dim=(0, 1))
    assert min(scipy.stats.binomtest(int(count), 8000).pvalue for count in counts) > 1e-4
    assert (values.flatten(0, 1).T.corrcoef() - torch.eye(12)).abs().max() < 0.06, "places are drawn apart"


@norms
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_the_search_is_plain_projected_ascent_of_each_row_alone(norm: Norm, kind: Kind) -> None:
    model = SmallModel(outputs=1 if kind == "regression" else OUTPUTS, rows=5)
    with torch.no_grad():
        found = model.perturbed(kind, norm=norm, num_steps=3, step_size=0.4, init=0.7)
    for row in range(5):
        reference = plain_ascent(model, row, norm, kind)
        np.testing.assert_allclose(found.delta[row].numpy(), reference, atol=2e-4 * EPSILON)


def away(clean: Tensor, logits: Tensor, kind: Kind) -> Tensor:
    """The divergence by torch's own losses."""
    if kind == "regression":
        return functional.mse_loss(logits, clean, reduction="none")
    return functional.kl_div(logits.log_softmax(-1), clean.softmax(-1), reduction="none")


def plain_ascent(model: SmallModel, row: int, norm: Norm, kind: Kind) -> npt.NDArray[np.float64]:
    """Three steps of 0.4 from an initial norm of 0.7, in numpy, token by token."""
    one = slice(row, row + 1)

    def gradient(delta: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        moved = torch.tensor(delta[None], dtype=torch.float32, requires_grad=True)
        (slope,) = torch.autograd.grad(away(model.clean[one], model.of_rows(moved, one), kind).sum(), moved)
        return slope[0].double().numpy()

    def unit(vector: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return vector / np.linalg.norm(vector) if norm == "l2" else np.sign(vector)

    delta = np.zeros((TOKENS, WIDTH))
    for token in np.flatnonzero(model.free[row].numpy()):
        delta[token] = 0.7 * EPSILON * unit(model.noise[row, token].double().numpy())
    for _ in range(3):
        slope = gradient(delta)
        for token in np.flatnonzero(model.free[row].numpy()):
            moved = delta[token] + 0.4 * EPSILON * unit(slope[token])
            nearest = moved * min(1.0, EPSILON / np.linalg.norm(moved))
            delta[token] = nearest if norm == "l2" else np.clip(moved, -EPSILON, EPSILON)
    return delta


SEARCHES = st.fixed_dictionaries(
    {
        "norm": st.sampled_from(NORMS),
        "gradient_from": st.sampled_from(["teacher", "noise"]),
        "num_steps": st.integers(1, 4),
        "step_size": st.floats(0.01, 3.0),
        "init": st.floats(0.01, 1.0),
    }
)


@given(st.integers(0, 1000), SEARCHES, st.sampled_from([1e-3, 0.1, 10.0]), st.sampled_from([0.0, 0.3, 0.7, 1.0]))
@settings(max_examples=60)
def test_delta_is_within_epsilon_and_zero_at_other_than_free_tokens(
    seed: int, search: Any, epsilon: float, share: float
) -> None:
    model = SmallModel(seed)
    model.free = torch.rand(ROWS, TOKENS, generator=torch.Generator().manual_seed(seed)) < share
    found = model.perturbed(epsilon=epsilon, **search)
    for delta in (*model.seen, found.delta):
        assert delta[~model.free].eq(0).all()
        assert (lengths_of(delta, search["norm"]) <= epsilon * (1 + 1e-6)).all()
    first = model.seen[0] if model.seen else found.delta  # a later step may lead back to zero, of all places
    assert (lengths_of(first, search["norm"])[model.free] > 0).all()


@norms
def test_the_gradient_of_a_surrogate_leads_away_from_zero(norm: Norm) -> None:
    teacher, surrogate = SmallModel(), SmallModel(seed=1)
    found = teacher.perturbed(by=[surrogate], gradient_from="surrogate", norm=norm, init=0.0, step_size=1.0)
    torch.testing.assert_close(lengths_of(found.delta, norm), teacher.free * EPSILON)
    assert not found.vanished.any()


@norms
def test_the_gradients_of_several_models_count_equally_in_each_row(norm: Norm) -> None:
    teacher, models = SmallModel(), [SmallModel(seed=1), SmallModel(seed=2)]
    models[1].out *= 1e-3  # its gradients are a thousandth
    both, *alone = (
        teacher.perturbed(by=by, gradient_from="surrogate", norm=norm, init=0.0) for by in (models, models[:1], models[1:])
    )
    slopes = []
    for model in models:
        at = torch.zeros_like(model.words, requires_grad=True)
        (slope,) = torch.autograd.grad(away(teacher.clean, model(at), "classification").sum(), at)
        slope = slope * teacher.free.unsqueeze(-1)
        slopes.append(slope / slope.flatten(1).norm(dim=1)[:, None, None])
    wanted = steepest(slopes[0] + slopes[1], norm) * EPSILON
    assert ((both.delta - wanted).abs() < 1e-4 * EPSILON).float().mean() > 0.99, "but where a sum is almost zero"
    assert not any(torch.equal(both.delta, one.delta) for one in alone)


@norms
def test_noise_has_norm_epsilon_in_its_own_direction_and_does_not_run_the_model(norm: Norm) -> None:
    model = SmallModel()
    found = model.perturbed(gradient_from="noise", norm=norm, init=0.01)
    torch.testing.assert_close(lengths_of(found.delta, norm), model.free * EPSILON)
    assert torch.equal(found.delta.sign(), model.noise.sign() * model.free.unsqueeze(-1))
    assert not found.vanished.any()
    assert not model.seen


def constant(rows: slice, steps: slice) -> Callable[[Tensor], Tensor]:
    """A model that is constant for some rows in some steps and random otherwise."""
    model, calls, keep = SmallModel(), iter(range(100)), torch.ones(ROWS, 1)
    keep[rows] = 0
    return lambda delta: model(delta) * (keep if next(calls) in range(100)[steps] else 1)


@pytest.mark.parametrize("steps", [slice(0, 1), slice(1, 2), slice(2, 3), slice(0, 3)])
def test_a_row_is_counted_once_its_gradient_vanished_in_any_step_and_no_other_row(steps: slice) -> None:
    found = SmallModel().perturbed(by=[constant(slice(3, 5), steps)], num_steps=3)
    assert found.vanished.nonzero().flatten().tolist() == [3, 4]


@pytest.mark.parametrize(("token", "vanished"), [(1, False), (0, True)])
def test_one_free_token_with_a_gradient_is_enough(token: int, vanished: bool) -> None:
    model, only = SmallModel(), torch.zeros(TOKENS, 1)
    only[token] = 1
    assert model.perturbed(by=[lambda delta: model(delta * only)]).vanished.eq(vanished).all()


def test_a_row_with_nan_leaves_the_others_as_they_are() -> None:
    model, broken, others = SmallModel(), SmallModel(), torch.arange(ROWS) != 7
    broken.words[7] = float("nan")
    assert torch.equal(model.perturbed(by=[broken]).delta[others], model.perturbed().delta[others])
