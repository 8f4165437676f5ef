"""The units of a regression: a model is fitted to values about 0, and its head then gives the real ones.

Knows the last layer of a classifier; must not know where values come from.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.corpus.task import Floats
from pipeline.models.forward import head_of

Values = TypeVar("Values", Floats, Tensor)


@dataclass(frozen=True)
class Scale:
    """Real value = mean + deviation · the value that a model is fitted to."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Floats, model: PreTrainedModel) -> "Scale":
        """That by which values [rows] get mean 0 and deviation 1, and which the model's head can hold.

        Without a bias, as decoders' heads are, it holds no mean: there they get a root mean square of 1.
        """
        mean = 0.0 if head_of(model).bias is None else float(values.mean())
        deviation = float(np.sqrt(np.square(values - mean).mean()))
        told_apart = deviation > np.finfo(np.float32).eps * abs(mean)
        return cls(mean, deviation if told_apart else 1.0)

    def reduced(self, values: Values) -> Values:
        """What a model is fitted to, of real values of any shape."""
        return (values - self.mean) / self.deviation

    def put_into(self, model: PreTrainedModel) -> None:
        """Make a model that gives reduced values give real ones."""
        self._change(model, self.deviation, self.mean)

    def take_out_of(self, model: PreTrainedModel) -> None:
        """Make a model that gives real values give reduced ones."""
        self._change(model, 1 / self.deviation, -self.mean / self.deviation)

    @staticmethod
    @torch.no_grad()
    def _change(model: PreTrainedModel, factor: float, shift: float) -> None:
        head = head_of(model)
        head.weight.mul_(factor)
        if head.bias is not None:
            head.bias.mul_(factor).add_(shift)
