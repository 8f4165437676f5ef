"""The search for δ by projected gradient ascent on a function from δ to logits.

A perturbation δ is one vector per token in word-embedding space, bounded in the L2 or L∞ norm token by token. Epsilon is a
fraction of the mean norm of a word embedding, so that a value means the same for every model. The corners of an L∞ ball have
the distance from its centre that the L2 ball of the same epsilon has.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.config.corpus import Kind
from pipeline.config.settings import PerturbationSettings
from pipeline.corpus.seeding import seed_of
from pipeline.models.forward import divergence

Norm = Literal["l2", "linf"]
Forward = Callable[[Tensor], Tensor]
"""From δ [rows, tokens, width] to logits [rows, outputs]."""


@dataclass(frozen=True)
class Search:
    """A search with epsilon in the units of the embeddings; ``settings.epsilon`` is not read."""

    settings: PerturbationSettings
    epsilon: float | Tensor
    kind: Kind


@dataclass(frozen=True)
class Perturbed:
    """The result for one batch."""

    delta: Tensor
    """[rows, tokens, width]; zero at tokens that may not be perturbed."""
    vanished: Tensor
    """[rows], true if in some step the gradient of every token was zero, so that δ did not change."""


def scaled_epsilon(fraction: float, norm: Norm, table: Tensor) -> float:
    """Epsilon in embedding units: a fraction of the mean norm of a word-embedding table's rows, over √width for L∞."""
    length = fraction * float(torch.linalg.vector_norm(table, dim=1).mean())
    return length if norm == "l2" else length / float(table.shape[1]) ** 0.5


def random_start(
    names: list[tuple[str | int, ...]], lengths: list[int], width: int, tokens: int, device: torch.device | None = None
) -> Tensor:
    """Random signs ±1 [rows, ``tokens``, ``width``] on a device, zero beyond each row's length.

    The seed of a row is made from its names, so the row is the same in any batch, at any padding and on any device. One bit
    per element is drawn and unpacked on the device, since drawing finer noise takes longer than running the model on a GPU.
    """
    packed = np.zeros((len(names), tokens, -(-width // 8)), dtype=np.uint8)
    for row, (name, length) in enumerate(zip(names, lengths, strict=True)):
        drawn = np.random.Generator(np.random.Philox(key=seed_of(*name))).bytes(length * packed.shape[2])
        packed[row, :length] = np.frombuffer(drawn, np.uint8).reshape(length, -1)
    bits = torch.from_numpy(packed).to(device).unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=device)
    signs = 2.0 * bits.bitwise_and(1).flatten(2)[..., :width] - 1.0
    inside = torch.arange(tokens, device=device) < torch.tensor(lengths, device=device).unsqueeze(-1)
    return signs * inside.unsqueeze(-1)


def project(delta: Tensor, epsilon: float | Tensor, norm: Norm) -> Tensor:
    """The nearest δ that is within epsilon at every token."""
    if norm == "linf":
        return delta.clamp(-epsilon, epsilon)  # type: ignore[arg-type]
    lengths = torch.linalg.vector_norm(delta, dim=-1, keepdim=True)
    return torch.mul(delta, epsilon / lengths.clamp(min=epsilon))


def unit(vectors: Tensor, dims: tuple[int, ...] = (-1,)) -> Tensor:
    """Vectors over some dimensions scaled to norm 1; zero where they are zero.

    Gradients of a confident model are so small that their squares underflow, so each is scaled by its largest element first.
    """
    largest = vectors.abs().amax(dim=dims, keepdim=True)
    scaled = vectors / torch.where(largest > 0, largest, 1.0)
    lengths = torch.linalg.vector_norm(scaled, dim=dims, keepdim=True)
    return scaled / torch.where(lengths > 0, lengths, 1.0)


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The unit direction of steepest ascent of each token: g / ‖g‖₂, or the signs of g; zero where g is zero."""
    return gradient.sign() if norm == "linf" else unit(gradient)


def perturb(forwards: Sequence[Forward], clean: Tensor, noise: Tensor, free: Tensor, search: Search) -> Perturbed:
    """Search δ by projected gradient ascent (Madry et al. 2018) on the divergence from the clean output, row by row.

    Of several models the gradients of a row are added with norm 1 each, so that δ moves all of them, as in attacks on ensembles
    (Liu et al. 2017).

    Args:
        forwards: the models whose gradients are followed; their parameters must not require gradients.
        clean: the teacher's logits [rows, outputs] on the clean inputs.
        noise: direction [rows, tokens, width] of the initial δ.
        free: mask [rows, tokens] of the tokens that may be perturbed.
        search: settings, epsilon and kind of task.
    """
    settings, epsilon = search.settings, search.epsilon
    where = free.unsqueeze(-1).to(noise.dtype)
    vanished = torch.zeros(len(noise), dtype=torch.bool, device=noise.device)
    init = 1.0 if settings.gradient_from == "noise" else settings.init
    delta = init * epsilon * steepest(noise, settings.norm) * where
    if settings.gradient_from == "noise":
        return Perturbed(delta, vanished)
    for _ in range(settings.num_steps):
        gradient = torch.zeros_like(noise)
        for forward in forwards:
            with torch.enable_grad():
                at = delta.detach().requires_grad_(True)
                # The sum over rows keeps their gradients independent.
                (one,) = torch.autograd.grad(divergence(clean, forward(at).float(), search.kind).sum(), at)
            gradient += unit(one.float() * where, (1, 2))
        vanished |= (gradient == 0).flatten(1).all(dim=1)
        step = settings.step_size * epsilon * steepest(gradient, settings.norm)
        delta = project(delta + step, epsilon, settings.norm) * where
    return Perturbed(delta, vanished)
