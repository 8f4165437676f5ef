from pathlib import Path

from benchmarks import random_shards, reader
from pipeline.shards.reader import Shards


def test_random_shards_have_the_rows_asked_for_and_their_variants(tmp_path: Path) -> None:
    folder = random_shards.random_shards(tmp_path, 70, rows_per_shard=30)
    scores, shards = Shards(folder / "scores"), Shards(folder / "shards")
    assert [entry.receipt.rows for entry in shards.manifest.of_split("train")] == [30, 30, 10]
    assert len(scores.rows("train", 0)) == len(shards.rows("train", 1)) == 70
    for row in (shards.rows("train", 1)[0], shards.rows("train", 1)[69]):
        assert row.delta is not None
        assert len(row.delta) == len(row.input_ids) * random_shards.WIDTH
    assert reader.read(reader.loader_of(scores, shards)) == 70
