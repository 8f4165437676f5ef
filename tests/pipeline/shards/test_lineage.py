import shutil
from pathlib import Path

from pipeline.shards.manifest import lineage
from tests.world import make_task, save_teacher


def test_a_lineage_says_what_decides_every_shard_and_nothing_of_the_folder(teacher: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(teacher, tmp_path / "moved"))
    found = lineage(moved)
    assert found == lineage(teacher)
    assert found["labels"] == ["bad", "good"]
    other = lineage(save_teacher(tmp_path / "other", make_task(), seed=4))
    assert {name for name in found if found[name] != other[name]} == {"teacher"}
