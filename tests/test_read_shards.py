import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.shards.batches import CODES, SCALES, variant_at
from pipeline.shards.codec import dequantise
from pipeline.shards.manifest import MANIFEST_FILE, Manifest, put_shards
from pipeline.shards.reader import Shards
from pipeline.store.bucket import bucket_store
from tests.bucket import bucket, server
from tests.parameters import ROOT
from tests.world import augment_settings, make_shards

__all__ = ["bucket", "server"]

BLOCKS: list[str] = re.findall(r"```python\n(.*?)```", (ROOT / "docs/read-shards.md").read_text(encoding="utf-8"), re.S)


@pytest.mark.parametrize("codec", ["float16", "int8", "sign"])
def test_the_code_of_the_page_reads_what_our_reader_reads(codec: str, prepared: Path, teacher: Path, tmp_path: Path) -> None:
    shards = make_shards(tmp_path, prepared, teacher, augment_settings(codec=codec, recipes=[["perturb"], ["mask"]]))[1]
    found: dict[str, Any] = {}
    exec("\n".join(BLOCKS).replace("data/shards/movies", str(shards)).replace("data/teacher/movies", str(teacher)), found)
    torch.testing.assert_close(found["logits"], found["target"], atol=1e-5, rtol=1e-4)
    ours = Shards(shards)
    for variant in (1, 2):
        for at, (row, delta) in enumerate(found["rows"](shards, variant)):
            wanted = variant_at(ours.rows("train", variant), torch.tensor([at]).numpy(), ours.manifest)
            assert row["input_ids"] == wanted["input_ids"][0].tolist()
            assert (delta is None) == (CODES not in wanted) == (variant == 2)
            assert delta is None or torch.equal(torch.from_numpy(delta), dequantise(wanted[CODES], wanted[SCALES])[0])
        assert at + 1 == len(ours.rows("train", variant))


def test_the_code_of_the_page_downloads_the_shards_of_a_bucket(
    bucket: str, server: str, prepared: Path, teacher: Path, tmp_path: Path
) -> None:
    store = bucket_store(bucket, str(tmp_path / "cache"), 10**9)
    found: dict[str, Any] = {}
    exec("\n".join(block for block in BLOCKS if "def " in block), found)
    for made in make_shards(tmp_path, prepared, teacher):
        put_shards(store, made, Manifest.read(made).shards)
        (tmp_path / "only" / made.name).mkdir(parents=True)
        shutil.copy(made / MANIFEST_FILE, tmp_path / "only" / made.name)
        url = f"{bucket}?scheme=http&endpoint_override={server.removeprefix('http://')}"
        found["download"](tmp_path / "only" / made.name, url, tmp_path / "out" / made.name)
        entries = Manifest.read(made).shards
        assert entries == Manifest.read(tmp_path / "out" / made.name).shards
        for entry in entries:
            assert (tmp_path / "out" / made.name / entry.file).read_bytes() == (made / entry.file).read_bytes()
