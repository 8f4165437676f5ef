"""Outputs of a classifier or regression: how far two of them are apart, and the units of a regression."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.config.corpus import Kind
from pipeline.corpus.task import Floats
from pipeline.models.forward import head_of

Values = TypeVar("Values", Floats, Tensor)


def divergence(clean: Tensor, perturbed: Tensor, kind: Kind) -> Tensor:
    """Distance of two outputs [rows, outputs], [rows]: KL(clean ‖ perturbed) in nats, or the squared error for regression."""
    if kind == "regression":
        return (clean - perturbed).square().sum(dim=-1)
    clean_log, perturbed_log = clean.log_softmax(dim=-1), perturbed.log_softmax(dim=-1)
    return (clean_log.exp() * (clean_log - perturbed_log)).sum(dim=-1)


def flipped(clean: Tensor, perturbed: Tensor, kind: Kind) -> Tensor:
    """Where the predicted class of two outputs [rows, outputs] differs, [rows]; nowhere for regression."""
    if kind == "regression":
        return torch.zeros(len(clean), dtype=torch.bool, device=clean.device)
    return torch.ne(clean.argmax(dim=-1), perturbed.argmax(dim=-1))


@dataclass(frozen=True)
class Scale:
    """Standardisation of a regression's values: real value = mean + deviation · value that the model is fitted to."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Floats, model: PreTrainedModel) -> "Scale":
        """The scale at which values [rows] have mean 0 and deviation 1, as far as the model's head can undo it.

        A head without a bias, as decoders have, cannot add a mean: there the values get a root mean square of 1.
        """
        mean = 0.0 if head_of(model).bias is None else float(values.mean())
        deviation = float(np.sqrt(np.square(values - mean).mean()))
        distinct = deviation > np.finfo(np.float32).eps * abs(mean)
        return cls(mean, deviation if distinct else 1.0)

    def reduced(self, values: Values) -> Values:
        """The standardised values of real ones of any shape."""
        return (values - self.mean) / self.deviation

    def put_into(self, model: PreTrainedModel) -> None:
        """Make a model that gives standardised values give real ones."""
        self._change(model, self.deviation, self.mean)

    def take_out_of(self, model: PreTrainedModel) -> None:
        """Make a model that gives real values give standardised ones."""
        self._change(model, 1 / self.deviation, -self.mean / self.deviation)

    @staticmethod
    @torch.no_grad()
    def _change(model: PreTrainedModel, factor: float, shift: float) -> None:
        head = head_of(model)
        head.weight.mul_(factor)
        if head.bias is not None:
            head.bias.mul_(factor).add_(shift)
