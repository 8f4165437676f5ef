"""The student as its own adversary: a perturbation of its word embeddings by its own gradient, found anew each step.

Knows a student's answers and how a perturbation is searched; not where batches come from, nor what is learnt from the result.
"""

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pipeline.config.errors import PipelineError
from pipeline.corpus.encoding import Batch, ordinary_tokens
from pipeline.corpus.task import Kind
from pipeline.models.outputs import divergence, flipped
from pipeline.perturbation.search import Effect, PerturbationSettings, Search, perturb, radius_of, random_start

Forward = Callable[[Tensor], Tensor]
"""From word embeddings [rows, tokens, width] to the student's logits [rows, outputs]."""

FIRST_RADIUS = 0.05
"""Where the search for a stated effect begins, as a fraction of the mean length of a word embedding."""

GAIN = 0.02
"""How much of a relative error of the effect one step corrects in the logarithm of the radius: it is found in some 50 steps."""

MOST = 0.5
"""The logarithm of the radius never changes by more in one step."""

SMALLEST_RADIUS, LARGEST_RADIUS = 1e-4, 10.0
"""Where it stays if an effect is out of reach."""


def check_search(settings: PerturbationSettings, kind: Kind) -> None:
    """Refuse an effect that this kind of task does not have."""
    if kind == "regression" and isinstance(settings.radius, Effect) and settings.radius.flips is not None:
        raise PipelineError(
            "the answers of a regression do not flip; give the student perturbation: {radius: {flips: null, divergence: …}}, "
            "or a number"
        )


class OwnAdversary:
    """Perturbs for one student; its radius follows a stated effect on the student, if one is stated."""

    def __init__(
        self, settings: PerturbationSettings, kind: Kind, table: Tensor, tokenizer: PreTrainedTokenizerBase, turns: int = 1
    ) -> None:
        """Begin.

        Args:
            settings: how δ is searched; an effect is one on the student, under the dropout of the step.
            kind: of the task.
            table: the student's word embeddings before its first step; their mean length is the unit of the radius.
            tokenizer: says which tokens are special.
            turns: how often a step asks, since its rows are taken in so many pieces.
        """
        self._settings, self._kind, self._tokenizer = settings, kind, tokenizer
        self._gain = GAIN / turns
        self._unit = radius_of(1.0, settings.norm, table.detach())
        first = FIRST_RADIUS if isinstance(settings.radius, Effect) else settings.radius
        self._log_radius = torch.tensor(math.log(first), dtype=torch.float64)

    @property
    def radius(self) -> float:
        """As a fraction of the mean length of a word embedding, as it is now."""
        return math.exp(float(self._log_radius))

    def state(self) -> dict[str, float]:
        """The radius that was reached."""
        return {"log_radius": float(self._log_radius)}

    def restore(self, state: dict[str, float]) -> None:
        """Go on with it."""
        self._log_radius = torch.tensor(state["log_radius"], dtype=torch.float64)

    def delta(self, forward: Forward, words: Tensor, logits: Tensor, batch: Batch, seeds: list[int] | None) -> Tensor:
        """δ [rows, tokens, width] for the student's embeddings.

        Args:
            forward: the student.
            words: the embeddings of the untouched input; part of the graph of ``logits``.
            logits: the student's on them, [rows, outputs].
            batch: the inputs, and the teacher's logits on them and the labels.
            seeds: of the rows' random starts; not needed where the start is 0.
        """
        held = words.detach()
        found = perturb(
            lambda delta: forward(held + delta),
            batch["teacher_logits"],
            torch.zeros_like(held) if seeds is None else self._noise(seeds, batch, held),
            self._free(batch),
            Search(self._settings, (self._log_radius.exp() * self._unit).to(held), self._kind),
        )
        return found.delta

    def heed(self, logits: Tensor, perturbed: Tensor) -> None:
        """Bring the radius nearer to the stated effect, by the student's logits [rows, outputs] without and with δ."""
        target = self._settings.radius
        if not isinstance(target, Effect):
            return
        with torch.no_grad():
            if target.flips is not None:
                found, wanted = flipped(logits, perturbed, self._kind).float().mean(), target.flips
            else:
                found, wanted = divergence(logits, perturbed, self._kind).mean(), float(target.divergence or 0.0)
            if dist.is_initialized():
                dist.all_reduce(found)
                found = found / dist.get_world_size()
            change = (self._gain * (1 - found.double() / wanted)).nan_to_num(0.0).clamp(-MOST, MOST)
            moved = self._log_radius.to(change.device) + change
            self._log_radius = moved.clamp(math.log(SMALLEST_RADIUS), math.log(LARGEST_RADIUS))

    def _noise(self, seeds: list[int], batch: Batch, words: Tensor) -> Tensor:
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        return random_start([(seed,) for seed in seeds], lengths, words.shape[2], words.shape[1], words.device)

    def _free(self, batch: Batch) -> Tensor:
        if self._settings.special_tokens:
            return batch["attention_mask"] == 1
        return ordinary_tokens(batch, self._tokenizer)
