import resource
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pyarrow as pa
import pytest

from pipeline.shards.schema import FORMAT_VERSION, ROWS_PER_BATCH, description_of, shard_schema
from pipeline.shards.writer import write_shard
from pipeline.store.hashing import Key, sha256_of

SCHEMA = shard_schema("perturbations", "classification", True)
KEY: Key = {"format_version": FORMAT_VERSION, "teacher": "ab" * 32, "variant": 1}
SAID = {"codec": "int8", "width": 4}
WIDTH = 4


def columns(rows: int) -> dict[str, Any]:
    """Of three rows the first is perturbed, the second mixed with itself, and the third only edited."""
    random = np.random.default_rng(rows)
    ids = [random.integers(5, 50, length).astype(np.int32) for length in random.integers(3, 12, rows)]
    return {
        "example_id": [f"train-{number}" for number in range(rows)],
        "variant": [1] * rows,
        "input_ids": ids,
        "token_type_ids": [np.zeros(len(row), dtype=np.int8) for row in ids],
        "label": [None if number % 5 == 4 else number % 2 for number in range(rows)],
        "teacher_logits": list(random.normal(size=(rows, 2)).astype(np.float32)),
        "partner_id": [f"train-{number}" if number % 3 == 1 else None for number in range(rows)],
        "partner_ids": [row if number % 3 == 1 else None for number, row in enumerate(ids)],
        "own_weight": [0.75 if number % 3 == 1 else None for number in range(rows)],
        "delta": [random.bytes(len(row) * WIDTH) if number % 3 == 0 else None for number, row in enumerate(ids)],
        "delta_scale": [random.random(len(row), np.float32) if number % 3 == 0 else None for number, row in enumerate(ids)],
        "perturbed_logits": list(random.normal(size=(rows, 2)).astype(np.float32)),
        "divergence": random.random(rows).astype(np.float32),
        "flipped": [bool(number % 3) for number in range(rows)],
    }


def write(path: Path, given: dict[str, Any], key: Key = KEY) -> Any:
    return write_shard(path, SCHEMA, given, key, SAID, {"mean": 0.5})


def test_what_was_written_is_what_pyarrow_reads(tmp_path: Path) -> None:
    given = columns(7)
    receipt = write(tmp_path / "x.arrow", given)
    table = pa.ipc.open_file(tmp_path / "x.arrow").read_all()
    assert table.schema.equals(SCHEMA)
    for name, values in given.items():
        assert table.column(name).to_pylist() == [v.tolist() if hasattr(v, "tolist") else v for v in values]
    assert description_of(table.schema, "x") == {"key": KEY, **SAID}
    assert (receipt.key, receipt.rows, receipt.statistics) == (KEY, 7, {"mean": 0.5})
    assert receipt.tokens == sum(len(row) for row in given["input_ids"])
    assert (receipt.bytes, receipt.sha256) == ((tmp_path / "x.arrow").stat().st_size, sha256_of(tmp_path / "x.arrow"))


def test_same_rows_and_key_are_the_same_bytes_whoever_writes_them_and_in_whatever_form(tmp_path: Path) -> None:
    given = columns(50)
    as_lists = {name: [v.tolist() if hasattr(v, "tolist") else v for v in values] for name, values in given.items()}
    forms = {
        "one": (given, KEY),
        "again": (columns(50), KEY),
        "columns-reversed": (dict(reversed(given.items())), KEY),
        "key-reversed": (given, dict(reversed(KEY.items()))),
        "lists": (as_lists, KEY),
    }
    hashes = {name: write(tmp_path / f"{name}.arrow", form, key).sha256 for name, (form, key) in forms.items()}
    assert len(set(hashes.values())) == 1, hashes
    others = {"key": (given, KEY | {"variant": 2}), "row": (given | {"flipped": [True] * 50}, KEY)}
    assert not set(hashes.values()) & {write(tmp_path / name, form, key).sha256 for name, (form, key) in others.items()}


@pytest.mark.parametrize(
    "changes",
    [
        {"example_id": [1, 2, 3]},
        {"example_id": ["a", "b"]},
        {"example_id": [None, "b", "c"]},
        {"variant": [2**15, 1, 1]},
        {"input_ids": [5, 6, 7]},
        {"label": [0.5, 1.0, 0.0]},
        {"teacher_logits": ["a", "b", "c"]},
        {"delta": [[1], [2], [3]]},
        {"flipped": ["yes", "no", "no"]},
        {"flipped": ...},
        {"comment": ["a", "b", "c"]},
    ],
)
def test_a_column_of_another_type_or_length_missing_or_spare_is_refused_and_nothing_is_written(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    given = {name: values for name, values in (columns(3) | changes).items() if values is not ...}
    with pytest.raises((TypeError, ValueError, KeyError)):
        write(tmp_path / "x.arrow", given)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_half_way_leaves_the_shard_that_was_there(tmp_path: Path) -> None:
    before, given = write(tmp_path / "x.arrow", columns(3)), columns(2000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write(tmp_path / "x.arrow", given)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["x.arrow"]
    assert sha256_of(tmp_path / "x.arrow") == before.sha256


def plain(value: Any) -> Any:
    """A value in whatever form a reader gives it; nothing is None."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return None if value != value else value


def test_a_shard_of_perturbed_mixed_and_edited_rows_opens_elsewhere(tmp_path: Path) -> None:
    path, given = tmp_path / "x.arrow", columns(ROWS_PER_BATCH + 3)
    write(path, given)
    assert not [field.name for field in SCHEMA if isinstance(field.type, pa.BaseExtensionType)]
    read = datasets.load_dataset("arrow", data_files=str(path), cache_dir=str(tmp_path / "cache"))["train"]
    for rows in (pandas.read_feather(path).to_dict("records"), read.to_list()):
        for name, values in given.items():
            assert [plain(row[name]) for row in rows] == [plain(value) for value in values], name
