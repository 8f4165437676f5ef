"""Rows of shards as batches of padded tensors, for training and evaluation."""

import numpy as np
import torch
from torch import Tensor

from pipeline.corpus.encoding import Batch
from pipeline.shards.codec import CODECS
from pipeline.shards.manifest import Coding, Manifest
from pipeline.shards.reader import Lists, Positions, Rows

CODES, SCALES = "codes", "scales"
"""Names of a batch's coded δ: [rows, tokens, width] and [rows, tokens]."""


def inputs_at(rows: Rows, positions: Positions, pad_token_id: int) -> Batch:
    """Model inputs of the rows at some positions, padded on the right to the longest of them."""
    ids = rows.lists_at("input_ids", positions)
    longest = int(ids.lengths.max(initial=0))
    batch = {
        "input_ids": torch.from_numpy(ids.padded(pad_token_id, longest, np.int64)),
        "attention_mask": torch.from_numpy(ids.inside(longest).astype(np.int64)),
    }
    if rows.has("token_type_ids"):
        types = rows.lists_at("token_type_ids", positions)
        batch["token_type_ids"] = torch.from_numpy(types.padded(0, longest, np.int64))
    return batch


def matrix_at(rows: Rows, name: str, positions: Positions) -> Tensor:
    """A column of equally long lists at some positions, [rows, values] in float32."""
    return torch.from_numpy(rows.lists_at(name, positions).values.reshape(len(positions), -1).astype(np.float32))


def variant_at(rows: Rows, positions: Positions, manifest: Manifest) -> Batch:
    """Variants as the teacher labelled them: inputs, and coded δ if any row has one.

    A row that is not perturbed has a δ of zero.
    """
    batch = inputs_at(rows, positions, manifest.pad_token_id)
    longest = batch["input_ids"].shape[1]
    coded = rows.lists_at("delta", positions)
    if coded.lengths.any():
        assert manifest.coding is not None, "a set with perturbed rows has a coding"
        batch |= _coded(coded, rows.lists_at("delta_scale", positions), manifest.coding, longest)
    return batch


def _coded(coded: Lists, scales: Lists, coding: Coding, longest: int) -> Batch:
    """Codes [rows, tokens, width] and scales [rows, tokens]; zero on padding and in rows that are not perturbed."""
    codec = CODECS[coding.codec]
    codes = np.zeros((len(coded.lengths), longest, coding.width), dtype=codec.dtype)
    codes[scales.inside(longest)] = codec.unpack(coded.values.data, coding.width)
    return {CODES: torch.from_numpy(codes), SCALES: torch.from_numpy(scales.padded(0, longest, np.float32))}
