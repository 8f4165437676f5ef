import pickle
from pathlib import Path

import numpy as np

from pipeline.augment.columns import (
    candidates_columns,
    packed_candidates,
    read_candidates,
    unpacked_candidates,
)
from pipeline.augment.inputs import Inputs
from pipeline.augment.masked_lm import RowCandidates
from pipeline.shards.schema import candidates_schema
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
