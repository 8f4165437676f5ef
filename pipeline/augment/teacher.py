"""A frozen classifier at work: the teacher, or a scout at whose mistakes perturbations are aimed.

Knows one model on one device; must not know partitions, keys, stores or Ray.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from pipeline.augment.batches import Batches
from pipeline.augment.inputs import Inputs
from pipeline.config.errors import PipelineError
from pipeline.corpus.encoding import Batch, Integers
from pipeline.corpus.task import Task
from pipeline.models.folder import load_tokenizer
from pipeline.models.forward import embed, freeze, logits_and_states, logits_from_embeddings, pick_device, word_embeddings
from pipeline.models.loading import load_classifier
from pipeline.perturbation.inputs import carried, view_embeddings
from pipeline.perturbation.surrogate import ScoutFolder

Precision = Literal["float32", "bfloat16"]
"""Of the encoder's products; the classification head, norms and gradients stay in float32."""

HEADS = ("classifier", "score", "logits_proj")
"""What transformers calls the last layers, whose output are the logits."""


class Arriving:
    """Tensors on their way from the device to the processor, while the device is at work on what comes next."""

    def __init__(self, *tensors: Tensor) -> None:
        self._copies = tuple(tensor.to("cpu", non_blocking=True) for tensor in tensors)
        self._event = torch.cuda.Event() if any(tensor.is_cuda for tensor in tensors) else None
        if self._event is not None:
            self._event.record()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The copies, once they are there."""
        if self._event is not None:
            self._event.synchronize()
        return self._copies


class FrozenModel:
    """A classifier in evaluation mode on this worker's device."""

    def __init__(self, folder: Path, precision: Precision) -> None:
        self.device = pick_device()
        self._model = freeze(load_classifier(folder)).to(self.device)  # type: ignore[arg-type]
        self._half = precision == "bfloat16"
        self.table = word_embeddings(self._model)
        if self._half:
            _to_bfloat16(self._model)

    def sent(self, value: Tensor) -> Tensor:
        """A tensor of the processor's on the device, without waiting for what the device has to do before."""
        return value.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else value

    def words(self, ids: Tensor) -> Tensor:
        """Word embeddings [rows, tokens, width] of token ids."""
        return embed(self._model, ids)

    def logits_at(self, batch: Batch, embeddings: Tensor) -> Tensor:
        """Logits [rows, outputs] in float32 at word embeddings [rows, tokens, width]."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._half):
            return logits_from_embeddings(self._model, batch, embeddings).float()

    def answers_at(self, batch: Batch, embeddings: Tensor, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The same, and states after some layers [rows, layers, width] in float32."""
        if not layers:
            return self.logits_at(batch, embeddings), embeddings.new_zeros(len(embeddings), 0)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._half):
            logits, states = logits_and_states(self._model, batch, embeddings, layers)
        return logits.float(), states.float()


class FrozenTeacher(FrozenModel):
    """The teacher: labels untouched inputs and variants."""

    def __init__(self, folder: Path, precision: Precision = "float32") -> None:
        super().__init__(folder, precision)
        self.task = Task.read(folder)
        self.tokenizer = load_tokenizer(folder)
        self.pad_token_id = int(self.tokenizer.pad_token_id)

    @property
    def width(self) -> int:
        """Width of the word embeddings."""
        return int(self.table.shape[1])

    def padded(self, rows: Inputs, tokens: int) -> Batch:
        """Rows as one batch on the device."""
        return {name: self.sent(value) for name, value in rows.padded(self.pad_token_id, tokens).items()}

    def logits(self, inputs: Inputs, batches: Batches, batch_rows: int) -> npt.NDArray[np.float32]:
        """Logits [rows, outputs] of rows as they are; raises as ``answers`` does."""
        return self.answers(inputs, batches, batch_rows)[0]

    @torch.inference_mode()
    def answers(
        self, inputs: Inputs, batches: Batches, batch_rows: int, layers: Sequence[int] = ()
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Logits [rows, outputs] of rows as they are, and states after some layers [rows, layers × width].

        Raises:
            PipelineError: some are no numbers, or a row does not fit into memory; names the example.
        """

        def compute(rows: Inputs, positions: Integers, tokens: int) -> list[tuple[Arriving, int]]:
            batch = self.padded(rows, tokens)
            answers = Arriving(*self.answers_at(batch, view_embeddings(self.words, batch), layers))
            return [(answers, row) for row in range(len(rows))]

        made = batches.run(inputs, batch_rows, compute)
        logits, states = (
            np.array([answers.tensors[number][row].numpy() for answers, row in made], dtype=np.float32) for number in (0, 1)
        )
        logits = logits.reshape(len(made), self.task.outputs)
        check_finite(logits, inputs, "the untouched input")
        return logits, states.reshape(len(made), -1 if len(made) else 0)


class Scout(FrozenModel):
    """One snapshot of a scout, which sees the same rows through its own embeddings."""

    def __init__(self, folder: ScoutFolder, snapshot: int, precision: Precision) -> None:
        super().__init__(folder.snapshot(snapshot), precision)
        linear = folder.map()
        self._map = None if linear is None else linear.to(self.device)

    def logits_at_delta(self, batch: Batch, delta: Tensor) -> Tensor:
        """Logits [rows, outputs] at the rows of a batch moved by δ [rows, tokens, teacher's width]."""
        return self.logits_at(batch, view_embeddings(self.words, batch) + carried(delta, self._map))


def check_finite(logits: npt.NDArray[np.float32], rows: Inputs, what: str) -> None:
    """Refuse a teacher that does not answer every row with numbers.

    Raises:
        PipelineError: names the first such example.
    """
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(broken):
        raise PipelineError(
            f"the teacher answers {what} of example {rows.example_ids[broken[0]]} with a value that is not a number "
            f"({len(broken)} such rows); the teacher is broken, train it again with a smaller learning rate"
        )


def _to_bfloat16(model: nn.Module) -> None:
    """Hold the weights of the encoder's products in bfloat16, so that they need not be converted in every batch."""
    heads = {name: module for name, module in model.named_children() if name in HEADS}
    kept = {id(module) for head in heads.values() for module in head.modules()}
    for module in model.modules():
        if isinstance(module, nn.Linear | Conv1D) and id(module) not in kept:
            module.to(torch.bfloat16)
    for head in heads.values():
        head.forward = _in_float32(head.forward)


def _in_float32(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The same computation in float32, whatever is the rule around it."""

    def run(*arguments: Any) -> Any:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            return forward(*(argument.float() for argument in arguments))

    return run
