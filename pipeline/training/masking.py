"""Rows some of whose tokens are masked and asked for, and what an answer costs. Knows tokens and draws; no particular model."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.corpus.encoding import Batch, Ids, Integers, Types, collate, encode
from pipeline.corpus.seeding import sample, seed_of
from pipeline.corpus.task import Split
from pipeline.models.forward import logits_at
from pipeline.training.order import Lengths, Piece
from pipeline.training.trainer import OptimiserSettings

SHOWN_AS_MASK, SHOWN_AS_ANOTHER = 0.8, 0.1
"""Of the tokens that are asked for; the rest is shown as it is (Devlin et al. 2019, §3.1)."""

NOT_ASKED = -100
"""The label of a token that is not asked for."""


class FitSettings(OptimiserSettings):
    """How a masked language model is fitted."""

    masked: Annotated[float, Field(gt=0, lt=1)]
    """Share of a text's tokens that are asked for."""
    rows: Annotated[int, Field(ge=1)] | None
    """Most rows of a split that are read; null reads all."""


@dataclass(frozen=True)
class MaskedRows:
    """Encoded texts of which each epoch asks for other tokens; which ones is a function of seed, example and epoch."""

    example_ids: list[str]
    input_ids: list[Ids]
    token_type_ids: list[Types] | None
    settings: FitSettings
    special: npt.NDArray[np.int64]
    """Ids that are never asked for and never shown in another's place."""
    mask_id: int
    pad_id: int
    vocabulary: int

    def lengths(self) -> Lengths:
        """Number of tokens of each row."""
        return np.array([len(ids) for ids in self.input_ids], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.input_ids)

    def batch(self, piece: Piece) -> Batch:
        """What is shown of a piece's rows; "labels" [rows, tokens] are the tokens asked for, ``NOT_ASKED`` elsewhere."""
        shown, asked = zip(*(self._masked(int(row), piece.epoch) for row in piece.rows), strict=True)
        types = None if self.token_type_ids is None else [self.token_type_ids[row] for row in piece.rows]
        batch = collate(list(shown), types, self.pad_id)
        labels = torch.full_like(batch["input_ids"], NOT_ASKED)
        for row, tokens in enumerate(asked):
            labels[row, : len(tokens)] = torch.from_numpy(tokens)
        return batch | {"labels": labels}

    def _masked(self, row: int, epoch: int) -> tuple[Integers, Integers]:
        """A row as it is shown, and what is asked of it: at least one token, where any is ordinary."""
        ids = self.input_ids[row]
        draw = np.random.Generator(np.random.Philox(key=seed_of("masked", self.settings.seed, self.example_ids[row], epoch)))
        chance = np.where(np.isin(ids, self.special), np.inf, draw.random(len(ids)))
        asked = (chance < self.settings.masked) | ((chance == chance.min()) & (chance < np.inf))
        how, others = draw.random(len(ids)), self._ordinary[draw.integers(len(self._ordinary), size=len(ids))]
        hidden = np.where(how < SHOWN_AS_MASK, self.mask_id, np.where(how < SHOWN_AS_MASK + SHOWN_AS_ANOTHER, others, ids))
        return np.where(asked, hidden, ids), np.where(asked, ids, NOT_ASKED)

    @cached_property
    def _ordinary(self) -> npt.NDArray[np.int64]:
        return np.setdiff1d(np.arange(self.vocabulary), self.special)


def masked_rows(
    prepared: Path, split: Split, tokenizer: PreTrainedTokenizerBase, known: int, max_length: int, settings: FitSettings
) -> MaskedRows:
    """The rows of a prepared split as a masked language model of ``known`` tokens reads them.

    Of more than ``settings.rows`` they are those drawn by their ids.
    """
    columns = _drawn(pq.read_table(prepared / f"{split}.parquet"), settings).to_pydict()
    encoded = encode(tokenizer, columns["text_a"], columns.get("text_b"), max_length)
    return MaskedRows(
        columns["id"],
        encoded.input_ids,
        encoded.token_type_ids,
        settings,
        np.array(sorted(tokenizer.all_special_ids), dtype=np.int64),
        int(tokenizer.mask_token_id),
        int(tokenizer.pad_token_id),
        min(len(tokenizer), known),
    )


def _drawn(table: pa.Table, settings: FitSettings) -> pa.Table:
    """The rows whose ids have the smallest hashes, in the order of the corpus."""
    if settings.rows is None or len(table) <= settings.rows:
        return table
    return table.take(sample(table["id"].to_pylist(), settings.rows, "words", settings.seed))


def loss_of(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Cross-entropy of the tokens asked for, in nats, mean over those of each row, [rows]."""
    rows, places = (batch["labels"] != NOT_ASKED).nonzero(as_tuple=True)
    logits = logits_at(model, batch, rows, places).float()
    losses = functional.cross_entropy(logits, batch["labels"][rows, places], reduction="none")
    nothing = losses.new_zeros(len(batch["labels"]))
    return nothing.index_add(0, rows, losses) / nothing.index_add(0, rows, torch.ones_like(losses)).clamp(min=1)
