"""Rows as the columns of a shard, and back. Knows the schema's names, not keys or the store."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.augment.inputs import Inputs, Packed, packed, unpacked
from pipeline.augment.masked_lm import RowCandidates
from pipeline.corpus.task import Floats
from pipeline.shards.reader import Rows
from pipeline.shards.schema import candidates_schema

Columns = dict[str, list[Any]]
"""By the names of a shard's schema, each as long as the rows."""


def scores_columns(inputs: Inputs, labels: list[float | int | None], logits: Floats, states: Floats | None) -> Columns:
    """Of the teacher's logits [rows, outputs] and, where they are kept, its hidden states [rows, layers × width]."""
    return shared_columns(inputs, 0, labels, logits) | ({} if states is None else {"hidden": list(states)})


def shared_columns(inputs: Inputs, variant: int, labels: list[float | int | None], logits: Floats) -> Columns:
    """The columns that all shards have; ``logits`` [rows, outputs] are the teacher's on the clean inputs."""
    types = {} if inputs.token_type_ids is None else {"token_type_ids": list(inputs.token_type_ids)}
    return {
        "example_id": list(inputs.example_ids),
        "variant": [variant] * len(inputs.example_ids),
        "input_ids": list(inputs.input_ids),
        **types,
        "label": labels,
        "teacher_logits": list(logits),
    }


def candidates_columns(inputs: Inputs, found: Sequence[RowCandidates]) -> Columns:
    """Of the words that may stand for those of each row."""
    return {
        "example_id": list(inputs.example_ids),
        "input_ids": list(inputs.input_ids),
        "starts": [row.starts for row in found],
        "stops": [row.stops for row in found],
        "candidates": [row.ids for row in found],
    }


def read_candidates(path: Path) -> list[RowCandidates]:
    """The words of a shard of candidates."""
    with pa.ipc.open_file(pa.memory_map(str(path))) as file:
        rows = Rows(candidates_schema(), [file.read_all()])
    return _candidates([rows.lists(name) for name in ("starts", "stops", "candidates")])


def packed_candidates(candidates: Sequence[RowCandidates]) -> list[Packed]:
    """Words as the few arrays in which they travel."""
    return [packed([getattr(row, field.name) for row in candidates]) for field in fields(RowCandidates)]


def unpacked_candidates(words: Sequence[Packed]) -> list[RowCandidates]:
    """The words again."""
    return _candidates([unpacked(column) for column in words])


def _candidates(columns: Sequence[Sequence[Any]]) -> list[RowCandidates]:
    return [RowCandidates(*row) for row in zip(*columns, strict=True)]
