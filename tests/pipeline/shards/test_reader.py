import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.corpus.task import Split, Task
from pipeline.shards import writer
from pipeline.shards.codec import CODECS
from pipeline.shards.manifest import MANIFEST_FILE, Coding, Manifest, ShardEntry, ShardMismatch
from pipeline.shards.reader import Lists, Positions, Rows, Shards, join
from pipeline.shards.schema import FORMAT_VERSION, Content, shard_schema
from pipeline.shards.writer import write_shard
from pipeline.store.files import write_json
from pipeline.store.hashing import Key

TASK = Task(name="tiny", kind="classification", metric="accuracy", labels=("bad", "good"), pair=False)
VALUES = Task(name="tiny", kind="regression", metric="pearson", labels=(), pair=False)
KEY: Key = {"format_version": FORMAT_VERSION, "teacher": "ab" * 32}
WIDTH = 3


EDITED, MIXED = 3, 4  # variants without δ; the others are perturbed


def columns(ids: Sequence[str], variant: int, task: Task, types: bool) -> dict[str, Any]:
    """Rows whose every value can be told from the number in their id."""
    numbers = [int(name.split("-")[-1]) for name in ids]
    labels = [None if n % 4 == 3 else n % 2 if task.kind == "classification" else n / 2 for n in numbers]
    shared: dict[str, Any] = {
        "example_id": list(ids),
        "variant": [variant] * len(ids),
        "input_ids": [[n, *range(n % 5 + 1)] for n in numbers],
        "label": labels,
        "teacher_logits": [[n, -n][: task.outputs] for n in numbers],
    }
    if types:
        shared["token_type_ids"] = [[0, *[1] * (n % 5 + 1)] for n in numbers]
    if variant == 0:
        return shared
    coded, mixed = variant not in (EDITED, MIXED), variant == MIXED
    deltas = [np.full((n % 5 + 2, WIDTH), n % 100, np.int8) for n in numbers]
    return shared | {
        "partner_id": [f"row-{n + 1}" if mixed else None for n in numbers],
        "partner_ids": [[n + 1, *range(10, n % 5 + 11)] if mixed else None for n in numbers],
        "own_weight": [n / 8 if mixed else None for n in numbers],
        "delta": [delta.tobytes() if coded else None for delta in deltas],
        "delta_scale": [[variant / 4] * len(delta) if coded else None for delta in deltas],
        "perturbed_logits": [[n + variant, n - variant][: task.outputs] for n in numbers],
        "divergence": [0.1] * len(ids),
        "flipped": [False] * len(ids),
    }


def write(folder: Path, parts: dict[tuple[Split, int], list[Sequence[str]]], task: Task = TASK, types: bool = True) -> Manifest:
    """A complete folder; ``parts`` holds the ids of each partition of each variant of each split."""
    entries = []
    content: Content = "perturbations" if any(variant for _, variant in parts) else "scores"
    for (split, variant), partitions in parts.items():
        for number, ids in enumerate(partitions):
            file = f"{split}-variant-{variant}-{number:05d}.arrow"
            key = KEY | {"variant": variant, "examples": f"{split} {number}"}
            schema = shard_schema(content, task.kind, types)
            receipt = write_shard(folder / file, schema, columns(ids, variant, task, types), key, {}, {})
            entries.append(ShardEntry(file=file, split=split, variant=variant, partition=number, receipt=receipt))
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        content=content,
        task=task,
        key=KEY,
        token_types=types,
        pad_token_id=0,
        coding=Coding(codec="int8", width=WIDTH) if content == "perturbations" else None,
        variants=max(variant for _, variant in parts),
        details={},
        shards=tuple(random.Random(0).sample(entries, len(entries))),
    )
    manifest.save(folder)
    return manifest


def names(count: int, start: int = 0) -> list[str]:
    return [f"row-{number}" for number in range(start, start + count)]


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "ROWS_PER_BATCH", 4)


@pytest.fixture
def scores(tmp_path: Path, small_batches: None) -> Rows:
    """23 rows in three shards of several record batches."""
    write(tmp_path, {("train", 0): [names(10), names(1, 10), names(12, 11)], ("dev", 0): [names(5, 50)]})
    return Shards(tmp_path).rows("train", 0)


def test_rows_and_columns_of_several_shards_and_record_batches_are_one_sequence(scores: Rows, tmp_path: Path) -> None:
    rows = [scores[number] for number in range(len(scores))]
    assert [row.example_id for row in rows] == [row.example_id for row in scores] == names(23)
    for number, row in enumerate(rows):
        assert (row.variant, row.label) == (0, None if number % 4 == 3 else number % 2)
        assert row.input_ids.tolist() == [number, *range(number % 5 + 1)]
        assert row.token_type_ids is not None
        assert row.token_type_ids.tolist() == [0, *[1] * (number % 5 + 1)]
        assert row.teacher_logits.tolist() == [number, -number]
        assert (row.partner_ids, row.own_weight, row.delta, row.delta_scale, row.perturbed_logits) == (None,) * 5
    np.testing.assert_array_equal(scores.lengths(), [len(row.input_ids) for row in rows])
    np.testing.assert_array_equal(scores.matrix("teacher_logits"), np.stack([row.teacher_logits for row in rows]))
    np.testing.assert_array_equal(scores.labels(), [np.nan if row.label is None else row.label for row in rows])
    nothing = Shards(tmp_path).rows("test", 0)
    assert len(nothing) == len(list(nothing)) == len(nothing.column("example_id")) == len(nothing.labels()) == 0
    assert len(nothing.matrix("teacher_logits")) == 0


def test_regression_has_one_logit_and_fractional_labels(tmp_path: Path) -> None:
    write(tmp_path, {("train", 0): [names(3)]}, VALUES, types=False)
    rows = Shards(tmp_path).rows("train", 0)
    np.testing.assert_array_equal(rows.matrix("teacher_logits"), [[0], [1], [2]])
    assert [(row.label, row.token_type_ids) for row in rows] == [(0.0, None), (0.5, None), (1.0, None)]


@pytest.fixture
def variants(tmp_path: Path, small_batches: None) -> Rows:
    """Perturbed, edited and mixed rows of nine examples in shards of several record batches: 27 rows."""
    write(tmp_path / "variants", {("train", number): [names(5), names(4, 5)] for number in (2, EDITED, MIXED)})
    return Shards(tmp_path / "variants").rows("train", 2, EDITED, MIXED)


NOTHING = np.zeros(0)
LISTS: dict[str, Any] = {
    "example_id": lambda row: np.frombuffer(row.example_id.encode(), dtype=np.uint8),
    "input_ids": lambda row: row.input_ids,
    "token_type_ids": lambda row: row.token_type_ids,
    "teacher_logits": lambda row: row.teacher_logits,
    "partner_ids": lambda row: NOTHING if row.partner_ids is None else row.partner_ids,
    "delta": lambda row: NOTHING if row.delta is None else np.frombuffer(row.delta, dtype=np.uint8),
    "delta_scale": lambda row: NOTHING if row.delta_scale is None else row.delta_scale,
    "perturbed_logits": lambda row: row.perturbed_logits,
}
"""Columns of lists or bytes, and what a row says of each."""

any_positions = st.lists(st.integers(0, 26), max_size=40).map(lambda found: np.array(found, dtype=np.int64))
repeatedly = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
"""The rows of a fixture are only read."""


@given(positions=any_positions)
@repeatedly
def test_columns_at_any_positions_are_those_of_the_rows_one_by_one(variants: Rows, positions: Positions) -> None:
    rows = [variants[int(position)] for position in positions]
    for name, of_row in LISTS.items():
        wanted, found = [of_row(row) for row in rows], variants.lists_at(name, positions)
        assert found.lengths.tolist() == [len(one) for one in wanted], name
        assert found.values.tolist() == [value for one in wanted for value in one.tolist()], name
    weights = np.array([np.nan if row.own_weight is None else row.own_weight for row in rows], np.float32)
    np.testing.assert_array_equal(variants.numbers_at("own_weight", positions), weights, strict=True)
    assert variants.texts_at("example_id", positions) == [row.example_id for row in rows]


def test_a_position_outside_is_an_error_and_never_another_row(variants: Rows) -> None:
    columns = {variants.lists_at: "input_ids", variants.numbers_at: "own_weight", variants.texts_at: "example_id"}
    for read, name in columns.items():
        for positions in ([0, 27], [-2], [-1, 3]):
            with pytest.raises(IndexError, match="27 rows have no positions"):
                read(name, np.array(positions))
    for position in (27, -1):
        with pytest.raises(IndexError):
            variants[position]


def test_lists_keep_the_type_of_their_column_however_few_rows_are_asked_for(variants: Rows) -> None:
    kinds = {"input_ids": np.int32, "token_type_ids": np.int8, "delta_scale": np.float32, "delta": np.uint8}
    for name, kind in kinds.items():
        for positions in (np.zeros(0, dtype=np.int64), np.array([20]), np.arange(27)):
            found = variants.lists_at(name, positions)
            assert (found.values.dtype, found.lengths.dtype) == (kind, np.int64), (name, positions)


def test_rows_of_a_part_of_a_table_are_those_of_that_part(tmp_path: Path) -> None:
    write(tmp_path, {("train", 2): [names(9)]})
    schema = shard_schema("perturbations", TASK.kind, token_types=True)
    table = pa.ipc.open_file(pa.memory_map(str(tmp_path / "train-variant-2-00000.arrow"))).read_all()
    part = Rows(schema, [table.slice(2, 3), table.slice(7)])
    for name, of_row in LISTS.items():
        found = part.lists_at(name, np.arange(5))
        assert found.values.tolist() == [value for row in part for value in of_row(row).tolist()], name
    assert [row.example_id for row in part] == [f"row-{number}" for number in (2, 3, 4, 7, 8)]


@given(lists=st.lists(st.lists(st.integers(1, 99), max_size=6), max_size=8), longer=st.integers(0, 3), fill=st.integers(-5, 0))
def test_lists_under_each_other_are_padded_on_the_right(lists: list[list[int]], longer: int, fill: int) -> None:
    longest = max(map(len, lists), default=0) + longer
    held = Lists(np.array([value for one in lists for value in one], np.int32), np.array([len(one) for one in lists], np.int64))
    padded, inside = held.padded(fill, longest, np.int64), held.inside(longest)
    assert (padded.shape, padded.dtype) == ((len(lists), longest), np.int64)
    assert padded.tolist() == [one + [fill] * (longest - len(one)) for one in lists]
    assert inside.tolist() == [[True] * len(one) + [False] * (longest - len(one)) for one in lists]


@pytest.mark.parametrize("variant", [2, EDITED, MIXED])
def test_a_row_gives_back_what_its_recipe_has_and_nothing_else(variants: Rows, variant: int) -> None:
    rows = [row for row in variants if row.variant == variant]
    assert len(rows) == 9
    for number, row in enumerate(rows):
        assert (row.delta is not None, row.delta_scale is not None) == (variant == 2,) * 2
        assert (row.partner_ids is not None, row.own_weight is not None) == (variant == MIXED,) * 2
        np.testing.assert_array_equal(row.perturbed_logits, [number + variant, number - variant])
        if row.delta is not None:
            codes = CODECS["int8"].unpack(row.delta, WIDTH)
            np.testing.assert_array_equal(codes, np.full((len(row.input_ids), WIDTH), number))
            np.testing.assert_array_equal(row.delta_scale, [0.5] * len(row.input_ids))
        if row.partner_ids is not None:
            np.testing.assert_array_equal(row.partner_ids, [number + 1, *range(10, number % 5 + 11)])
            assert row.own_weight == number / 8, "0 is a share, not the lack of one"


def test_a_split_a_variant_and_a_shard_have_their_own_rows(tmp_path: Path) -> None:
    manifest = write(tmp_path, {("train", 1): [names(3)], ("train", 2): [names(3), names(4, 3)], ("dev", 1): [names(2, 90)]})
    shards = Shards(tmp_path)
    assert [row.variant for row in shards.rows("train", 2)] == [2] * 7
    assert [row.example_id for row in shards.rows("dev", 1)] == names(2, 90)
    for entry in manifest.of_split("train"):
        wanted = names(4, 3) if entry.partition else names(3)
        assert [(row.example_id, row.variant) for row in shards.rows_of(entry)] == [(name, entry.variant) for name in wanted]


@given(order=st.permutations(range(9)), cut=st.integers(0, 9))
@settings(max_examples=8)
def test_join_finds_every_example_wherever_its_row_lies(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], cut: int
) -> None:
    folder = tmp_path_factory.mktemp("join")
    shuffled = [f"row-{number}" for number in order]
    write(folder / "scores", {("train", 0): [names(4), names(5, 4)]})
    write(folder / "shards", {("train", 1): [part for part in (shuffled[:cut], shuffled[cut:]) if part]})
    examples, variants = Shards(folder / "scores").rows("train", 0), Shards(folder / "shards").rows("train", 1)
    positions = join(examples, variants)
    assert [variants[int(position)].example_id for position in positions] == names(9)


@pytest.mark.parametrize(
    ("examples", "variants", "sentence"),
    [
        (names(5), names(4), "1 of 5 examples have no perturbed row, and there are 4 perturbed rows"),
        (names(4), names(5), "0 of 4 examples have no perturbed row, and there are 5 perturbed rows"),
        (names(4), names(4, 2), "2 of 4 examples have no perturbed row, and there are 4 perturbed rows"),
        (["row-1", "row-1"], names(2, 1), "0 of 2 examples have no perturbed row, and there are 2 perturbed rows"),
    ],
)
def test_join_refuses_what_is_missing_and_what_is_spare(
    tmp_path: Path, examples: list[str], variants: list[str], sentence: str
) -> None:
    write(tmp_path / "scores", {("train", 0): [examples]})
    write(tmp_path / "shards", {("train", 1): [variants]})
    of_scores, of_shards = Shards(tmp_path / "scores").rows("train", 0), Shards(tmp_path / "shards").rows("train", 1)
    with pytest.raises(ShardMismatch, match=f"^{sentence}: .* make them again with dvc repro$"):
        join(of_scores, of_shards)


def test_every_shard_that_is_missing_cut_short_or_changed_is_named_at_once_before_any_row_is_read(tmp_path: Path) -> None:
    write(tmp_path, {("train", 1): [names(3, 3 * number) for number in range(4)]})
    files = [tmp_path / f"train-variant-1-0000{number}.arrow" for number in range(4)]
    files[0].unlink()
    size = files[1].stat().st_size
    files[1].write_bytes(files[1].read_bytes()[:-7])
    whole = bytearray(files[3].read_bytes())
    whole[len(whole) // 2] ^= 1
    files[3].write_bytes(whole)
    with pytest.raises(ShardMismatch) as caught:
        Shards(tmp_path)
    first, *faults = str(caught.value).split("\n  - ")
    assert first == f"{tmp_path} cannot be trusted; make it again with dvc repro:"
    assert sorted(faults) == [
        f"{files[0].name} is missing",
        f"{files[1].name} has {size - 7} bytes, the manifest says {size}",
        f"{files[3].name} has other bytes than when it was written (its sha256 differs from the manifest's)",
    ]


def other_teacher(content: dict[str, Any]) -> None:
    content["shards"][0]["receipt"]["key"]["teacher"] = "cd" * 32


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_teacher, "the manifest's do not fit: teacher: "),
        (lambda content: content.update(token_types=False), "other columns than format version"),
    ],
)
def test_a_shard_of_another_key_or_schema_is_refused_by_file_and_way_out(tmp_path: Path, change: Any, said: str) -> None:
    write(tmp_path, {("train", 1): [names(3)]})
    content = json.loads((tmp_path / MANIFEST_FILE).read_text(encoding="utf-8"))
    change(content)
    write_json(tmp_path / MANIFEST_FILE, content)
    with pytest.raises(ShardMismatch, match=rf"train-variant-1-00000\.arrow.*{said}.*dvc repro"):
        Shards(tmp_path).rows("train", 1)
