"""Rows as the columns of a shard, and back, and what is counted of them. Knows the schema's names, not keys or the store."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.augment.inputs import Inputs, Packed, Partner, packed, unpacked
from pipeline.augment.masked_lm import RowCandidates
from pipeline.augment.variants import Made
from pipeline.corpus.task import Floats
from pipeline.shards.reader import Rows
from pipeline.shards.schema import candidates_schema

Columns = dict[str, list[Any]]
"""By the names of a shard's schema, each as long as the rows."""


def scores_columns(inputs: Inputs, labels: list[float | int | None], logits: Floats) -> Columns:
    """Columns of the teacher's logits [rows, outputs] on clean inputs."""
    return _shared(inputs, 0, labels, logits)


def perturbations_columns(made: Made, variant: int, labels: list[float | int | None], logits: Floats) -> Columns:
    """Of one variant; ``logits`` [rows, outputs] are the teacher's on the untouched inputs."""
    partners: Sequence[Partner | None] = made.inputs.partners or [None] * len(made.labels)
    return _shared(made.inputs, variant, labels, logits) | {
        "partner_id": [None if partner is None else partner.example_id for partner in partners],
        "partner_ids": [None if partner is None else partner.input_ids for partner in partners],
        "own_weight": [None if partner is None else partner.own_weight for partner in partners],
        "delta": [label.delta for label in made.labels],
        "delta_scale": [label.delta_scale for label in made.labels],
        "perturbed_logits": [label.logits for label in made.labels],
        "divergence": [label.divergence for label in made.labels],
        "flipped": [label.flipped for label in made.labels],
    }


def _shared(inputs: Inputs, variant: int, labels: list[float | int | None], logits: Floats) -> Columns:
    types = {} if inputs.token_type_ids is None else {"token_type_ids": list(inputs.token_type_ids)}
    return {
        "example_id": list(inputs.example_ids),
        "variant": [variant] * len(inputs.example_ids),
        "input_ids": list(inputs.input_ids),
        **types,
        "label": labels,
        "teacher_logits": list(logits),
    }


def statistics_of(made: Made) -> dict[str, float]:
    """What a variant's receipt says of its rows."""
    return {
        "divergence": float(np.mean([label.divergence for label in made.labels])),
        "flipped": float(sum(label.flipped for label in made.labels)),
        "vanished": float(sum(label.vanished for label in made.labels)),
        "shortened": float(sum(label.shortened for label in made.labels)),
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
