from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.worlds import first_rows
from pipeline.corpus.task import Task


@pytest.mark.parametrize("rows", [7, 60, 150])
def test_a_corpus_is_cut_or_repeated_to_the_rows_asked_for_each_with_a_name_of_its_own(
    prepared: Path, tmp_path: Path, rows: int
) -> None:
    table = pq.read_table(first_rows(prepared, tmp_path / "cut", rows) / "train.parquet")
    texts = pq.read_table(prepared / "train.parquet")["text_a"].to_pylist()
    assert table["text_a"].to_pylist() == (texts * 3)[:rows]
    assert len(set(table["id"].to_pylist())) == rows
    assert Task.read(tmp_path / "cut") == Task.read(prepared)
