"""The frozen teacher at work on rows: logits of untouched inputs, perturbations and the logits on them.

Knows one model on one device; must not know partitions, keys, stores or Ray.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.encoding import Batch, collate, length_buckets, ordinary_tokens
from pipeline.errors import PipelineError
from pipeline.models import freeze, load_classifier, load_tokenizer, logits_from_embeddings, pick_device, word_embeddings
from pipeline.perturbation import PerturbationSettings, divergence, flipped, perturb, radius_of, random_start
from pipeline.shards.codec import CODECS, CodecName, dequantise
from pipeline.tasks import Kind, Task

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Inputs:
    """Encoded examples, not padded."""

    example_ids: Sequence[str]
    input_ids: Sequence[Ids]
    token_type_ids: Sequence[npt.NDArray[np.int8]] | None

    def lengths(self) -> npt.NDArray[np.int64]:
        """Number of tokens of each row."""
        return np.array([len(ids) for ids in self.input_ids])

    def take(self, positions: npt.NDArray[np.integer]) -> "Inputs":
        """The rows at these positions."""
        types = None if self.token_type_ids is None else [self.token_type_ids[i] for i in positions]
        return Inputs([self.example_ids[i] for i in positions], [self.input_ids[i] for i in positions], types)


@dataclass(frozen=True)
class PerturbedRow:
    """One row as it is stored."""

    delta: bytes
    delta_scale: list[float]
    logits: list[float]
    divergence: float
    flipped: bool
    vanished: bool


class FrozenTeacher:
    """A fine-tuned classifier in evaluation mode on this worker's device."""

    def __init__(self, folder: Path) -> None:
        self.task = Task.read(folder)
        self.tokenizer = load_tokenizer(folder)
        self._device = pick_device()
        self._model = freeze(load_classifier(folder)).to(self._device)  # type: ignore[arg-type]
        self._table = word_embeddings(self._model)
        self.pad_token_id = int(self.tokenizer.pad_token_id)

    @property
    def width(self) -> int:
        """Width of the word embeddings."""
        return int(self._table.shape[1])

    @torch.inference_mode()
    def logits(self, inputs: Inputs, batch_rows: int) -> npt.NDArray[np.float32]:
        """Logits [rows, outputs] of untouched inputs."""
        result = np.empty((len(inputs.input_ids), self.task.outputs), dtype=np.float32)
        for positions in length_buckets(inputs.lengths(), batch_rows):
            logits = self._model(**self._padded(inputs.take(positions))).logits
            result[positions] = logits.float().cpu().numpy()
        return _all_finite(result, inputs.example_ids, "the untouched input")

    def perturb(
        self,
        inputs: Inputs,
        clean_logits: npt.NDArray[np.float32],
        variant: int,
        seed: int,
        radius: float,
        settings: PerturbationSettings,
        codec: CodecName,
        batch_rows: int,
    ) -> list[PerturbedRow]:
        """Perturb each row, code δ, and label what the code gives back.

        Args:
            inputs: the rows.
            clean_logits: [rows, outputs], the teacher's on the untouched rows.
            variant: numbers the random start, 1..V.
            seed: of the whole augmentation.
            radius: fraction of the mean word-embedding length.
            settings: how δ is searched.
            codec: how δ is coded.
            batch_rows: rows a batch.
        """
        rows: list[PerturbedRow | None] = [None] * len(inputs.input_ids)
        for positions in length_buckets(inputs.lengths(), batch_rows):
            chosen = inputs.take(positions)
            names: list[tuple[str | int, ...]] = [(seed, example_id, variant) for example_id in chosen.example_ids]
            clean = torch.from_numpy(clean_logits[positions]).to(self._device)
            made = self._perturb_batch(self._padded(chosen), names, clean, radius, settings, codec)
            for position, row in zip(positions, made, strict=True):
                rows[position] = row
        finished = [row for row in rows if row is not None]
        _all_finite(np.array([row.logits for row in finished]), inputs.example_ids, f"the perturbed input of variant {variant}")
        return finished

    def _perturb_batch(
        self,
        batch: Batch,
        names: list[tuple[str | int, ...]],
        clean: Tensor,
        radius: float,
        settings: PerturbationSettings,
        codec: CodecName,
    ) -> list[PerturbedRow]:
        kind: Kind = self.task.kind
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        words = self._table[batch["input_ids"]]
        found = perturb(
            forward=lambda delta: logits_from_embeddings(self._model, batch, words + delta),
            clean_logits=clean,
            noise=random_start(names, lengths, self.width).to(self._device),
            free=batch["attention_mask"] == 1 if settings.special_tokens else ordinary_tokens(batch, self.tokenizer),
            radius=radius_of(radius, settings.norm, self._table),
            settings=settings,
            kind=kind,
        )
        codes, scales = CODECS[codec].quantise(found.delta)
        with torch.inference_mode():
            labelled = logits_from_embeddings(self._model, batch, words + dequantise(codes, scales)).float()
        columns = [labelled, divergence(clean, labelled, kind), flipped(clean, labelled, kind), found.vanished]
        logits, moved, changed, vanished = (column.cpu().tolist() for column in columns)
        codes_there, scales_there = codes.cpu().numpy(), scales.cpu().numpy()
        return [
            PerturbedRow(
                delta=CODECS[codec].pack(codes_there[i, :length]),
                delta_scale=scales_there[i, :length].tolist(),
                logits=logits[i],
                divergence=moved[i],
                flipped=changed[i],
                vanished=vanished[i],
            )
            for i, length in enumerate(lengths)
        ]

    def _padded(self, inputs: Inputs) -> Batch:
        batch = collate(inputs.input_ids, inputs.token_type_ids, self.pad_token_id)
        return {name: value.to(self._device) for name, value in batch.items()}


def _all_finite(logits: npt.NDArray[np.float32], example_ids: Sequence[str], what: str) -> npt.NDArray[np.float32]:
    """The logits, if the teacher gave a number for every row."""
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(broken):
        raise PipelineError(
            f"the teacher answers {what} of example {example_ids[broken[0]]} with a value that is not a number "
            f"({len(broken)} such rows); the teacher is broken, train it again with a smaller learning rate"
        )
    return logits
