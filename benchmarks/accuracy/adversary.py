"""A perturbation of a student's word embeddings by its own gradient, found anew in each step."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pipeline.config.corpus import Kind
from pipeline.corpus.encoding import Batch, ordinary_tokens
from pipeline.models.forward import divergence
from pipeline.perturbation.search import scaled_epsilon, steepest

EPSILON = 0.1
"""Length of δ of a token, as a fraction of the mean length of a word embedding."""


@dataclass(frozen=True)
class OwnGradient:
    """One L2 step of steepest ascent from the clean input; special tokens stay as they are."""

    epsilon: float
    """Length of δ of each token, in the units of the embeddings."""
    kind: Kind
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def of(cls, table: Tensor, kind: Kind, tokenizer: PreTrainedTokenizerBase) -> "OwnGradient":
        """For a student whose word embeddings are ``table`` [vocabulary, width] before its first step."""
        return cls(scaled_epsilon(EPSILON, "l2", table.detach()), kind, tokenizer)

    def delta(self, words: Tensor, logits: Tensor, batch: Batch) -> Tensor:
        """δ [rows, tokens, width] that raises the divergence from the teacher's clean logits.

        Args:
            words: the student's word embeddings of the clean input, [rows, tokens, width].
            logits: its logits on them, [rows, outputs]; the graph between the two is kept.
            batch: the clean input, and the teacher's logits on it.
        """
        rising = divergence(batch["teacher_logits"], logits, self.kind).sum()
        (gradient,) = torch.autograd.grad(rising, words, retain_graph=True)
        free = ordinary_tokens(batch, self.tokenizer).unsqueeze(-1)
        return self.epsilon * steepest(gradient.float() * free, "l2")
