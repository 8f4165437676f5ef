import shutil
from pathlib import Path
from types import ModuleType

from pipeline import encoding, perturbation
from pipeline.shards.lineage import code_hash, lineage
from tests.world import make_task, save_teacher


def module_at(path: Path, source: str) -> ModuleType:
    path.write_text(source, encoding="utf-8")
    module = ModuleType("search")
    module.__file__ = str(path)
    return module


def test_changed_code_is_another_key(tmp_path: Path) -> None:
    before = code_hash(module_at(tmp_path / "search.py", "STEP = 1"), encoding)
    assert code_hash(module_at(tmp_path / "search.py", "STEP = 1"), encoding) == before
    assert code_hash(module_at(tmp_path / "search.py", "STEP = 2"), encoding) != before
    assert code_hash(encoding, perturbation) == code_hash(perturbation, encoding)


def test_a_lineage_says_what_decides_every_shard_and_nothing_of_the_folder(teacher: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(teacher, tmp_path / "moved"))
    found = lineage(moved)
    assert found == lineage(teacher)
    assert found["labels"] == ["bad", "good"]
    other = lineage(save_teacher(tmp_path / "other", make_task(), seed=4))
    assert {name for name in found if found[name] != other[name]} == {"teacher"}
