from pathlib import Path

import pytest
import torch

from benchmarks import streaming
from pipeline.augment.passes import augment
from pipeline.shards.reader import Shards
from tests.world import augment_settings, runtime_at

ROWS = 60

Folders = tuple[Path, Path]


@pytest.mark.parametrize(("recipe", "codec"), [(["mask", "perturb"], "float16"), (["perturb"], "sign"), (["mix"], "int8")])
def test_datasets_gives_the_same_tensors(recipe: list[str], codec: str, made: Folders, teacher: Path, tmp_path: Path) -> None:
    """Batches of 7 rows cross the borders of shards of 16."""
    settings = augment_settings(recipes=[recipe], variants=1, codec=codec)
    augment(made[0], teacher, None, settings, runtime_at(tmp_path), tmp_path / "shards")
    shards = Shards(tmp_path / "shards")
    own = list(streaming.own_batches(shards, 7))
    theirs = list(streaming.streamed_batches(streaming.streamed(shards, tmp_path / "cache"), shards.manifest, 7))
    assert sum(len(batch["input_ids"]) for batch in own) == ROWS
    for one, other in zip(own, theirs, strict=True):
        assert one.keys() == other.keys()
        assert ("codes" in one, "partner_ids" in one) == ("perturb" in recipe, "mix" in recipe)
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], rtol=0, atol=0, msg=name)
