"""The code in docs/read-shards.md reads what the project's own reader reads."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.shards.batches import CODES, SCALES, variant_at
from pipeline.shards.codec import dequantise
from pipeline.shards.reader import Shards
from tests.parameters import ROOT
from tests.world import augment_settings, make_shards


@pytest.mark.parametrize("codec", ["float16", "int8", "sign"])
def test_the_code_of_the_page_reads_what_our_reader_reads(codec: str, prepared: Path, teacher: Path, tmp_path: Path) -> None:
    settings = augment_settings(codec=codec, recipes=[["perturb"], ["mask"]])
    soft_labels, shards = make_shards(tmp_path, prepared, teacher, settings)
    code = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs/read-shards.md").read_text(encoding="utf-8"), re.S))
    found: dict[str, Any] = {}
    exec(code.replace("data/shards/movies", str(shards)).replace("data/teacher/movies", str(teacher)), found)
    torch.testing.assert_close(found["logits"], found["target"], atol=1e-5, rtol=1e-4)
    ours = Shards(shards)
    for variant in (1, 2):
        wanted, read = ours.rows("train", variant), list(found["rows"](shards, variant))
        batch = variant_at(wanted, np.arange(len(wanted)), ours.manifest)
        deltas = dequantise(batch[CODES], batch[SCALES]).numpy() if variant == 1 else [None] * len(wanted)
        for (row, delta), expected, moved in zip(read, wanted, deltas, strict=True):
            assert (row["example_id"], row["input_ids"]) == (expected.example_id, list(expected.input_ids))
            assert delta is None if moved is None else np.array_equal(delta, moved[: len(delta)])
    assert len(list(found["rows"](soft_labels, 0, "test"))) == len(Shards(soft_labels).rows("test", 0))
