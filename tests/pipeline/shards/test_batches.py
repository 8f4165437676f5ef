from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.encoding import Batch, collate
from pipeline.corpus.task import Task
from pipeline.perturbation.inputs import mixing_batch
from pipeline.shards import writer
from pipeline.shards.batches import CODES, SCALES, inputs_at, matrix_at, variant_at
from pipeline.shards.codec import CODECS
from pipeline.shards.manifest import Coding, Manifest, ShardEntry
from pipeline.shards.reader import Positions, Row, Rows, Shards
from pipeline.shards.schema import FORMAT_VERSION, CodecName, shard_schema
from pipeline.shards.writer import write_shard
from pipeline.store.hashing import Key

TASK = Task(name="tiny", kind="classification", metric="accuracy", labels=("a", "b", "c"), pair=False)
KEY: Key = {"format_version": FORMAT_VERSION, "teacher": "ab" * 32}
PAD = 7
"""Not 0, which fills everything else, and itself a token of some partners."""
WIDTH = 11
"""Its sign bits do not fill whole bytes."""
SIZES = (10, 1, 13, 4)
"""Rows of the shards; none of two and more is a multiple of the record batch."""
COUNT = sum(SIZES)

Recipe = tuple[bool, bool]
"""Whether a row is mixed, and whether it is perturbed."""
EDITED, PERTURBED, MIXED, BOTH = (False, False), (False, True), (True, False), (True, True)
RECIPES: list[Recipe] = [PERTURBED, EDITED, MIXED, BOTH, EDITED, PERTURBED, MIXED]

Positioned = tuple[Rows, Manifest]
positions_of = st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=24).map(lambda found: np.array(found, dtype=np.int64))


def row(number: int, codec: CodecName, types: bool, recipe: Recipe) -> dict[str, Any]:
    """A random row of 1 to 9 tokens."""
    generator, (mixed, moved) = np.random.default_rng(number), recipe
    length = generator.integers(1, 10)
    codes = generator.integers(-127, 128, (length, WIDTH))
    codes = np.where(codes < 0, -1, 1) if codec == "sign" else codes
    return {
        "example_id": f"row-{number}",
        "variant": 1,
        "input_ids": generator.integers(0, 99, length),
        "label": None,
        "teacher_logits": generator.normal(size=3).astype(np.float32),
        "partner_id": "another" if mixed else None,
        "partner_ids": generator.choice([PAD, 0, 50], length) if mixed else None,
        "own_weight": number % 4 / 4 if mixed else None,
        "delta": CODECS[codec].pack(codes.astype(CODECS[codec].dtype)) if moved else None,
        "delta_scale": generator.random(length, dtype=np.float32) if moved else None,
        "perturbed_logits": generator.normal(size=3).astype(np.float32),
        "divergence": 0.1,
        "flipped": False,
        **({"token_type_ids": generator.integers(0, 3, length).astype(np.int8)} if types else {}),
    }


def write(folder: Path, codec: CodecName = "int8", types: bool = True, recipes: Sequence[Recipe] = RECIPES) -> Positioned:
    """Shards of several record batches, and what is known of them."""
    schema, entries = shard_schema("perturbations", "classification", types), []
    for number, rows in enumerate(SIZES):
        key = KEY | {"examples": str(number)}
        first = sum(SIZES[:number])
        held = [row(place, codec, types, recipes[place % len(recipes)]) for place in range(first, first + rows)]
        by_column = {name: [one[name] for one in held] for name in held[0]}
        receipt = write_shard(folder / f"{number}.arrow", schema, by_column, key, {}, {})
        entries.append(ShardEntry(file=f"{number}.arrow", split="train", variant=1, partition=number, receipt=receipt))
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        content="perturbations",
        task=TASK,
        key=KEY,
        token_types=types,
        pad_token_id=PAD,
        coding=Coding(codec=codec, width=WIDTH),
        variants=1,
        details={},
        shards=tuple(entries),
    )
    manifest.save(folder)
    return Shards(folder).rows("train", 1), manifest


@pytest.fixture(scope="module")
def small_batches() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "ROWS_PER_BATCH", 3)
        yield


@pytest.fixture(scope="module", params=[("float16", True), ("int8", False), ("sign", True)], ids=lambda found: found[0])
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, small_batches: None) -> Any:
    """Rows of all recipes, in every codec, with token types and without."""
    return write(tmp_path_factory.mktemp("stored"), *request.param)


def rows_at(rows: Rows, positions: Positions) -> list[Row]:
    """One by one."""
    return [rows[int(position)] for position in positions]


def types_of(rows: Sequence[Row]) -> list[npt.NDArray[np.int8]] | None:
    return [row.token_type_ids for row in rows if row.token_type_ids is not None] or None


def by_hand(rows: Sequence[Row], manifest: Manifest) -> Batch:
    """A batch of variants, row by row."""
    assert manifest.coding is not None
    codec = manifest.coding.codec
    ids = [row.input_ids for row in rows]
    batch = mixing_batch(ids, types_of(rows), [row.partner_ids for row in rows], [row.own_weight for row in rows], PAD)
    if any(row.delta is not None for row in rows):
        codes = torch.zeros((*batch["input_ids"].shape, WIDTH), dtype=torch.from_numpy(np.zeros(1, CODECS[codec].dtype)).dtype)
        scales = torch.zeros(batch["input_ids"].shape)
        for number, row in enumerate(rows):
            if row.delta is not None and row.delta_scale is not None:
                codes[number, : len(row.input_ids)] = torch.from_numpy(CODECS[codec].unpack(row.delta, WIDTH).copy())
                scales[number, : len(row.input_ids)] = torch.tensor(row.delta_scale)
        batch |= {CODES: codes, SCALES: scales}
    return batch


def check_equal(found: Batch, wanted: Batch) -> None:
    """To the bit and to the type."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


@given(positions=positions_of)
def test_inputs_are_what_collating_the_rows_one_by_one_gives(stored: Positioned, positions: Positions) -> None:
    rows = rows_at(stored[0], positions)
    check_equal(inputs_at(stored[0], positions, PAD), collate([row.input_ids for row in rows], types_of(rows), PAD))


@given(positions=positions_of)
def test_variants_are_what_mixing_and_decoding_the_rows_one_by_one_gives(stored: Positioned, positions: Positions) -> None:
    rows, manifest = stored
    check_equal(variant_at(rows, positions, manifest), by_hand(rows_at(rows, positions), manifest))


@given(positions=positions_of)
def test_a_matrix_has_the_lists_of_the_rows_under_each_other(stored: Positioned, positions: Positions) -> None:
    found = matrix_at(stored[0], "perturbed_logits", positions)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), np.stack([row.perturbed_logits for row in rows_at(stored[0], positions)]))


@pytest.mark.parametrize("recipe", [EDITED, PERTURBED, MIXED])
def test_shards_of_one_recipe_alone_whose_other_columns_are_null_throughout_are_read_alike(
    recipe: Recipe, tmp_path: Path, small_batches: None
) -> None:
    rows, manifest = write(tmp_path, recipes=[recipe])
    positions = np.array([20, 3, 3, 27, 0, 11])
    check_equal(variant_at(rows, positions, manifest), by_hand(rows_at(rows, positions), manifest))


def test_tensors_are_copies_that_may_be_written_and_leave_the_shard_as_it_was(stored: Positioned) -> None:
    rows, manifest = stored
    positions = np.arange(COUNT)
    before = {name: value.clone() for name, value in variant_at(rows, positions, manifest).items()}
    for value in variant_at(rows, positions, manifest).values():
        value.zero_()
    matrix_at(rows, "perturbed_logits", positions).zero_()
    check_equal(variant_at(rows, positions, manifest), before)
    assert matrix_at(rows, "perturbed_logits", positions).any()
