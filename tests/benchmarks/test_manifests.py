from pathlib import Path

import pytest

from benchmarks import manifests
from pipeline.shards.manifest import Manifest
from tests.benchmarks.figures import by_key


@pytest.fixture
def pattern(made: tuple[Path, Path]) -> Manifest:
    """Of two variants."""
    return Manifest.read(made[1])


def test_an_enlarged_manifest_has_so_many_different_shards_with_whole_keys(pattern: Manifest) -> None:
    large = manifests.enlarged(pattern, 20)
    keys = [entry.receipt.key for entry in large.shards]
    assert len({key["examples"] for key in keys}) == len(large.stored_as) == 20
    assert {entry.variant for entry in large.shards} == {1, 2}
    assert all(pattern.key.items() <= key.items() for key in keys)


def test_only_changed_shards_differ(pattern: Manifest) -> None:
    lines = manifests.different(manifests.enlarged(pattern, 20), manifests.enlarged(pattern, 20, changed=2))
    assert [line.split(":")[1] for line in lines] == [" examples", " examples"]


def test_dvc_gets_a_file_for_every_shard_or_the_manifest_alone(
    pattern: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests, "dvc", lambda folder, *arguments: None)
    figures = by_key(manifests.manifest_figures(tmp_path, pattern, 5))
    assert len(list((tmp_path / "dvc" / "shards" / "out").iterdir())) == 6
    assert [file.name for file in (tmp_path / "dvc" / "manifest" / "out").iterdir()] == ["manifest.json"]
    assert figures["manifest_mb"] > 0
