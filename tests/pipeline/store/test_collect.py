import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config.errors import PipelineError
from pipeline.store import collect
from pipeline.store.collect import Item, Uses, check_known, items_of, uses_of
from pipeline.store.files import PARTIAL
from pipeline.store.keys import Key, key_hash
from pipeline.store.store import RECEIPT, Store
from tests.stored import DAY, HOUR, add, age, begin, data, publish, store

__all__ = ["data", "store"]


def items(store: Store, *folders: Path) -> dict[str, Item]:
    return {item.name: item for item in items_of(store, uses_of(folders, store))}


def doomed(store: Store, folder: Path, least_age: float = DAY) -> set[str]:
    return {item.name for item in collect.garbage(items(store, folder).values(), least_age)[0]}


def test_what_some_folder_lists_is_in_use_whatever_its_kind(store: Store, data: Path) -> None:
    keys = [add(store, number=number) for number in range(4)]
    publish(data / "soft_labels" / "t", store, keys[:2])
    publish(data / "student" / "t" / "half", store, [keys[1]], "lineage.json")
    publish(data / "teacher" / "t", store, [keys[2]], "stored_as.json")
    (data / "teacher" / "t" / "stored_as.json").write_text(f'{{"stored_as": "{key_hash(keys[2])}"}}')
    (data / "teacher" / "again").symlink_to(data)
    age(store.folder, 2 * DAY)
    assert [items(store, data)[key_hash(key)].used_by for key in keys] == [
        (data / "soft_labels" / "t",),
        (data / "soft_labels" / "t", data / "student" / "t" / "half"),
        (data / "teacher" / "t",),
        (),
    ]
    assert doomed(store, data) == {key_hash(keys[3])}
    assert [items(store, data)[key_hash(key)].size.shared for key in keys] == [1000, 1000, 1000, 0], "by hard links"


def test_a_student_made_by_hand_uses_nothing_and_the_store_does_not_use_itself(store: Store, data: Path) -> None:
    key = add(store)
    with store.put({"content": "student"}) as folder:
        (folder / "lineage.json").write_text(f'{{"stored_as": "{key_hash(key)}"}}')
    (data / "by hand").mkdir()
    (data / "by hand" / "lineage.json").write_text("{}")
    (data / ".hidden").mkdir()
    (data / ".hidden" / "manifest.json").write_text("nothing that is read")
    assert uses_of([data], store) == Uses({}, (), ())


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"stored_as": [3]}', None])
def test_beside_a_list_that_cannot_be_read_nothing_is_called_unused(store: Store, data: Path, content: str | None) -> None:
    publish(data / "soft_labels", store, [add(store)])
    path = data / "soft_labels" / "manifest.json"
    if content is None:
        path.unlink()
        path.symlink_to("nowhere")
    else:
        path.write_text(content)
    with pytest.raises(
        PipelineError, match=r"(?s)what is in use is not known, so nothing is deleted:.*soft_labels/manifest\.json "
    ):
        check_known(uses_of([data], store), everything=True)


def test_a_folder_that_is_missing_or_empty_must_be_meant(store: Store, data: Path, tmp_path: Path) -> None:
    publish(data / "soft_labels", store, [add(store)])
    check_known(uses_of([data], store), everything=False)
    (tmp_path / "empty").mkdir()
    for other in (tmp_path / "mistyped", tmp_path / "empty"):
        uses = uses_of([data, other], store)
        with pytest.raises(PipelineError, match=rf"no manifest\.json below {other}, so everything would count as unused"):
            check_known(uses, everything=False)
        check_known(uses, everything=True)


def test_what_is_not_finished_stays_an_hour_however_small_the_least_age(store: Store, data: Path) -> None:
    begun, written = begin(store, {"content": "student"}), store.folder / f"{PARTIAL}0123456789ab-{key_hash({})}"
    written.mkdir()
    (store.folder / f"{PARTIAL}0123456789ab-probe").write_bytes(b"0")
    (store.folder / "somebody's notes.txt").write_text("not the store's")
    found = items(store, data)
    assert {item.state for item in found.values()} == {"unfinished", "partial"}
    assert found[begun.name].label == "student"
    assert doomed(store, data, 0) == set()
    age(store.folder, 2 * HOUR)
    assert doomed(store, data) == set()
    assert doomed(store, data, 0) == found.keys()
    for item in found.values():
        assert not collect.delete(store, item), "its time has changed since"
    for item in items(store, data).values():
        assert collect.delete(store, item)
    assert [path.name for path in store.folder.iterdir()] == ["somebody's notes.txt"]


@pytest.mark.parametrize("state", ["finished", "unfinished", "partial"])
def test_what_is_locked_never_goes(store: Store, data: Path, state: str) -> None:
    key: Key = {"content": "soft_labels", "teacher": "ab" * 32, "number": 0}
    match state:
        case "finished":
            add(store)
        case "unfinished":
            begin(store, key)
        case "partial":
            (store.folder / f"{PARTIAL}0123456789ab-{key_hash(key)}").mkdir()
    age(store.folder, 2 * DAY)
    (item,) = items(store, data).values()
    assert item.state == state
    with store.lock(key, "training"):
        assert not collect.delete(store, item)
    assert collect.delete(store, item)
    assert items(store, data) == {}


def made_again(store: Store, key: Key) -> None:
    shutil.rmtree(store.folder_of(key))
    add(store)


@pytest.mark.parametrize(
    "take_up",
    [lambda store, key: store.get(key), lambda store, key: store.place(store.peek(key), store.folder.parent), made_again],
    ids=["asked for", "placed", "made again"],
)
def test_what_a_run_takes_up_between_plan_and_deletion_stays(
    store: Store, data: Path, take_up: Callable[[Store, Key], None]
) -> None:
    key = add(store)
    age(store.folder, 2 * DAY)
    (item,) = items(store, data).values()
    take_up(store, key)
    assert not collect.delete(store, item)
    assert store.get(key) is not None


@pytest.mark.parametrize(
    ("harm", "state", "said"),
    [
        (
            lambda path: path.write_bytes(b"1" + bytes(999)),
            "finished",
            "model.bin is damaged: its sha256 differs from its receipt's",
        ),
        (lambda path: path.write_bytes(bytes(7)), "damaged", "model.bin is damaged: "),
        (Path.unlink, "damaged", "model.bin cannot be read (No such file or directory)"),
        (lambda path: (path.parent / RECEIPT).unlink(), "damaged", "has no readable receipt.json of its own"),
    ],
)
def test_a_damaged_entry_is_named_and_can_be_deleted(
    store: Store, data: Path, harm: Callable[[Path], None], state: str, said: str
) -> None:
    keys = [add(store, number=number) for number in range(2)]
    before = {path: path.stat().st_mtime_ns for path in store.folder.rglob("*")}
    assert not [error for item in items(store, data).values() if (error := collect.error_of(store, item))]
    assert {path: path.stat().st_mtime_ns for path in store.folder.rglob("*")} == before, "looking leaves no trace"
    harm(store.folder_of(keys[0]) / "model.bin")
    item = items(store, data)[key_hash(keys[0])]
    assert item.state == state
    assert said in str(collect.error_of(store, item))
    assert collect.delete(store, item)
    assert os.listdir(store.folder) == [key_hash(keys[1])]  # noqa: PTH208
