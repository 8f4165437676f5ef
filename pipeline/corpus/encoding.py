"""Texts to token ids, and rows to padded batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pipeline.config.errors import PipelineError

Batch = dict[str, Tensor]
"""Model inputs: input_ids, attention_mask and, if the model has them, token_type_ids, each [rows, tokens]."""

MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


TEXTS_AT_ONCE = 1_000
"""Texts tokenised at once; tokenizers return many times the memory of the ids."""

EVEN_ROWS = 8
"""Batches of a multiple of this many rows give bit-identical results for a row, whatever their size."""

Integers = npt.NDArray[np.integer[Any]]

Ids = npt.NDArray[np.int32]
"""Token ids of one row [tokens] with special tokens, without padding."""
Types = npt.NDArray[np.int8]
"""Token types of one row [tokens]: the index of the text that a token belongs to."""


@dataclass(frozen=True)
class Encoded:
    """Token ids of examples with special tokens, truncated and not padded."""

    input_ids: list[Ids]
    token_type_ids: list[Types] | None
    truncated: int
    """Number of truncated examples."""


def encode(tokenizer: PreTrainedTokenizerBase, first: list[str], second: list[str] | None, max_length: int) -> Encoded:
    """Tokenise single texts, or pairs if ``second`` is given; the longer text of a pair is truncated."""
    input_ids: list[Ids] = []
    types: list[Types] | None = [] if "token_type_ids" in tokenizer.model_input_names else None
    truncated = 0
    for start in range(0, len(first), TEXTS_AT_ONCE):
        texts = [None if column is None else column[start : start + TEXTS_AT_ONCE] for column in (first, second)]
        cut = tokenizer(*texts, truncation=True, max_length=max_length, verbose=False)
        if (longest := max(map(len, cut["input_ids"]))) > max_length:
            raise PipelineError(f"the tokenizer leaves {longest} tokens, but max_length is {max_length}; raise max_length")
        input_ids += [np.array(ids, dtype=np.int32) for ids in cut["input_ids"]]
        if types is not None:
            types += [np.array(kinds, dtype=np.int8) for kinds in cut["token_type_ids"]]
        if tokenizer.is_fast:
            truncated += sum(bool(encoding.overflowing) for encoding in cut.encodings)
        else:
            whole = tokenizer(*texts, truncation=False, verbose=False)["input_ids"]
            truncated += sum(len(ids) > max_length for ids in whole)
    return Encoded(input_ids, types, truncated)


def check_length(tokenizer: PreTrainedTokenizerBase, pair: bool, max_length: int, source: str) -> None:
    """Require that ``max_length`` holds the special tokens and one token of each text; ``source`` names the tokenizer."""
    special = tokenizer.num_special_tokens_to_add(pair)
    least = special + (2 if pair else 1)
    if max_length < least:
        raise PipelineError(
            f"max_length is {max_length}, but the tokenizer of {source} adds {special} special tokens and each text needs a "
            f"token of its own; set it to at least {least}"
        )


def length_buckets(lengths: Integers, rows: int) -> list[Integers]:
    """Positions 0..n-1 in batches of at most ``rows`` rows of similar length, longest first.

    The cuts minimise padding plus a cost per batch of a tenth of the tokens of a full batch. All batches but the last have a
    multiple of ``EVEN_ROWS`` rows if ``rows`` is one.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    unit = EVEN_ROWS if rows % EVEN_ROWS == 0 else rows
    longest = np.asarray(lengths)[order][::unit].astype(np.float64)
    if not len(longest):
        return []
    ends = _cheapest_ends(longest * unit, most=rows // unit, batch_cost=rows * float(np.mean(lengths)) / 10)
    return np.split(order, [end * unit for end in ends[:-1]])


def _cheapest_ends(unit_costs: npt.NDArray[np.float64], most: int, batch_cost: float) -> list[int]:
    """Ends of batches of 1..most units, by dynamic programming; a batch costs its units times the cost of its first unit."""
    costs, before = np.zeros(len(unit_costs) + 1), np.zeros(len(unit_costs) + 1, dtype=np.int64)
    for end in range(1, len(unit_costs) + 1):
        starts = np.arange(max(0, end - most), end)
        ways = costs[starts] + (end - starts) * unit_costs[starts] + batch_cost
        cheapest = int(ways.argmin())
        costs[end], before[end] = ways[cheapest], starts[cheapest]
    ends = [len(unit_costs)]
    while before[ends[0]]:
        ends.insert(0, int(before[ends[0]]))
    return ends


def collate(
    input_ids: Sequence[Sequence[int] | Integers],
    token_type_ids: Sequence[Sequence[int] | Integers] | None,
    pad_token_id: int,
    tokens: int = 0,
) -> Batch:
    """Pad rows on the right to the longest row, and to at least ``tokens``."""
    batch = {
        "input_ids": _padded(input_ids, pad_token_id, tokens),
        "attention_mask": _padded([np.ones(len(ids), dtype=np.int64) for ids in input_ids], 0, tokens),
    }
    if token_type_ids is not None:
        batch["token_type_ids"] = _padded(token_type_ids, 0, tokens)
    return batch


def model_inputs(batch: Batch) -> Batch:
    """The model inputs of a batch, without labels and other tensors of a loss."""
    return {name: batch[name] for name in MODEL_INPUTS if name in batch}


def ordinary_tokens(batch: Batch, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Mask [rows, tokens] of tokens that are neither padding nor special; unknown words count as ordinary."""
    special = [number for number in tokenizer.all_special_ids if number != tokenizer.unk_token_id]
    return (batch["attention_mask"] == 1) & ~torch.isin(batch["input_ids"], torch.tensor(special).to(batch["input_ids"]))


def _padded(rows: Sequence[Sequence[int] | Integers], value: int, tokens: int) -> Tensor:
    padded = np.full((len(rows), max(tokens, *map(len, rows))), value, dtype=np.int64)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    return torch.from_numpy(padded)
