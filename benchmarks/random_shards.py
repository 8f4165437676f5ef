"""Complete shards of random rows, as many as are asked for, to read from. Knows their format; no model, no clock."""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.corpus.task import Task
from pipeline.shards.manifest import Coding, Manifest, ShardEntry
from pipeline.shards.schema import FORMAT_VERSION, Content, shard_schema
from pipeline.shards.writer import write_shard
from pipeline.store.keys import Key

WIDTH = 384
"""Of the word embeddings whose δ they hold."""


def random_shards(folder: Path, rows: int, rows_per_shard: int = 500) -> Path:
    """Soft labels and a perturbed variant of random rows of 5 to 50 tokens, in ``folder / "soft_labels"`` and ``"shards"``."""
    generator = np.random.default_rng(rows)
    starts = range(0, rows, rows_per_shard)
    held = [_random_columns(generator, range(start, min(start + rows_per_shard, rows))) for start in starts]
    _write(folder / "soft_labels", "soft_labels", 0, held)
    _write(folder / "shards", "variants", 1, held)
    return folder


def _random_columns(generator: np.random.Generator, numbers: range) -> dict[str, Any]:
    lengths = generator.integers(5, 51, len(numbers)).tolist()
    logits = generator.normal(size=(len(numbers), 2)).astype(np.float32)
    return {
        "example_id": [f"row{number:08d}" for number in numbers],
        "input_ids": [generator.integers(5, 30_000, length) for length in lengths],
        "token_type_ids": [np.zeros(length, dtype=np.int8) for length in lengths],
        "label": [0] * len(numbers),
        "teacher_logits": list(logits),
        "delta": [generator.bytes(length * WIDTH) for length in lengths],
        "delta_scale": [generator.random(length, dtype=np.float32) for length in lengths],
        "perturbed_logits": list(logits),
        "divergence": [0.1] * len(numbers),
        "flipped": [False] * len(numbers),
    }


def _write(folder: Path, content: Content, variant: int, held: list[dict[str, Any]]) -> None:
    """One variant of every row as a complete set of shards."""
    folder.mkdir(parents=True)
    task = Task(name="random", kind="classification", metric="accuracy", labels=("no", "yes"), pair=False)
    schema, entries = shard_schema(content, task.kind, token_types=True), []
    for number, columns in enumerate(held):
        key: Key = {"content": content, "examples": f"partition {number}"}
        rows = {"variant": [variant] * len(columns["label"]), **columns}
        chosen = {name: rows[name] for name in schema.names}
        receipt = write_shard(folder / f"{number}.arrow", schema, chosen, key, {}, {})
        entries.append(ShardEntry(file=f"{number}.arrow", split="train", variant=variant, partition=number, receipt=receipt))
    Manifest(
        format_version=FORMAT_VERSION,
        content=content,
        task=task,
        key={"content": content},
        token_types=True,
        pad_token_id=0,
        coding=Coding(codec="int8", width=WIDTH) if variant else None,
        variants=variant,
        details={"checkpoints": 0, "recipes": [["perturb"]]},
        shards=tuple(entries),
    ).save(folder)
