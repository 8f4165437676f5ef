"""The other reference outside the pipeline: TinyBERT's first phase, in which a student learns what its teacher's layers hold.

Jiao et al. 2020, §3.1 and §3.2: hidden states and attention before its softmax, of all copies of all rows, the teacher at work
in every step. The second phase, in which it learns the teacher's logits, is an ordinary student of stored variants that starts
from what is written here. Knows BERT's layers and stored copies; nothing of arms.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.config.errors import PipelineError
from pipeline.config.settings import StudentSettings, TrainingSettings
from pipeline.corpus.encoding import Batch, model_inputs
from pipeline.distill.dataset import Examples
from pipeline.distill.student import make_student
from pipeline.distill.training import Sources
from pipeline.models.forward import bare, freeze, pick_device
from pipeline.models.loading import load_classifier
from pipeline.shards.batches import variant_at
from pipeline.shards.reader import Rows, Shards
from pipeline.training.callbacks import RunOptions
from pipeline.training.order import Lengths, MicroBatch
from pipeline.training.trainer import Objective, TrainDev, fine_tune


@dataclass(frozen=True)
class Copies:
    """All variants of the train split, each a row of its own."""

    shards: Shards

    @cached_property
    def rows(self) -> Rows:
        """Those of the first variant, then those of the second."""
        return self.shards.rows("train", *range(1, self.shards.manifest.variants + 1))

    @cached_property
    def _labels(self) -> Tensor:
        return torch.from_numpy(self.rows.labels().astype(np.float32))

    def lengths(self) -> Lengths:
        """Number of tokens of each copy."""
        return self.rows.lengths()

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, piece: MicroBatch) -> Batch:
        """Inputs and labels of a piece."""
        return variant_at(self.rows, piece.rows, self.shards.manifest) | {"labels": self._labels[torch.from_numpy(piece.rows)]}


@dataclass(frozen=True)
class Held:
    """What the layers of a model hold of a batch."""

    hidden_states: tuple[Tensor, ...]
    """[rows, tokens, width]; those of the embeddings first, then one of each layer."""
    attention: list[Tensor]
    """Of each layer before its softmax, [rows, heads, tokens, tokens]."""


def held_by(model: PreTrainedModel, batch: Batch) -> Held:
    """Run a BERT on token ids and look into it."""
    attentions = [layer.attention.self for layer in cast(Any, bare(model)).bert.encoder.layer]
    with _outputs_of([part for one in attentions for part in (one.query, one.key)]) as projected:
        hidden_states = model(**model_inputs(batch), output_hidden_states=True).hidden_states
    return Held(
        hidden_states, [_attention(projected[one.query], projected[one.key], one.num_attention_heads) for one in attentions]
    )


@contextmanager
def _outputs_of(modules: list[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """What each module gave when it was last run."""
    outputs: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, _: Any, output: Tensor) -> None:
        outputs[module] = output

    hooks = [module.register_forward_hook(keep) for module in modules]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _attention(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """Attention before its softmax, [rows, heads, tokens, tokens], of queries and keys [rows, tokens, width]."""
    rows, tokens, width = queries.shape
    one, other = (part.reshape(rows, tokens, heads, -1).transpose(1, 2) for part in (queries, keys))
    return torch.matmul(one, other.transpose(2, 3)) / math.sqrt(width // heads)


@dataclass(frozen=True)
class LayersLoss:
    """How far a student's layers are from its teacher's: the sum of squared errors of hidden states and attention.

    A student of M layers is compared with a teacher of N at each (N/M)-th hidden state, embeddings included, and at the
    attention of each (N/M)-th layer, as in TinyBERT's code. No learnt map stands between them, since both are equally wide.
    """

    teacher: PreTrainedModel
    """Frozen, on the device of the batches."""

    def __call__(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """The loss, [rows]; what lies on padding does not count."""
        with torch.no_grad():
            wanted = held_by(self.teacher, batch)
        found = held_by(model, batch)
        every = len(wanted.attention) // len(found.attention)
        real = batch["attention_mask"].float()
        pairs = real[:, None, :, None] * real[:, None, None, :]
        hidden_states = zip(found.hidden_states, wanted.hidden_states[::every], strict=True)
        attention = zip(found.attention, wanted.attention[every - 1 :: every], strict=True)
        of_states = [_squared_error(one, other, real.unsqueeze(-1)) for one, other in hidden_states]
        of_attention = [_squared_error(one, other, pairs) for one, other in attention]
        return torch.stack(of_states + of_attention).sum(dim=0)


def _squared_error(found: Tensor, wanted: Tensor, real: Tensor) -> Tensor:
    """Mean over what is real of a row, [rows]; all three [rows, ...], ``real`` 0 or 1 and as it broadcasts."""
    inside = real.expand_as(found).flatten(1)
    errors = (found.float() - wanted.float()).square().flatten(1)
    return (errors * inside).sum(dim=1) / inside.sum(dim=1)


def train_layers(
    sources: Sources, settings: StudentSettings, training: TrainingSettings, checkpoints: Path, out: Path
) -> dict[str, float]:
    """Teach a student its teacher's layers on every stored copy, and write it; returns the seconds and steps that it took.

    Args:
        sources: the teacher, its soft labels and the copies.
        settings: of the student.
        training: of this phase; an epoch sees every copy of every row.
        checkpoints: where a killed training finds what it goes on from.
        out: the student's folder.

    Raises:
        PipelineError: teacher and student are no BERTs of one width, or their depths do not go into each other.
    """
    assert sources.variants is not None, "copies are stored variants"
    teacher = load_classifier(sources.teacher)
    student = make_student(sources.teacher, settings, training.seed)
    _check(teacher, student.model)
    loss = LayersLoss(freeze(teacher).to(pick_device()))  # type: ignore[arg-type]
    fit = fine_tune(
        f"layers {sources.task.name}",
        student.model,
        TrainDev(Copies(sources.variants), Examples(sources.soft_labels, "dev")),
        Objective(loss, lambda nearness: float(nearness.mean()), lambda model, batch: -loss(model, batch)[:, None]),
        training,
        RunOptions(checkpoints=checkpoints),
    )
    student.model.save_pretrained(out)
    sources.teacher.tokenizer.save_pretrained(out)
    return {"seconds": round(fit.seconds, 1), "steps": fit.history[-1]["step"]}


def _check(teacher: PreTrainedModel, student: PreTrainedModel) -> None:
    theirs, own = teacher.config, student.config
    if theirs.model_type != "bert" or theirs.hidden_size != own.hidden_size or theirs.num_hidden_layers % own.num_hidden_layers:
        raise PipelineError(
            "layers are learnt by a student of a BERT, as wide as its teacher and of a depth that divides the teacher's; "
            f"here a {theirs.model_type} of {theirs.num_hidden_layers} layers, {theirs.hidden_size} wide, teaches one of "
            f"{own.num_hidden_layers}, {own.hidden_size} wide"
        )
