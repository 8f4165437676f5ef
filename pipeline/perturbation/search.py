"""δ within a ball that raises an objective. Knows a function from δ to logits; nothing of teachers, students or shards.

A perturbation is one vector a token in word-embedding space. Each token has its own ball, L2 or L∞, whose radius is stated
as a fraction of the mean length of a word embedding, so that one number means the same for every model; the two norms share
it: the corner of an L∞ ball is as long as the radius of the L2 ball.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from pipeline.config.params import Settings
from pipeline.corpus.task import Kind
from pipeline.store.seeding import seed_of

Objective = Literal["divergence", "label", "gold_label", "gap", "noise", "none"]
"""What is raised; noise and none are the controls.

divergence and gap are one formula, of the teacher's untouched answer and the perturbed one of the model whose gradient aims:
the teacher itself, or a scout.
"""
CONTROLS: tuple[Objective, ...] = ("noise", "none")
"""Objectives that follow no gradient."""

Norm = Literal["l2", "linf"]
Forward = Callable[[Tensor], Tensor]
"""From δ [rows, tokens, width] to logits [rows, outputs]."""


class Effect(Settings):
    """What a perturbation should do to the teacher, from which its radius is found; exactly one is given."""

    flips: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of answers that change."""
    divergence: Annotated[float, Field(gt=0)] | None = None
    """Mean KL to the untouched output in nats (squared error for regression)."""

    @model_validator(mode="after")
    def _exactly_one(self) -> "Effect":
        if (self.flips is None) == (self.divergence is None):
            raise ValueError("state one effect, flips or divergence; null takes out one that a section below has")
        return self


class PerturbationSettings(Settings):
    """How δ is searched."""

    objective: Objective
    norm: Norm
    radius: Annotated[float, Field(gt=0)] | Effect
    """Fraction of the mean word-embedding length, or the effect from which it is found."""
    steps: Annotated[int, Field(ge=1)]
    step_size: Annotated[float, Field(gt=0)]
    """Length of one step as a fraction of the radius."""
    start: Annotated[float, Field(ge=0, le=1)]
    """Length of the random start as a fraction of the radius; not 0 for the divergence, which has no gradient there."""
    special_tokens: bool
    """Whether [CLS], [SEP] and the like are perturbed too."""

    @model_validator(mode="after")
    def _has_a_gradient(self) -> "PerturbationSettings":
        if self.objective == "divergence" and not self.start:
            raise ValueError("the divergence from the untouched output has no gradient at start: 0; set it above 0")
        return self


@dataclass(frozen=True)
class Answer:
    """What is known of the untouched rows."""

    logits: Tensor
    """[rows, outputs], the teacher's."""
    labels: Tensor
    """[rows], class indices or values in float32; NaN where there is none."""

    def own(self, kind: Kind) -> Tensor:
        """The teacher's answer, [rows]."""
        return self.logits[:, 0] if kind == "regression" else self.logits.argmax(dim=-1).to(self.logits.dtype)

    def labels_or_own(self, kind: Kind) -> Tensor:
        """The label where there is one, else the teacher's answer, [rows]."""
        return torch.where(self.labels.isnan(), self.own(kind), self.labels)


@dataclass(frozen=True)
class Perturbed:
    """The result for one batch."""

    delta: Tensor
    """[rows, tokens, width]; zero where nothing may land."""
    vanished: Tensor
    """[rows], true where no token had a gradient in some step, so that the row kept its random part."""


def divergence(clean: Tensor, perturbed: Tensor, kind: Kind) -> Tensor:
    """How far an output moved, [rows]: KL(clean ‖ perturbed) in nats, or the squared error for regression."""
    if kind == "regression":
        return (clean - perturbed).square().sum(dim=-1)
    clean_log, perturbed_log = clean.log_softmax(dim=-1), perturbed.log_softmax(dim=-1)
    return (clean_log.exp() * (clean_log - perturbed_log)).sum(dim=-1)


def flipped(clean: Tensor, perturbed: Tensor, kind: Kind) -> Tensor:
    """Where the answer changed, [rows]; a regression has no answer to flip."""
    if kind == "regression":
        return torch.zeros(len(clean), dtype=torch.bool, device=clean.device)
    return torch.ne(clean.argmax(dim=-1), perturbed.argmax(dim=-1))


def radius_of(fraction: float, norm: Norm, table: Tensor) -> float:
    """The radius of every token's ball, from a fraction of the mean row length of a word-embedding table.

    Under L∞ it is divided by √width, so that a corner of the ball is as far out as the edge of the L2 ball.
    """
    length = fraction * float(torch.linalg.vector_norm(table, dim=1).mean())
    return length if norm == "l2" else length / float(table.shape[1]) ** 0.5


def random_start(
    names: list[tuple[str | int, ...]], lengths: list[int], width: int, tokens: int, device: torch.device | None = None
) -> Tensor:
    """Random signs ±1 [rows, ``tokens``, ``width``] on a device, zero beyond each row's length.

    Every row is drawn from a seed of its own names, so that it is the same in any batch, at any padding and on any device.
    A bit an element, unpacked where it is used: on a GPU finer noise would take longer to draw than the model to run.
    """
    packed = np.zeros((len(names), tokens, -(-width // 8)), dtype=np.uint8)
    for row, (name, length) in enumerate(zip(names, lengths, strict=True)):
        drawn = np.random.Generator(np.random.Philox(key=seed_of(*name))).bytes(length * packed.shape[2])
        packed[row, :length] = np.frombuffer(drawn, np.uint8).reshape(length, -1)
    bits = torch.from_numpy(packed).to(device).unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=device)
    signs = 2.0 * bits.bitwise_and(1).flatten(2)[..., :width] - 1.0
    inside = torch.arange(tokens, device=device) < torch.tensor(lengths, device=device).unsqueeze(-1)
    return signs * inside.unsqueeze(-1)


def project(delta: Tensor, radius: float | Tensor, norm: Norm) -> Tensor:
    """The nearest perturbation whose every token lies in its ball."""
    if norm == "linf":
        return delta.clamp(-radius, radius)  # type: ignore[arg-type]
    lengths = torch.linalg.vector_norm(delta, dim=-1, keepdim=True)
    return torch.mul(delta, radius / lengths.clamp(min=radius))


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The unit direction of steepest ascent of each token: g / ‖g‖₂, or the signs of g; zero where g is zero.

    A confident model has gradients so small that their squares underflow, so each token is scaled by its largest element first.
    """
    if norm == "linf":
        return gradient.sign()
    largest = gradient.abs().amax(dim=-1, keepdim=True)
    scaled = gradient / torch.where(largest > 0, largest, 1.0)
    lengths = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return scaled / torch.where(lengths > 0, lengths, 1.0)


def perturb(
    forward: Forward,
    answer: Answer,
    noise: Tensor,
    free: Tensor,
    radius: float | Tensor,
    settings: PerturbationSettings,
    kind: Kind,
) -> Perturbed:
    """Search δ by projected gradient ascent (Madry et al. 2018) on the objective, each row on its own.

    Args:
        forward: the model, from δ to logits; its parameters must not ask for gradients.
        answer: what is known of each row; the objective moves the model away from it.
        noise: [rows, tokens, width]; gives the start its direction.
        free: [rows, tokens], true where a perturbation may land.
        radius: of every token's ball, in the units of the embeddings.
        settings: objective, norm and steps; its ``radius`` is not read here.
        kind: decides what the divergence is.
    """
    where = free.unsqueeze(-1).to(noise.dtype)
    vanished = torch.zeros(len(noise), dtype=torch.bool, device=noise.device)
    if settings.objective == "none":
        return Perturbed(torch.zeros_like(noise), vanished)
    whole = settings.objective == "noise"
    delta = _on_edge(noise, radius if whole else settings.start * radius, settings.norm) * where
    if whole:
        return Perturbed(delta, vanished)
    for _ in range(settings.steps):
        gradient = _gradient(forward, delta, answer, settings.objective, kind) * where
        vanished |= (gradient == 0).flatten(1).all(dim=1)
        step = settings.step_size * radius * steepest(gradient, settings.norm)
        delta = project(delta + step, radius, settings.norm) * where
    return Perturbed(delta, vanished)


def _on_edge(noise: Tensor, radius: float | Tensor, norm: Norm) -> Tensor:
    """The noise of each token brought to the edge of its ball."""
    return radius * steepest(noise, norm)


def _gradient(forward: Forward, delta: Tensor, answer: Answer, objective: Objective, kind: Kind) -> Tensor:
    """Gradient of the objective to δ, row by row: the sum over rows keeps them apart."""
    with torch.enable_grad():
        delta = delta.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(raised(forward(delta).float(), answer, objective, kind).sum(), delta)
    return gradient.float()


def raised(logits: Tensor, answer: Answer, objective: Objective, kind: Kind) -> Tensor:
    """What an objective that follows a gradient raises, [rows]: the distance from an output, its answer, or the label."""
    if objective in ("divergence", "gap"):
        return divergence(answer.logits, logits, kind)
    known = answer.labels_or_own(kind) if objective == "gold_label" else answer.own(kind)
    if kind == "regression":
        return (logits[:, 0] - known).square()
    return functional.cross_entropy(logits, known.long(), reduction="none")
