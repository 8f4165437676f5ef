import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.corpus.task import Split, Task
from pipeline.shards.manifest import (
    MANIFEST_FILE,
    Coding,
    Manifest,
    Receipt,
    ShardEntry,
    ShardMismatch,
    check_agreement,
    lineage,
    training_hash,
)
from pipeline.shards.schema import FORMAT_VERSION
from tests.world import make_task, save_teacher

TASK = Task(name="tiny", kind="classification", metric="accuracy", labels=("bad", "good"), pair=False)


def entry(split: Split = "train", variant: int = 1, partition: int = 0, sha256: str = "cd" * 32) -> ShardEntry:
    key = {"teacher": "ab" * 32, "variant": variant}
    receipt = Receipt(key=key, rows=3, tokens=20, bytes=999, sha256=sha256, statistics={"divergence": 0.1, "flipped": 2.0})
    file = f"{split}-{variant}-{partition}.arrow"
    return ShardEntry(file=file, split=split, variant=variant, partition=partition, receipt=receipt)


def manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "content": "perturbations",
        "task": TASK,
        "key": {"teacher": "ab" * 32, "labels": ["bad", "good"], "max_length": 64},
        "token_types": True,
        "pad_token_id": 0,
        "coding": Coding(codec="int8", width=384),
        "variants": 2,
        "details": {"radius": 0.25, "truncated": 3},
        "shards": (entry(), entry(variant=2)),
    }
    return Manifest(**(fields | changes))


@pytest.mark.parametrize("saved", [manifest(), manifest(content="scores", coding=None, variants=0, details={}, shards=())])
def test_what_is_saved_is_what_is_read(tmp_path: Path, saved: Manifest) -> None:
    saved.save(tmp_path)
    assert Manifest.read(tmp_path) == saved


LEARNT_FROM = (entry("train", sha256="aa"), entry("dev", sha256="bb"))


@pytest.mark.parametrize(
    "changes",
    [
        {"shards": (*LEARNT_FROM, entry("test", sha256="cc"), entry("test", partition=1, sha256="dd"))},
        {"shards": tuple(reversed(LEARNT_FROM))},
        {"details": {"scores": "another manifest", "truncated": 3}},
        {"task": TASK.model_copy(update={"name": "renamed"})},
    ],
)
def test_test_rows_and_names_are_nothing_that_a_training_reads(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert trained_from(tmp_path, **changes) == trained_from(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"shards": (entry("train", sha256="ab"), entry("dev", sha256="bb"))},
        {"shards": (entry("train", sha256="aa"), entry("dev", sha256="bc"))},
        {"shards": (entry("train", sha256="bb"), entry("dev", sha256="aa"))},
        {"shards": LEARNT_FROM[:1]},
        {"details": {"recipes": [["mask"]]}},
        {"details": {"snapshots": 3}},
        {"task": TASK.model_copy(update={"metric": "mcc"})},
        {"variants": 3},
        {"pad_token_id": 5},
        {"token_types": not manifest().token_types},
        {"coding": None},
    ],
)
def test_all_else_that_a_training_reads_is_in_its_hash(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert trained_from(tmp_path, **changes) != trained_from(tmp_path)


def trained_from(folder: Path, **changes: Any) -> str:
    manifest(**({"shards": LEARNT_FROM, "details": {}} | changes)).save(folder)
    return training_hash(folder)


def test_a_folder_without_a_manifest_is_not_complete(tmp_path: Path) -> None:
    with pytest.raises(ShardMismatch, match=r"manifest\.json does not exist, so the shards are not complete; .* dvc repro$"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("found", [FORMAT_VERSION + 1, None, str(FORMAT_VERSION)])
def test_another_format_version_is_refused_before_its_other_fields_are_judged(tmp_path: Path, found: object) -> None:
    (tmp_path / MANIFEST_FILE).write_text(json.dumps({"format_version": found, "of": "the future"}), encoding="utf-8")
    with pytest.raises(ShardMismatch, match=rf"format_version is {found}, this version reads {FORMAT_VERSION}; .* dvc repro$"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("content", [manifest().model_dump_json()[:-9].encode(), b"", b'{"format_version": "\xff\xfe"}'])
def test_a_manifest_cut_short_or_of_other_bytes_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(ShardMismatch, match=r"manifest\.json is damaged \(.*\); delete the folder .* dvc repro$"):
        Manifest.read(tmp_path)


def test_the_shards_of_a_split_come_variant_by_variant_in_partition_order_however_they_are_listed() -> None:
    wanted = [entry("train", variant, partition) for variant in (1, 2, 10) for partition in (0, 1, 2, 11)]
    listed = (*wanted[::-1], entry("dev", 1, 0))
    assert manifest(shards=listed).of_split("train") == tuple(wanted)
    assert manifest(shards=listed).of_split("dev") == (entry("dev", 1, 0),)
    assert manifest(shards=listed).of_split("test") == ()


def test_disagreement_names_subject_wanted_fields_values_and_the_way_out() -> None:
    check_agreement("these", {"a": 1}, {"a": 1, "variant": 3}, "Make them again.")
    sentence = r"scores and shards do not fit: b: \[2\] wanted, \[5\] found; c: 3 wanted, null found\. Make them again\."
    with pytest.raises(ShardMismatch, match=f"^{sentence}$"):
        check_agreement("scores and shards", {"a": 1, "b": [2], "c": 3}, {"a": 1, "b": [5], "d": 4}, "Make them again.")


def test_a_lineage_says_what_decides_every_shard_and_nothing_of_the_folder(teacher: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(teacher, tmp_path / "moved"))
    found = lineage(moved)
    assert found == lineage(teacher)
    assert found["labels"] == ["bad", "good"]
    other = lineage(save_teacher(tmp_path / "other", make_task(), seed=4))
    assert {name for name in found if found[name] != other[name]} == {"teacher"}


@pytest.mark.parametrize(
    ("recipes", "variants", "used", "perturbed"),
    [
        ([["mask", "perturb"], ["mix"]], 5, [["mask", "perturb"], ["mix"]], True),
        ([["mask"], ["perturb"]], 1, [["mask"]], False),
        ([["perturb"]], 0, [], False),
    ],
)
def test_the_recipes_are_those_that_some_variant_has(
    recipes: list[list[str]], variants: int, used: list[list[str]], perturbed: bool
) -> None:
    told = manifest(variants=variants, details={"recipes": recipes})
    assert (told.recipes, told.perturbed) == (used, perturbed)
    assert manifest(content="scores", variants=0, details={}).recipes == []
