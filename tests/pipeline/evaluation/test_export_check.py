from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.errors import PipelineError
from pipeline.corpus.encoding import Batch
from pipeline.corpus.task import Floats
from pipeline.evaluation.export_check import (
    CHECKED_ROWS,
    allowed_difference,
    check_difference,
    logits_in_mixed_batches,
    mixed_groups,
)
from pipeline.shards.reader import Rows


def rows_with(token_types: bool) -> Rows:
    """90 rows of 1 to 18 tokens."""
    random = np.random.default_rng(0)
    ids = [random.integers(4, 39, length) for length in random.integers(1, 19, 90)]
    columns = {"input_ids": pa.array(ids, pa.list_(pa.int32()))}
    if token_types:
        columns["token_type_ids"] = pa.array([row % 2 for row in ids], pa.list_(pa.int8()))
    table = pa.table(columns)
    return Rows(table.schema, [table])


@given(st.integers(1, 300))
def test_mixed_groups_hold_every_row_once_and_differ_in_size(rows: int) -> None:
    groups = mixed_groups(rows)
    assert sorted(np.concatenate(groups).tolist()) == list(range(rows))
    sizes = [len(group) for group in groups]
    assert sizes[:-1] == [CHECKED_ROWS[number % len(CHECKED_ROWS)] for number in range(len(sizes) - 1)]
    assert 1 <= sizes[-1] <= CHECKED_ROWS[(len(sizes) - 1) % len(CHECKED_ROWS)]
    assert rows < 50 or np.concatenate(groups).tolist() != list(range(rows)), "rows sorted by length would hardly be padded"


@pytest.mark.parametrize("token_types", [True, False])
def test_logits_are_in_row_order_and_batches_mix_lengths_and_hold_what_the_rows_have(token_types: bool) -> None:
    rows, padding, sizes = rows_with(token_types), [], []

    def answer(batch: Batch) -> Floats:
        assert ("token_type_ids" in batch) == token_types
        padding.append(bool((batch["attention_mask"] == 0).any()))
        sizes.append(len(batch["input_ids"]))
        assert not padding[-1] or batch["input_ids"][batch["attention_mask"] == 0].unique().tolist() == [1]
        types = batch.get("token_type_ids", batch["input_ids"] * 0)
        return torch.stack([batch["input_ids"][:, 0], batch["attention_mask"].sum(dim=1), types.sum(dim=1)], dim=1).numpy()

    found = logits_in_mixed_batches(answer, rows, 1, 3)
    ids = rows.lists("input_ids")
    assert found.tolist() == [[row[0], len(row), (row % 2).sum() * token_types] for row in ids]
    assert found.dtype == np.float32
    assert sizes == [1, 2, 3, 5, 8, 13, 21, 32, 1, 2, 2]
    assert sum(padding) > len(padding) / 2


def test_the_allowed_difference_is_a_share_of_the_largest_logit() -> None:
    wanted = np.array([[1.0, -20.0], [3.0, 0.0]])
    assert allowed_difference(wanted) == pytest.approx(2e-3)
    check_difference(Path("half"), wanted + np.array([[0.0, 1.9e-3], [0.0, 0.0]]), wanted)
    for wrong in (2.1e-3, -2.1e-3, np.nan):
        with pytest.raises(PipelineError, match=r"half as ONNX answers otherwise than by torch: .* may differ by 2\.0e-03"):
            check_difference(Path("half"), wanted + np.array([[0.0, 0.0], [0.0, wrong]]), wanted)
