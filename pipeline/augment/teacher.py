"""The frozen models of a worker, loaded lazily: the teacher, checkpoints of surrogates, a masked language model."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from pipeline.augment.batches import Batches, Inputs
from pipeline.augment.candidates import MaskedLM
from pipeline.config.errors import PipelineError
from pipeline.config.settings import AugmentSettings, Precision
from pipeline.corpus.encoding import Batch, Integers
from pipeline.models.folder import ModelFolder
from pipeline.models.forward import embed, freeze, logits_from_embeddings, pick_device, word_embeddings
from pipeline.models.loading import load_classifier
from pipeline.perturbation.surrogate import SurrogateFolder, hashes_in, mapped, surrogates_in

HEADS = ("classifier", "score", "logits_proj")
"""Names of classification heads in transformers."""


class Arriving:
    """Tensors copied from the device while it computes the next batch."""

    def __init__(self, *tensors: Tensor) -> None:
        self._copies = tuple(tensor.to("cpu", non_blocking=True) for tensor in tensors)
        self._event = torch.cuda.Event() if any(tensor.is_cuda for tensor in tensors) else None
        if self._event is not None:
            self._event.record()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The copies; waits for them."""
        if self._event is not None:
            self._event.synchronize()
        return self._copies


class FrozenModel:
    """A classifier in evaluation mode on this worker's device."""

    def __init__(self, folder: ModelFolder, precision: Precision) -> None:
        self.device = pick_device()
        self._model = freeze(load_classifier(folder)).to(self.device)  # type: ignore[arg-type]
        self._half = precision == "bfloat16"
        self.table = word_embeddings(self._model)
        if self._half:
            _to_bfloat16(self._model)

    def sent(self, value: Tensor) -> Tensor:
        """A copy of a tensor on the device, made without waiting for queued work."""
        return value.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else value

    def words(self, ids: Tensor) -> Tensor:
        """Word embeddings [rows, tokens, width] of token ids."""
        return embed(self._model, ids)

    def logits_at(self, batch: Batch, embeddings: Tensor) -> Tensor:
        """Logits [rows, outputs] in float32 at word embeddings [rows, tokens, width]."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._half):
            return logits_from_embeddings(self._model, batch, embeddings).float()


class FrozenTeacher(FrozenModel):
    """The teacher: labels clean inputs and variants."""

    def __init__(self, folder: ModelFolder, precision: Precision = "float32") -> None:
        super().__init__(folder, precision)
        self.task, self.tokenizer = folder.task, folder.tokenizer
        self.pad_token_id = int(self.tokenizer.pad_token_id)
        self.width = int(self.table.shape[1])

    def padded(self, rows: Inputs, tokens: int) -> Batch:
        """One batch on the device."""
        return {name: self.sent(value) for name, value in rows.padded(self.pad_token_id, tokens).items()}

    @torch.inference_mode()
    def logits(self, inputs: Inputs, batches: Batches, batch_rows: int) -> npt.NDArray[np.float32]:
        """Logits [rows, outputs] of clean inputs; raises ``PipelineError`` if some are not finite."""

        def compute(rows: Inputs, positions: Integers, tokens: int) -> Arriving:
            batch = self.padded(rows, tokens)
            return Arriving(self.logits_at(batch, self.words(batch["input_ids"])))

        found = np.empty((len(inputs), self.task.outputs), dtype=np.float32)
        for positions, logits in list(batches.pieces(inputs, batch_rows, compute)):
            found[positions] = logits.tensors[0].numpy()
        check_finite(found, inputs, "the clean input")
        return found


class Surrogate(FrozenModel):
    """One checkpoint of a surrogate, which has its own word embeddings."""

    def __init__(self, folder: SurrogateFolder, checkpoint: int, precision: Precision) -> None:
        super().__init__(ModelFolder(folder.checkpoint(checkpoint)), precision)
        linear = folder.map()
        self._map = None if linear is None else linear.to(self.device)

    def logits_at_delta(self, batch: Batch, delta: Tensor) -> Tensor:
        """Logits [rows, outputs] at the embeddings of a batch plus δ [rows, tokens, teacher's width]."""
        return self.logits_at(batch, self.words(batch["input_ids"]) + mapped(delta, self._map))


@dataclass(frozen=True)
class ModelFolders:
    """Folders of the models, and their hashes in keys; a hash of None is not compared."""

    teacher: Path
    surrogate: Path | None = None
    """Of all surrogates."""
    masked_lm: Path | None = None
    settings: AugmentSettings | None = None
    """Of the variants; None for soft labels."""
    teacher_hash: str | None = None
    surrogate_hashes: tuple[str, ...] = ()
    masked_lm_hash: str | None = None


class ModelSet:
    """The models of one worker, loaded lazily: a teacher that cannot be loaded fails the first job, not the worker."""

    def __init__(self, folders: ModelFolders, precision: Precision) -> None:
        self._folders, self._precision = folders, precision
        self._surrogates: dict[int, list[Surrogate]] = {}
        self.batches = Batches()

    @cached_property
    def teacher(self) -> FrozenTeacher:
        """The teacher; like the other models it raises ``PipelineError`` if it changed since its hash was taken."""
        folder = ModelFolder(self._folders.teacher)
        loaded = FrozenTeacher(folder, self._precision)
        _check_unchanged(f"the teacher in {folder.source}", self._folders.teacher_hash, lambda: folder.hash)
        return loaded

    @cached_property
    def masked_lm(self) -> MaskedLM:
        """The masked language model."""
        path, settings = self._folders.masked_lm, self._folders.settings
        assert path is not None, "a recipe with masked_lm has a model"
        assert settings is not None, "variants have settings"
        folder = ModelFolder(path)
        loaded = MaskedLM(folder, settings, self.teacher.tokenizer, half=self._precision == "bfloat16")
        _check_unchanged(f"the masked language model in {path}", self._folders.masked_lm_hash, lambda: folder.hash)
        return loaded

    def surrogates(self, checkpoint: int) -> list[Surrogate]:
        """A checkpoint of every surrogate; all stay loaded, since they are small and a calibration needs each repeatedly."""
        assert self._folders.surrogate is not None, "a job that follows a checkpoint has a surrogate"
        if checkpoint not in self._surrogates:
            folder, hashes = self._folders.surrogate, self._folders.surrogate_hashes
            loaded = [Surrogate(one, checkpoint, self._precision) for one in surrogates_in(folder)]
            wanted = hashes[checkpoint - 1] if hashes else None
            _check_unchanged(f"the surrogate in {folder}", wanted, lambda: hashes_in(folder)[checkpoint - 1])
            self._surrogates[checkpoint] = loaded
        return self._surrogates[checkpoint]


def _check_unchanged(title: str, wanted: str | None, found: Callable[[], str]) -> None:
    if wanted is not None and found() != wanted:
        raise PipelineError(f"{title} was changed during this run; start it again")


def check_finite(logits: npt.NDArray[np.float32], rows: Inputs, what: str) -> None:
    """Raise a ``PipelineError`` that names the first example whose logits are not finite."""
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(broken):
        raise PipelineError(
            f"the teacher's logits on {what} of example {rows.example_ids[broken[0]]} are not finite "
            f"({len(broken)} such rows); the teacher is broken, train it again with a smaller learning rate"
        )


def _to_bfloat16(model: nn.Module) -> None:
    """Convert the encoder's weights to bfloat16, so that autocast does not convert them in every batch."""
    heads = {name: module for name, module in model.named_children() if name in HEADS}
    kept = {id(module) for head in heads.values() for module in head.modules()}
    for module in model.modules():
        if isinstance(module, nn.Linear | Conv1D) and id(module) not in kept:
            module.to(torch.bfloat16)
    for head in heads.values():
        head.forward = partial(_in_float32, head.forward)


def _in_float32(forward: Callable[..., Any], *arguments: Tensor) -> Any:
    """The same computation in float32, even within autocast."""
    with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
        return forward(*(argument.float() for argument in arguments))
