"""What a student does with one batch: answers on untouched, stored and own perturbed inputs, and the loss of each row.

Knows a student and a batch; not shards, epochs or optimisers.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.corpus.encoding import Batch
from pipeline.corpus.task import Kind
from pipeline.distill.adversary import OwnAdversary
from pipeline.distill.examples import SEEDS, VARIANT
from pipeline.distill.objective import ObjectiveSettings, hidden_loss, imitation_loss, untouched_loss
from pipeline.distill.student import Student
from pipeline.distill.uses import Use, WorstOf
from pipeline.models.forward import bare, embed, logits_and_states, logits_from_embeddings
from pipeline.models.outputs import divergence
from pipeline.perturbation.inputs import carried, view_embeddings
from pipeline.shards.batches import CODES, SCALES
from pipeline.shards.codec import dequantise


@dataclass(frozen=True)
class StudentLoss:
    """The objective on a batch; its parts are weighed here, what they are stands in objective.py."""

    student: Student
    objective: ObjectiveSettings
    kind: Kind
    use: Use = "rotate"
    stored: float = 1.0
    """Share of the stored variants in what ``objective.perturbed`` weighs."""
    own: float = 0.0
    """Share of the student's own perturbations in it."""
    adversary: OwnAdversary | None = None
    layers: Sequence[int] = ()
    """Of the student, counted from 1: those whose states are compared with the teacher's, in their order."""

    def __call__(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """The loss of each row, [rows]."""
        loss = self._on_untouched(model, batch) if self._shows_untouched else torch.zeros_like(batch["teacher_logits"][:, 0])
        variant = {name.removeprefix(VARIANT): value for name, value in batch.items() if name.startswith(VARIANT)}
        if variant:
            stored = self._on_variants(model, variant, len(loss), batch["progress"])
            loss = loss + self.objective.perturbed * self.stored * stored
        residual = self.student.residual_of(bare(model))
        # Several processes wait for a gradient of every parameter, also in a step without δ.
        return loss if residual is None else loss + 0.0 * residual.sum()

    @property
    def _shows_untouched(self) -> bool:
        """Whether anything is learnt from the untouched input; where nothing is, its pass is spared."""
        return bool(self.objective.soft or self.objective.hard or self.layers or self.adversary is not None)

    def _on_untouched(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """The loss on the untouched input and on what the student perturbs of it, [rows]."""
        words, progress = embed(model, batch["input_ids"]), batch["progress"]
        random = _random_state(words)
        logits, hidden = self._untouched_answer(model, words, batch)
        loss = untouched_loss(logits, batch["teacher_logits"], batch["labels"], self.objective, self.kind, progress)
        loss = loss + self.objective.hidden * hidden
        if self.adversary is not None:
            perturbed = self._own_answer(model, batch, words, logits, random)
            own = untouched_loss(perturbed, batch["teacher_logits"], batch["labels"], self.objective, self.kind, progress)
            loss = loss + self.objective.perturbed * self.own * own
        return loss

    def _untouched_answer(self, model: PreTrainedModel, words: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The student's logits, and how far its states are from the teacher's, [rows]; nothing where they are not compared."""
        if not self.layers:
            logits = logits_from_embeddings(model, batch, words).float()
            return logits, logits.new_zeros(len(logits))
        logits, states = logits_and_states(model, batch, words, self.layers)
        return logits.float(), hidden_loss(states.float(), carried(batch["hidden"], self.student.map))

    def _on_variants(self, model: PreTrainedModel, variant: Batch, rows: int, progress: Tensor) -> Tensor:
        """Mean imitation loss over the variants of each row, [rows], or that on its worst one."""
        if isinstance(self.use, WorstOf):
            variant = self._worst(model, variant, rows)
        answers = self.on_variant(model, variant)
        losses = imitation_loss(answers, variant["logits"], self.objective, self.kind, progress)
        return losses.reshape(-1, rows).mean(dim=0)

    def on_variant(self, model: PreTrainedModel, variant: Batch) -> Tensor:
        """The student's logits on what the teacher labelled."""
        words = view_embeddings(functools.partial(embed, model), variant)
        if CODES in variant:
            words = words + self._carried(bare(model), dequantise(variant[CODES], variant[SCALES]))
        return logits_from_embeddings(model, variant, words).float()

    def _carried(self, model: PreTrainedModel, delta: Tensor) -> Tensor:
        """δ in the student's embeddings: by the map, and by what was learnt beside it."""
        residual = self.student.residual_of(model)
        moved = carried(delta, self.student.map)
        return moved if residual is None else moved + delta @ residual

    @torch.no_grad()
    def _worst(self, model: PreTrainedModel, variant: Batch, rows: int) -> Batch:
        """Of the candidates of each row, all first ones before all second ones, the one answered worst."""
        whole = bare(model)
        training = whole.training
        answers = self.on_variant(whole.eval(), variant)
        whole.train(training)
        away = divergence(variant["logits"], answers, self.kind).reshape(-1, rows)
        chosen = away.argmax(dim=0) * rows + torch.arange(rows, device=away.device)
        return {name: value[chosen] for name, value in variant.items()}

    def _own_answer(self, model: PreTrainedModel, batch: Batch, words: Tensor, logits: Tensor, random: Tensor) -> Tensor:
        """The student's logits on inputs that it perturbed itself, dropping the same neurons as on the untouched ones."""
        assert self.adversary is not None, "there is no own perturbation without the adversary"

        def forward(embeddings: Tensor) -> Tensor:
            with _from_random_state(words, random):
                return logits_from_embeddings(model, batch, embeddings).float()

        seeds = batch[SEEDS].tolist() if SEEDS in batch else None
        perturbed = forward(words + self.adversary.delta(forward, words, logits, batch, seeds))
        self.adversary.heed(logits, perturbed)
        return perturbed


def _random_state(words: Tensor) -> Tensor:
    """Where the generator stands that dropout draws from."""
    return torch.cuda.get_rng_state(words.device) if words.is_cuda else torch.get_rng_state()


@contextmanager
def _from_random_state(words: Tensor, state: Tensor) -> Iterator[None]:
    """Draw what was drawn from ``state`` on, and afterwards go on as if nothing had been drawn."""
    before = _random_state(words)
    set_state = functools.partial(torch.cuda.set_rng_state, device=words.device) if words.is_cuda else torch.set_rng_state
    set_state(state)
    try:
        yield
    finally:
        set_state(before)
