import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.store.hashing import Key
from pipeline.shards.manifest import Receipt
from pipeline.shards.schema import shard_schema
from pipeline.store.store import Store
from pipeline.shards.store import stored_file
from pipeline.shards.writer import write_shard

KEY: Key = {"teacher": "ab" * 32, "variant": 1, "examples": "cd" * 32}
OTHER: Key = KEY | {"variant": 2}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def computed(store: Store, key: Key) -> Receipt:
    """A shard as a job leaves it before its receipt is written."""
    columns: dict[str, Any] = {
        "example_id": ["a", "b"],
        "variant": [key["variant"]] * 2,
        "input_ids": [[2, 7, 3], [2, 8, 9, 3]],
        "label": [0, None],
        "teacher_logits": [[0.5, -0.5], [1.0, 2.0]],
    }
    return write_shard(store.shard_path(key), shard_schema("scores", "classification", False), columns, key, {}, {"mean": 0.5})


def finished(store: Store, key: Key = KEY) -> Receipt:
    receipt = computed(store, key)
    store.finish(receipt)
    return receipt


def test_a_finished_shard_is_found_with_the_receipt_it_was_finished_with(store: Store) -> None:
    receipt = finished(store)
    assert store.find(KEY) == receipt
    assert receipt.statistics == {"mean": 0.5}


def test_the_order_in_which_a_key_was_built_does_not_hide_its_shard(store: Store) -> None:
    assert finished(store) == store.find(dict(reversed(KEY.items())))


def test_a_store_that_was_never_written_to_has_nothing(store: Store) -> None:
    assert store.find(KEY) is None
    assert not store.has_receipt(KEY)
    assert store.recall(KEY) is None


def test_a_shard_without_its_receipt_is_not_there(store: Store) -> None:
    computed(store, KEY)
    assert store.find(KEY) is None
    assert not store.has_receipt(KEY)


def test_a_receipt_without_its_shard_is_not_enough(store: Store) -> None:
    finished(store)
    store.shard_path(KEY).unlink()
    assert store.find(KEY) is None
    assert store.has_receipt(KEY)


def test_one_key_never_finds_the_shard_of_another(store: Store) -> None:
    receipts = [finished(store, key) for key in (KEY, OTHER)]
    assert [store.find(key) for key in (KEY, OTHER)] == receipts
    assert store.find(KEY | {"variant": 3}) is None
    assert store.find(KEY | {"variant": "1"}) is None


def test_any_flipped_bit_makes_a_shard_not_there(store: Store) -> None:
    finished(store)
    path = store.shard_path(KEY)
    whole = path.read_bytes()
    for position in (0, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert store.find(KEY) is None
    path.write_bytes(whole)
    assert store.find(KEY) is not None


@pytest.mark.parametrize("change", [lambda whole: whole[:-1], lambda whole: whole + b"\0", lambda whole: b""])
def test_a_shard_of_another_size_is_not_there(store: Store, change: Any) -> None:
    finished(store)
    path = store.shard_path(KEY)
    path.write_bytes(change(path.read_bytes()))
    assert store.find(KEY) is None
    assert store.has_receipt(KEY)


def test_another_key_under_the_same_name_is_not_there(store: Store) -> None:
    finished(store, OTHER)
    store.shard_path(OTHER).replace(store.shard_path(KEY))
    store.receipt_path(OTHER).replace(store.receipt_path(KEY))
    assert store.find(KEY) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"rows": 2}'])
def test_a_damaged_receipt_makes_a_shard_not_there(store: Store, content: bytes) -> None:
    finished(store)
    store.receipt_path(KEY).write_bytes(content)
    assert store.find(KEY) is None


def test_a_damaged_shard_that_is_computed_again_replaces_itself(store: Store) -> None:
    receipt = finished(store)
    store.shard_path(KEY).write_bytes(b"damaged")
    assert finished(store) == receipt == store.find(KEY)


def test_the_store_holds_shard_and_receipt_and_nothing_else(store: Store) -> None:
    finished(store)
    assert {path.name for path in store.folder.iterdir()} == {store.shard_path(KEY).name, store.receipt_path(KEY).name}


def refuse(*_: object, **__: object) -> None:
    raise OSError("this file system has no hard links")


@pytest.fixture(params=["hard link", "copy"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "copy":
        monkeypatch.setattr(os, "link", refuse)
    return str(request.param)


def test_a_placed_shard_has_the_bytes_of_the_stored_one(store: Store, tmp_path: Path, way: str) -> None:
    finished(store)
    out = tmp_path / "out"
    out.mkdir()
    store.place(KEY, out / "train.arrow")
    assert (out / "train.arrow").read_bytes() == store.shard_path(KEY).read_bytes()
    assert [path.name for path in out.iterdir()] == ["train.arrow"]
    assert (out / "train.arrow").samefile(store.shard_path(KEY)) == (way == "hard link")


def test_placing_over_another_shard_replaces_it_and_leaves_the_stored_one_alone(
    store: Store, tmp_path: Path, way: str
) -> None:
    receipts = [finished(store, key) for key in (KEY, OTHER)]
    store.place(KEY, tmp_path / "train.arrow")
    store.place(OTHER, tmp_path / "train.arrow")
    assert (tmp_path / "train.arrow").read_bytes() == store.shard_path(OTHER).read_bytes()
    assert [store.find(key) for key in (KEY, OTHER)] == receipts


def test_a_placed_shard_outlives_the_store_and_the_store_outlives_it(store: Store, tmp_path: Path, way: str) -> None:
    receipt = finished(store)
    store.place(KEY, tmp_path / "train.arrow")
    (tmp_path / "train.arrow").unlink()
    assert store.find(KEY) == receipt


def test_placing_what_is_not_stored_fails_and_leaves_nothing(store: Store, tmp_path: Path, way: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(FileNotFoundError):
        store.place(KEY, out / "train.arrow")
    assert list(out.iterdir()) == []


def test_what_is_remembered_is_recalled_under_its_key_alone(store: Store) -> None:
    store.remember(KEY, {"radius": 0.1 + 0.2, "rows": 3})
    assert store.recall(KEY) == {"radius": 0.1 + 0.2, "rows": 3}
    assert store.recall(OTHER) is None


def test_a_note_is_no_shard_and_a_shard_no_note(store: Store) -> None:
    store.remember(KEY, {"radius": 0.3})
    assert store.find(KEY) is None
    assert not store.has_receipt(KEY)
    finished(store)
    assert store.recall(KEY) == {"radius": 0.3}


def test_a_note_cut_short_anywhere_is_forgotten(store: Store) -> None:
    store.remember(KEY, {"radius": 0.3})
    (note,) = store.folder.iterdir()
    whole = note.read_bytes().rstrip()
    for length in range(len(whole)):
        note.write_bytes(whole[:length])
        assert store.recall(KEY) is None


def test_a_note_under_the_name_of_another_key_is_forgotten(store: Store) -> None:
    store.remember(KEY, {"radius": 0.3})
    (note,) = store.folder.iterdir()
    store.remember(OTHER, {"radius": 0.4})
    (other,) = set(store.folder.iterdir()) - {note}
    other.replace(note)
    assert store.recall(KEY) is None


def made_old(path: Path) -> float:
    os.utime(path, (1000, 1000))
    return path.stat().st_mtime


def test_a_receipt_tells_when_its_shard_was_last_found(store: Store) -> None:
    finished(store)
    before = made_old(store.receipt_path(KEY))
    shard_before = made_old(store.shard_path(KEY))
    assert store.find(OTHER) is None
    assert store.receipt_path(KEY).stat().st_mtime == before
    assert store.find(KEY) is not None
    assert store.receipt_path(KEY).stat().st_mtime > before
    assert store.shard_path(KEY).stat().st_mtime == shard_before, "a hard link in an output folder must not seem changed"


def test_a_note_tells_when_it_was_last_recalled(store: Store) -> None:
    store.remember(KEY, {"radius": 0.3})
    before = made_old(store.note_path(KEY))
    assert store.recall(OTHER) is None
    assert store.note_path(KEY).stat().st_mtime == before
    assert store.recall(KEY) is not None
    assert store.note_path(KEY).stat().st_mtime > before


def test_a_store_that_may_only_be_read_still_finds_and_recalls(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    receipt = finished(store)
    store.remember(KEY, {"radius": 0.3})
    monkeypatch.setattr(os, "utime", refuse)
    assert store.find(KEY) == receipt
    assert store.recall(KEY) == {"radius": 0.3}


def test_stock_is_taken_of_shards_receipts_notes_and_what_is_half_written(store: Store) -> None:
    receipt = finished(store)
    computed(store, OTHER)
    store.remember(KEY, {"radius": 0.3})
    partial = store.folder / f".partial-0123456789ab-{store.shard_path(KEY).name}"
    partial.touch()
    found = store.contents()
    entries = {entry.name: entry for entry in found.entries}
    whole, orphan = (entries[store.shard_path(key).stem] for key in (KEY, OTHER))
    assert [file.path for file in whole.files] == [store.receipt_path(KEY), store.shard_path(KEY)], "the receipt goes first"
    assert (whole.receipt, whole.key) == (receipt, KEY)
    assert (orphan.receipt_file, orphan.receipt, orphan.key) == (None, None, None)
    assert [file.path for file in orphan.files] == [store.shard_path(OTHER)]
    assert [(note.file.path, note.key) for note in found.notes] == [(store.note_path(KEY), KEY)]
    assert [file.path for file in found.partials] == [partial]


@pytest.mark.parametrize(
    "name", ["train.arrow", "manifest.json", ".partial-0123456789ab-movies", "AB" * 16 + ".arrow", "ab" * 15 + ".json", "notes"]
)
def test_files_and_folders_that_are_not_the_stores_are_not_seen(store: Store, name: str) -> None:
    store.folder.mkdir()
    (store.folder / name).touch()
    (store.folder / ("cd" * 16 + ".arrow")).mkdir()
    found = store.contents()
    assert (found.entries, found.notes, found.partials) == ((), (), ())


def test_the_key_of_a_receipt_of_another_version_is_known_but_not_its_receipt(store: Store) -> None:
    finished(store)
    content = json.loads(store.receipt_path(KEY).read_text()) | {"compressed": True}
    store.receipt_path(KEY).write_text(json.dumps(content))
    (entry,) = store.contents().entries
    assert (entry.receipt, entry.key) == (None, KEY)
    store.receipt_path(KEY).write_text(json.dumps(content | {"key": OTHER}))
    (entry,) = store.contents().entries
    assert entry.key is None, "the key of another name is not this shard's"


def test_a_file_that_was_replaced_touched_or_linked_is_another(store: Store, tmp_path: Path) -> None:
    finished(store)
    path = store.shard_path(KEY)
    seen = stored_file(path)
    assert seen == stored_file(path)
    os.link(path, tmp_path / "link")
    assert stored_file(path) != seen
    (tmp_path / "link").unlink()
    assert stored_file(path) == seen
    made_old(path)
    assert stored_file(path) != seen
    path.unlink()
    assert stored_file(path) is None
