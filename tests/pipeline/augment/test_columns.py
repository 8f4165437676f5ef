import pickle
from pathlib import Path

import numpy as np
import pytest
from pipeline.augment.columns import (
    candidates_columns,
    packed_candidates,
    read_candidates,
    scores_columns,
    unpacked_candidates,
)

from pipeline.augment.batches import Inputs
from pipeline.augment.candidates import RowCandidates
from pipeline.shards.schema import candidates_schema, shard_schema
from pipeline.shards.writer import write_shard


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


INPUTS = Inputs(["a", "b"], [ids(2, 7, 8, 3), ids(2, 3)], None)
WORDS = [RowCandidates(ids(1, 2), ids(2, 3), ids(5, 6, 9, 4)), RowCandidates(ids(), ids(), ids())]


def assert_same(found: list[RowCandidates]) -> None:
    assert len(found) == len(WORDS)
    for one, other in zip(found, WORDS, strict=True):
        for name, values in vars(other).items():
            np.testing.assert_array_equal(getattr(one, name), values, strict=True)


def test_words_come_back_from_their_shard_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "words.arrow"
    write_shard(path, candidates_schema(), candidates_columns(INPUTS, WORDS), {"content": "candidates"}, {}, {})
    assert_same(read_candidates(path))


def test_words_travel_as_a_few_arrays_however_many_rows_there_are() -> None:
    arrays = list[pickle.PickleBuffer]()
    held = pickle.dumps(packed_candidates(WORDS * 50), 5, buffer_callback=arrays.append)
    assert len(arrays) == 6, "values and lengths of starts, stops and candidates"
    assert_same(unpacked_candidates(pickle.loads(held, buffers=arrays))[-2:])


@pytest.mark.parametrize("kept", [False, True])
def test_hidden_states_are_a_column_where_they_are_kept(kept: bool) -> None:
    logits, states = np.zeros((2, 3), dtype=np.float32), np.ones((2, 8), dtype=np.float32)
    columns = scores_columns(INPUTS, [0, None], logits, states if kept else None)
    assert set(columns) == set(shard_schema("scores", "classification", False, kept).names)
    assert {len(column) for column in columns.values()} == {2}
