import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.corpus import Split
from pipeline.corpus.task import Task
from pipeline.models.folder import ModelFolder
from pipeline.shards.manifest import (
    MANIFEST_FILE,
    Coding,
    Manifest,
    Receipt,
    ShardEntry,
    ShardMismatch,
    check_agreement,
    lineage,
    put_shards,
    training_hash,
)
from pipeline.shards.schema import FORMAT_VERSION
from pipeline.store.store import Store
from tests.stored import found
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
        "content": "variants",
        "task": TASK,
        "key": {"teacher": "ab" * 32, "labels": ["bad", "good"], "max_length": 64},
        "token_types": True,
        "pad_token_id": 0,
        "coding": Coding(codec="int8", width=384),
        "variants": 2,
        "details": {"epsilon": 0.25, "truncated": 3},
        "shards": (entry(), entry(variant=2)),
    }
    return Manifest(**(fields | changes))


@pytest.mark.parametrize("saved", [manifest(), manifest(content="soft_labels", coding=None, variants=0, details={}, shards=())])
def test_a_saved_manifest_is_read_back(tmp_path: Path, saved: Manifest) -> None:
    saved.save(tmp_path)
    assert Manifest.read(tmp_path) == saved


KEYS = [
    {"variant": 1, "code": {"a": "0"}, "examples": "a"},
    {"variant": 1, "code": {"a": "0"}, "examples": "b", "more": None},
    {"variant": 2, "code": {"a": "1"}, "examples": "a"},
    {"variant": 2, "code": {"a": "1"}, "examples": "b"},
]


def test_the_file_states_once_what_the_shards_of_a_variant_share_and_each_shard_on_a_line(tmp_path: Path) -> None:
    receipts = [entry().receipt.model_copy(update={"key": key}) for key in KEYS]
    listed = [entry(variant=r.key["variant"], partition=n).model_copy(update={"receipt": r}) for n, r in enumerate(receipts)]
    saved = manifest(shards=tuple(listed))
    saved.save(tmp_path)
    assert Manifest.read(tmp_path) == saved
    text = (tmp_path / MANIFEST_FILE).read_text(encoding="utf-8")
    content = json.loads(text)
    assert content["shared_keys"] == {"1": {"variant": 1, "code": {"a": "0"}}, "2": {"variant": 2, "code": {"a": "1"}}}
    own = [{"examples": "a"}, {"examples": "b", "more": None}, {"examples": "a"}, {"examples": "b"}]
    assert [shard["receipt"]["key"] for shard in content["shards"]] == own
    lines = [line for line in text.splitlines() if ".arrow" in line]
    assert [json.loads(line.rstrip(",")) for line in lines] == content["shards"]


def test_a_manifest_without_the_shared_fields_of_a_variant_is_damaged(tmp_path: Path) -> None:
    manifest().save(tmp_path)
    content = json.loads((tmp_path / MANIFEST_FILE).read_text(encoding="utf-8"))
    del content["shared_keys"]["2"]
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ShardMismatch, match=r"manifest\.json is damaged"):
        Manifest.read(tmp_path)


TRAINED_ON = (entry("train", sha256="aa"), entry("dev", sha256="bb"))


@pytest.mark.parametrize(
    "changes",
    [
        {"shards": (*TRAINED_ON, entry("test", sha256="cc"), entry("test", partition=1, sha256="dd"))},
        {"shards": tuple(reversed(TRAINED_ON))},
        {"details": {"soft_labels": "another manifest", "truncated": 3}},
        {"task": TASK.model_copy(update={"name": "renamed"})},
    ],
)
def test_the_training_hash_leaves_out_test_rows_and_names(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert trained_from(tmp_path, **changes) == trained_from(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"shards": (entry("train", sha256="ab"), entry("dev", sha256="bb"))},
        {"shards": (entry("train", sha256="aa"), entry("dev", sha256="bc"))},
        {"shards": (entry("train", sha256="bb"), entry("dev", sha256="aa"))},
        {"shards": TRAINED_ON[:1]},
        {"details": {"recipes": [["mask"]]}},
        {"details": {"checkpoints": 3}},
        {"task": TASK.model_copy(update={"metric": "mcc"})},
        {"variants": 3},
        {"pad_token_id": 5},
        {"token_types": not manifest().token_types},
        {"coding": None},
    ],
)
def test_the_training_hash_covers_everything_else(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert trained_from(tmp_path, **changes) != trained_from(tmp_path)


def trained_from(folder: Path, **changes: Any) -> str:
    manifest(**({"shards": TRAINED_ON, "details": {}} | changes)).save(folder)
    return training_hash(folder)


def test_a_folder_without_a_manifest_is_not_complete(tmp_path: Path) -> None:
    with pytest.raises(ShardMismatch, match=r"manifest\.json does not exist, so the shards are not complete; .* dvc repro$"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("found", [FORMAT_VERSION + 1, None, str(FORMAT_VERSION)])
def test_another_format_version_is_rejected_before_its_fields_are_validated(tmp_path: Path, found: object) -> None:
    (tmp_path / MANIFEST_FILE).write_text(json.dumps({"format_version": found, "of": "the future"}), encoding="utf-8")
    with pytest.raises(ShardMismatch, match=rf"format_version is {found}, this version reads {FORMAT_VERSION}; .* dvc repro$"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("content", [manifest().model_dump_json()[:-9].encode(), b"", b'{"format_version": "\xff\xfe"}'])
def test_a_truncated_or_binary_manifest_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(ShardMismatch, match=r"manifest\.json is damaged \(.*\); delete the folder .* dvc repro$"):
        Manifest.read(tmp_path)


def test_the_shards_of_a_split_are_ordered_by_variant_and_partition() -> None:
    wanted = [entry("train", variant, partition) for variant in (1, 2, 10) for partition in (0, 1, 2, 11)]
    listed = (*wanted[::-1], entry("dev", 1, 0))
    assert manifest(shards=listed).of_split("train") == tuple(wanted)
    assert manifest(shards=listed).of_split("dev") == (entry("dev", 1, 0),)
    assert manifest(shards=listed).of_split("test") == ()


def test_a_disagreement_is_stated_with_fields_values_and_remedy() -> None:
    check_agreement("these", {"a": 1}, {"a": 1, "variant": 3}, "Make them again.")
    sentence = r"soft_labels and shards do not fit: b: \[2\] wanted, \[5\] found; c: 3 wanted, null found\. Make them again\."
    with pytest.raises(ShardMismatch, match=f"^{sentence}$"):
        check_agreement("soft_labels and shards", {"a": 1, "b": [2], "c": 3}, {"a": 1, "b": [5], "d": 4}, "Make them again.")


def test_the_lineage_depends_on_the_teacher_and_not_on_its_folder(teacher: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(teacher, tmp_path / "moved"))
    found = lineage(ModelFolder(moved))
    assert found == lineage(ModelFolder(teacher))
    assert found["labels"] == ["bad", "good"]
    other = lineage(ModelFolder(save_teacher(tmp_path / "other", make_task(), seed=4)))
    assert {name for name in found if found[name] != other[name]} == {"teacher"}


@pytest.mark.parametrize(
    ("recipes", "variants", "used", "perturbed"),
    [
        ([["mask", "perturb"], ["swap"]], 5, [["mask", "perturb"], ["swap"]], True),
        ([["mask"], ["perturb"]], 1, [["mask"]], False),
        ([["perturb"]], 0, [], False),
    ],
)
def test_only_recipes_that_a_variant_uses_are_listed(
    recipes: list[list[str]], variants: int, used: list[list[str]], perturbed: bool
) -> None:
    made = manifest(variants=variants, details={"recipes": recipes})
    assert (made.recipes, made.perturbed) == (used, perturbed)
    assert manifest(content="soft_labels", variants=0, details={}).recipes == []


def test_published_shards_are_put_into_an_empty_store_unless_they_are_damaged(made: tuple[Path, Path], tmp_path: Path) -> None:
    store, folder = Store(tmp_path / "store"), Path(shutil.copytree(made[1], tmp_path / "shards"))
    first, *others = Manifest.read(folder).shards
    content = (folder / first.file).read_bytes()
    (folder / first.file).write_bytes(content[:-1] + b"!")
    with pytest.raises(ShardMismatch, match=rf"{first.file} is missing or damaged, and the store .* lacks it"):
        put_shards(store, folder, [first])
    assert not store.has(first.receipt.key)
    put_shards(store, folder, others)
    assert [found(store, entry.receipt.key) for entry in others] == [entry.receipt for entry in others]
