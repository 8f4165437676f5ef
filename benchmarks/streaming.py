"""One variant read twice: by this reader, and as a stream of `datasets`; both give the same tensors. Knows no clock."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import load_dataset

from pipeline.corpus.encoding import Batch, collate
from pipeline.shards.batches import CODES, SCALES, matrix_at, variant_at
from pipeline.shards.codec import CODECS
from pipeline.shards.manifest import Manifest
from pipeline.shards.reader import Shards


def own_batches(shards: Shards, batch_rows: int) -> Iterator[Batch]:
    """Variant 1 from its first row to its last."""
    rows = shards.rows("train", 1)
    for start in range(0, len(rows), batch_rows):
        positions = np.arange(start, min(start + batch_rows, len(rows)))
        logits = matrix_at(rows, "perturbed_logits", positions)
        yield variant_at(rows, positions, shards.manifest) | {"logits": logits}


def streamed(shards: Shards, cache: Path) -> Any:
    """The same shards as a stream of `datasets`, as numpy arrays."""
    files = [str(shards.folder / entry.file) for entry in shards.manifest.of_split("train") if entry.variant == 1]
    stream = load_dataset("arrow", data_files=files, split="train", streaming=True, cache_dir=str(cache))
    return stream.with_format("numpy")


def streamed_batches(stream: Any, manifest: Manifest, batch_rows: int) -> Iterator[Batch]:
    """The same tensors, row by row."""
    for held in stream.iter(batch_size=batch_rows):
        batch = collate(held["input_ids"], held.get("token_type_ids"), manifest.pad_token_id)
        if manifest.coding is not None and any(delta is not None for delta in held["delta"]):
            codec, width = CODECS[manifest.coding.codec], manifest.coding.width
            codes = np.zeros((*batch["input_ids"].shape, width), dtype=codec.dtype)
            scales = np.zeros(batch["input_ids"].shape, dtype=np.float32)
            for row, (delta, scale) in enumerate(zip(held["delta"], held["delta_scale"], strict=True)):
                if delta is not None:
                    # numpy drops zeros at the end of bytes.
                    whole = bytes(delta).ljust(len(scale) * width * codec.bits // 8, b"\0")
                    codes[row, : len(scale)], scales[row, : len(scale)] = codec.unpack(whole, width), scale
            batch |= {CODES: torch.from_numpy(codes), SCALES: torch.from_numpy(scales)}
        yield batch | {"logits": torch.from_numpy(np.stack(list(held["perturbed_logits"])).astype(np.float32))}
