import json
import pickle
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config.corpus import Split
from pipeline.corpus.task import Task
from pipeline.shards import reader, writer
from pipeline.shards.codec import CODECS
from pipeline.shards.manifest import MANIFEST_FILE, Coding, Manifest, ShardEntry, ShardMismatch
from pipeline.shards.reader import LazyTable, Lists, Positions, Rows, Shards
from pipeline.shards.schema import FORMAT_VERSION, Content, shard_schema
from pipeline.shards.writer import write_shard
from pipeline.store.files import write_json
from pipeline.store.keys import Key, sha256_of
from tests.stored import RemoteStore, flip_byte, only_in, shard_path

TASK = Task(name="tiny", kind="classification", metric="accuracy", labels=("bad", "good"), pair=False)
VALUES = Task(name="tiny", kind="regression", metric="pearson", labels=(), pair=False)
KEY: Key = {"format_version": FORMAT_VERSION, "teacher": "ab" * 32}
WIDTH = 3


EDITED = 3  # the variant without δ; the others are perturbed


def columns(ids: Sequence[str], variant: int, task: Task, types: bool) -> dict[str, Any]:
    """Rows whose values follow from the number in their id."""
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
    deltas = [np.full((n % 5 + 2, WIDTH), n % 100, np.int8) for n in numbers]
    return shared | {
        "delta": [None if variant == EDITED else delta.tobytes() for delta in deltas],
        "delta_scale": [None if variant == EDITED else [variant / 4] * len(delta) for delta in deltas],
        "perturbed_logits": [[n + variant, n - variant][: task.outputs] for n in numbers],
        "divergence": [0.1] * len(ids),
        "flipped": [False] * len(ids),
    }


def write(folder: Path, parts: dict[tuple[Split, int], list[Sequence[str]]], task: Task = TASK, types: bool = True) -> Manifest:
    """A complete folder; ``parts`` holds the ids of each partition of each variant of each split."""
    entries = []
    content: Content = "variants" if any(variant for _, variant in parts) else "soft_labels"
    for (split, variant), partitions in parts.items():
        for number, ids in enumerate(partitions):
            file = f"{split}-variant-{variant}-{number:05d}.arrow"
            key = KEY | {"variant": variant, "examples": f"{split} {min(ids)}"}
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
        coding=Coding(codec="int8", width=WIDTH) if content == "variants" else None,
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
def soft_labels(tmp_path: Path, small_batches: None) -> Rows:
    """23 rows in three shards of several record batches."""
    write(tmp_path, {("train", 0): [names(10), names(1, 10), names(12, 11)], ("dev", 0): [names(5, 50)]})
    return Shards(tmp_path).rows("train", 0)


def test_rows_and_columns_of_several_shards_and_record_batches_are_one_sequence(soft_labels: Rows, tmp_path: Path) -> None:
    rows = [soft_labels[number] for number in range(len(soft_labels))]
    assert [row.example_id for row in rows] == [row.example_id for row in soft_labels] == names(23)
    for number, row in enumerate(rows):
        assert (row.variant, row.label) == (0, None if number % 4 == 3 else number % 2)
        assert row.input_ids.tolist() == [number, *range(number % 5 + 1)]
        assert row.token_type_ids.tolist() == [0, *[1] * (number % 5 + 1)]
        assert row.teacher_logits.tolist() == [number, -number]
        assert list(vars(row)) == shard_schema("soft_labels", TASK.kind, token_types=True).names
    np.testing.assert_array_equal(soft_labels.lengths(), [len(row.input_ids) for row in rows])
    np.testing.assert_array_equal(soft_labels.matrix("teacher_logits"), np.stack([row.teacher_logits for row in rows]))
    np.testing.assert_array_equal(soft_labels.labels(), [np.nan if row.label is None else row.label for row in rows])
    nothing = Shards(tmp_path).rows("test", 0)
    assert len(nothing) == len(list(nothing)) == len(nothing.column("example_id")) == len(nothing.labels()) == 0
    assert len(nothing.matrix("teacher_logits")) == 0


def test_regression_has_one_logit_and_fractional_labels(tmp_path: Path) -> None:
    write(tmp_path, {("train", 0): [names(3)]}, VALUES, types=False)
    rows = Shards(tmp_path).rows("train", 0)
    np.testing.assert_array_equal(rows.matrix("teacher_logits"), [[0], [1], [2]])
    assert [row.label for row in rows] == [0.0, 0.5, 1.0]
    assert not rows.has("token_type_ids")


@pytest.fixture
def variants(tmp_path: Path, small_batches: None) -> Rows:
    """Perturbed and edited rows of nine examples in shards of several record batches: 18 rows."""
    write(tmp_path / "variants", {("train", number): [names(5), names(4, 5)] for number in (2, EDITED)})
    return Shards(tmp_path / "variants").rows("train", 2, EDITED)


NOTHING = np.zeros(0)
LISTS: dict[str, Any] = {
    "example_id": lambda row: np.frombuffer(row.example_id.encode(), dtype=np.uint8),
    "input_ids": lambda row: row.input_ids,
    "token_type_ids": lambda row: row.token_type_ids,
    "teacher_logits": lambda row: row.teacher_logits,
    "delta": lambda row: NOTHING if row.delta is None else np.frombuffer(row.delta, dtype=np.uint8),
    "delta_scale": lambda row: NOTHING if row.delta_scale is None else row.delta_scale,
    "perturbed_logits": lambda row: row.perturbed_logits,
}
"""Columns of lists or bytes, and their value in a row."""

any_positions = st.lists(st.integers(0, 17), max_size=40).map(lambda found: np.array(found, dtype=np.int64))
repeatedly = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(positions=any_positions)
@repeatedly
def test_columns_at_any_positions_are_those_of_the_rows_one_by_one(variants: Rows, positions: Positions) -> None:
    rows = [variants[int(position)] for position in positions]
    for name, of_row in LISTS.items():
        wanted, found = [of_row(row) for row in rows], variants.lists_at(name, positions)
        assert found.lengths.tolist() == [len(one) for one in wanted], name
        assert found.values.tolist() == [value for one in wanted for value in one.tolist()], name


def test_a_position_outside_is_an_error_and_never_another_row(variants: Rows) -> None:
    for positions in ([0, 18], [-2], [-1, 3]):
        with pytest.raises(IndexError, match="18 rows have no positions"):
            variants.lists_at("input_ids", np.array(positions))
    for position in (18, -1):
        with pytest.raises(IndexError):
            variants[position]


def test_lists_keep_the_type_of_their_column_however_few_rows_are_asked_for(variants: Rows) -> None:
    kinds: dict[str, Any] = {"input_ids": np.int32, "token_type_ids": np.int8, "delta_scale": np.float32, "delta": np.uint8}
    for name, kind in kinds.items():
        for positions in (np.zeros(0, dtype=np.int64), np.array([12]), np.arange(18)):
            found = variants.lists_at(name, positions)
            assert found.values.dtype == kind, (name, positions)
            assert found.lengths.dtype == np.int64


def test_slices_of_a_table_have_only_their_rows(tmp_path: Path) -> None:
    write(tmp_path, {("train", 2): [names(9)]})
    schema = shard_schema("variants", TASK.kind, token_types=True)
    table = pa.ipc.open_file(pa.memory_map(str(tmp_path / "train-variant-2-00000.arrow"))).read_all()
    part = Rows(schema, [LazyTable(3, lambda: table.slice(2, 3)), LazyTable(2, lambda: table.slice(7))])
    for name, of_row in LISTS.items():
        found = part.lists_at(name, np.arange(5))
        assert found.values.tolist() == [value for row in part for value in of_row(row).tolist()], name
    assert [row.example_id for row in part] == [f"row-{number}" for number in (2, 3, 4, 7, 8)]


@given(lists=st.lists(st.lists(st.integers(1, 99), max_size=6), max_size=8), longer=st.integers(0, 3), fill=st.integers(-5, 0))
def test_lists_are_padded_on_the_right(lists: list[list[int]], longer: int, fill: int) -> None:
    longest = max(map(len, lists), default=0) + longer
    held = Lists(np.array([value for one in lists for value in one], np.int32), np.array([len(one) for one in lists], np.int64))
    padded, inside = held.padded(fill, longest, np.int64), held.inside(longest)
    assert padded.shape == (len(lists), longest)
    assert padded.dtype == np.int64
    assert padded.tolist() == [one + [fill] * (longest - len(one)) for one in lists]
    assert inside.tolist() == [[True] * len(one) + [False] * (longest - len(one)) for one in lists]


@pytest.mark.parametrize("variant", [2, EDITED])
def test_a_row_has_only_the_columns_of_its_recipe(variants: Rows, variant: int) -> None:
    rows = [row for row in variants if row.variant == variant]
    assert len(rows) == 9
    for number, row in enumerate(rows):
        assert (row.delta is not None, row.delta_scale is not None) == (variant == 2,) * 2
        np.testing.assert_array_equal(row.perturbed_logits, [number + variant, number - variant])
        if row.delta is not None:
            codes = CODECS["int8"].unpack(row.delta, WIDTH)
            np.testing.assert_array_equal(codes, np.full((len(row.input_ids), WIDTH), number))
            np.testing.assert_array_equal(row.delta_scale, [0.5] * len(row.input_ids))


def test_a_split_a_variant_and_a_shard_have_their_own_rows(tmp_path: Path) -> None:
    manifest = write(tmp_path, {("train", 1): [names(3)], ("train", 2): [names(3), names(4, 3)], ("dev", 1): [names(2, 90)]})
    shards = Shards(tmp_path)
    assert [row.variant for row in shards.rows("train", 2)] == [2] * 7
    assert [row.example_id for row in shards.rows("dev", 1)] == names(2, 90)
    for entry in manifest.of_split("train"):
        wanted = names(4, 3) if entry.partition else names(3)
        assert [(row.example_id, row.variant) for row in shards.rows_of(entry)] == [(name, entry.variant) for name in wanted]


PARTS = [names(4), names(3, 4), names(2, 7)]
"""The examples of three shards."""


def joined(folder: Path, variants: list[Sequence[str]]) -> Rows:
    """Variant 2 of the examples of ``PARTS`` in these partitions, then variant 1."""
    write(folder / "soft_labels", {("train", 0): PARTS, ("dev", 0): [names(2, 50)]})
    write(folder / "shards", {("train", 1): PARTS, ("train", 2): variants})
    return Shards(folder / "shards").joined_to(Shards(folder / "soft_labels"), [2, 1])


@pytest.mark.parametrize(
    ("variants", "sentence"),
    [
        (PARTS[:2], "2 of 9 examples have no variant 2 in .*, and 0 of its rows have no example"),
        ([*PARTS, names(5, 9)], "0 of 9 examples have no variant 2 in .*, and 5 of its rows have no example"),
        ([*PARTS, PARTS[0]], "0 of 9 examples have no variant 2 in .*, and 4 of its rows have no example"),
    ],
)
def test_missing_and_surplus_variants_are_rejected_before_any_is_read(
    tmp_path: Path, variants: list[Sequence[str]], sentence: str
) -> None:
    with pytest.raises(ShardMismatch, match=f"^{sentence}: .* make them again with dvc repro$"):
        joined(tmp_path, variants)


@pytest.mark.parametrize("others", [["row-5", "row-4", "row-6"], ["row-4", "row-5", "row-9"]], ids=["order", "examples"])
def test_a_shard_with_other_ids_or_another_order_than_the_soft_labels_is_named_when_it_is_read(
    others: list[str], tmp_path: Path
) -> None:
    rows = joined(tmp_path, [PARTS[0], others, PARTS[2]])
    assert rows.lists_at("input_ids", np.array([0, 8, 13])).lengths.tolist() == [2, 5, 6], "of other shards"
    with pytest.raises(ShardMismatch, match=r"train-variant-2-00001\.arrow has other example ids, or in another order, than "):
        rows.lists_at("input_ids", np.array([0, 4]))


def test_all_missing_and_truncated_shards_are_named_in_one_error(tmp_path: Path) -> None:
    write(tmp_path, {("train", 1): [names(3, 3 * number) for number in range(3)]})
    files = [tmp_path / f"train-variant-1-0000{number}.arrow" for number in range(3)]
    files[0].unlink()
    size = files[1].stat().st_size
    files[1].write_bytes(files[1].read_bytes()[:-7])
    with pytest.raises(ShardMismatch) as caught:
        Shards(tmp_path)
    first, *errors = str(caught.value).split("\n  - ")
    assert first == f"{tmp_path} cannot be trusted; make it again with dvc repro:"
    assert sorted(errors) == [
        f"{files[0].name} is missing",
        f"{files[1].name} has {size - 7} bytes, the manifest says {size}",
    ]


def test_a_shard_is_hashed_once_when_it_is_first_read_and_never_if_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {("train", variant): PARTS for variant in (1, 2)})
    flip_byte(tmp_path / "train-variant-1-00002.arrow")
    hashed: list[str] = []
    monkeypatch.setattr(reader, "sha256_of", lambda path: (hashed.append(path.name), sha256_of(path))[1])
    shards = Shards(tmp_path)
    rows = pickle.loads(pickle.dumps(shards.rows("train", 1, 2)))
    assert (len(rows), hashed) == (18, [])
    for _ in range(2):
        assert rows.lists_at("input_ids", np.array([4, 0, 5])).values[0] == 4
    assert sorted(hashed) == ["train-variant-1-00000.arrow", "train-variant-1-00001.arrow"]
    sentence = r"train-variant-1-00002\.arrow has other bytes than when it was written .*; make it again with dvc repro$"
    for read in (lambda: rows.lists_at("input_ids", np.array([4, 7])), lambda: rows[8], lambda: rows.column("label")):
        with pytest.raises(ShardMismatch, match=sentence):
            read()


def test_shards_that_are_not_in_the_folder_are_fetched_once_from_a_remote_store(tmp_path: Path) -> None:
    write(tmp_path / "set", {("train", 1): PARTS, ("train", 2): PARTS})
    wanted, store = Shards(tmp_path / "set").rows("train", 1).column("delta"), RemoteStore(tmp_path / "store")
    shards = only_in(store, tmp_path / "set")
    assert store.fetched == []
    for _ in range(2):
        assert shards.rows("train", 1).column("delta").equals(wanted)
    assert len(store.fetched) == 3

    damaged, gone = (shard_path(store, entry.receipt.key) for entry in shards.manifest.of_split("train")[3:5])
    flip_byte(damaged)
    gone.unlink()
    for position, cause in ((0, "is damaged"), (4, "cannot be read")):
        with pytest.raises(ShardMismatch, match=rf"train-variant-2-.*{cause}.*dvc repro --force --single-item augment@tiny$"):
            shards.rows("train", 2)[position]
    with pytest.raises(ShardMismatch, match="is missing"):
        Shards(tmp_path / "set")


def other_teacher(content: dict[str, Any]) -> None:
    content["shards"][0]["receipt"]["key"]["teacher"] = "cd" * 32


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_teacher, "the manifest's do not fit: teacher: "),
        (lambda content: content.update(token_types=False), "other columns than format version"),
    ],
)
def test_a_shard_of_another_key_or_schema_is_rejected(tmp_path: Path, change: Any, said: str) -> None:
    write(tmp_path, {("train", 1): [names(3)]})
    content = json.loads((tmp_path / MANIFEST_FILE).read_text(encoding="utf-8"))
    change(content)
    write_json(tmp_path / MANIFEST_FILE, content)
    with pytest.raises(ShardMismatch, match=rf"train-variant-1-00000\.arrow.*{said}.*dvc repro"):
        Shards(tmp_path).rows("train", 1).open()
