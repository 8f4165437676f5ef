import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.errors import PipelineError
from pipeline.store.keys import Key, key_hash
from pipeline.store.store import RECEIPT, Entry, Store, add_folder, needed
from tests.running import ROOT
from tests.world import rewrite

KEY: Key = {"content": "soft_labels", "teacher": "ab" * 32, "variant": 1}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "data" / "store")


def put(store: Store, key: Key = KEY, content: bytes = b"rows", **facts: Any) -> Entry:
    with store.put(key, facts) as folder:
        (folder / "deep").mkdir()
        (folder / "shard.arrow").write_bytes(content)
        (folder / "deep" / "more.bin").write_bytes(b"more")
    entry = store.get(key)
    assert entry is not None
    return entry


def test_what_is_put_is_there_with_its_files_and_facts_and_nothing_else_is(store: Store) -> None:
    assert store.get(KEY) is None
    assert store.peek(KEY) is None
    entry = put(store, rows=3)
    assert entry.facts == {"rows": 3}
    assert (entry.folder / "shard.arrow").read_bytes() == b"rows"
    assert sorted(entry.files) == ["deep/more.bin", "shard.arrow"]
    assert store.peek(dict(reversed(KEY.items()))) == entry, "in whatever order a key was built"
    assert store.get(KEY | {"variant": 2}) is None
    assert [path.name for path in store.folder.iterdir()] == [key_hash(KEY)]


def receipt_with(**changed: Any) -> Callable[[Entry], Any]:
    return lambda entry: rewrite(entry.folder / RECEIPT, **changed)


HARM: dict[str, Callable[[Entry], Any]] = {
    "flipped": lambda entry: (entry.folder / "shard.arrow").write_bytes(b"rowz"),
    "cut": lambda entry: (entry.folder / "shard.arrow").write_bytes(b"row"),
    "lost": lambda entry: (entry.folder / "shard.arrow").unlink(),
    "no receipt": lambda entry: (entry.folder / RECEIPT).unlink(),
    "receipt cut": lambda entry: (entry.folder / RECEIPT).write_text((entry.folder / RECEIPT).read_text()[:-9]),
    "receipt of nothing": lambda entry: (entry.folder / RECEIPT).write_text("[]"),
    "files without hashes": receipt_with(files={"shard.arrow": {}}),
    "another key": receipt_with(key=KEY | {"variant": 7}),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_entry_is_not_there_and_is_replaced_by_the_next_one(store: Store, harm: str) -> None:
    HARM[harm](put(store))
    assert store.get(KEY) is None
    if harm != "flipped":
        assert store.peek(KEY) is None, "sizes and the receipt tell"
    entry = put(store)
    assert (entry.folder / "shard.arrow").read_bytes() == b"rows"
    assert [path.name for path in store.folder.iterdir()] == [key_hash(KEY)]
    assert (put(store).folder / "shard.arrow").stat().st_ino == (entry.folder / "shard.arrow").stat().st_ino, (
        "one that is intact stays"
    )


def test_many_that_put_one_entry_at_once_leave_one_and_none_of_them_fails(store: Store) -> None:
    with ThreadPoolExecutor(4) as threads:
        entries = list(threads.map(lambda _: put(store), range(16)))
    assert {(entry.folder / "shard.arrow").read_bytes() for entry in entries} == {b"rows"}
    assert [path.name for path in store.folder.iterdir()] == [key_hash(KEY)]


def test_asking_is_seen_in_the_time_of_the_receipt_and_peeking_is_not(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    receipt = put(store).folder / RECEIPT
    then = time.time() - 9999
    os.utime(receipt, (then, then))
    store.peek(KEY)
    assert receipt.stat().st_mtime == then
    store.get(KEY)
    assert receipt.stat().st_mtime > then + 9000

    def reject(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "utime", reject)
    assert store.get(KEY) is not None, "a store that may only be read is read"


@pytest.mark.parametrize("links", [True, False])
def test_placed_files_outlive_the_store(store: Store, tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def reject(*_: Any) -> None:
        raise OSError("no hard links here")

    entry = put(store)
    if not links:
        monkeypatch.setattr(os, "link", reject)
    out, one = tmp_path / "out", tmp_path / "one"
    for folder in (out, one):
        folder.mkdir()
    store.place(entry, out)
    store.place(entry, one, {"shard.arrow": "renamed.arrow"})
    assert ((out / "shard.arrow").stat().st_nlink > 1) is links
    shutil.rmtree(store.folder)
    found = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"out/shard.arrow": b"rows", "out/deep/more.bin": b"more", "one/renamed.arrow": b"rows"}


def test_a_folder_is_added_once_under_a_key_of_its_bytes_and_shares_them(store: Store, tmp_path: Path) -> None:
    folder, weights = tmp_path / "model", tmp_path / "weights"
    (folder / "deep").mkdir(parents=True)
    weights.write_bytes(b"1")
    (folder / "linked").symlink_to(weights)
    (folder / "deep" / "more").touch()
    for _ in range(2):
        key = add_folder(store, "model", folder)
        entry = needed(store, key, "it")
        assert entry.files.keys() == {"linked"}
        assert (entry.folder / "linked").samefile(weights), "no bytes twice"
    assert needed(store, add_folder(store, "model", folder, below=True), "it").files.keys() == {"linked", "deep/more"}
    weights.write_bytes(b"2")
    with pytest.raises(PipelineError, match=rf"^the model of data cannot be read from the store {store}; run the stage again$"):
        needed(store, key, "the model of data")
    assert store.has(key), "overwritten in place"
    assert add_folder(store, "model", folder) != key
    weights.unlink()
    weights.write_bytes(b"1")
    assert add_folder(store, "model", folder) == key
    assert (needed(store, key, "it").folder / "linked").read_bytes() == b"1"


def test_a_probe_is_seen_in_the_same_store_while_it_lasts_and_in_no_other(store: Store, tmp_path: Path) -> None:
    with store.probe() as token:
        assert Store(store.folder).sees(token)
        assert not Store(tmp_path / "another").sees(token)
    assert not store.sees(token)
    assert list(store.folder.iterdir()) == []


def test_what_is_obtained_is_made_once_and_its_checkpoints_go(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    made: list[Path] = []

    def make() -> None:
        made.append(store.unfinished(KEY))
        (made[-1] / "checkpoint-1").mkdir(exist_ok=True)
        put(store)

    assert store.obtain(KEY, "teach tiny", make) == store.obtain(KEY, "teach tiny", make)
    assert len(made) == 1
    assert not made[0].exists()
    assert capsys.readouterr().out == f"teach tiny: finished before, taken from {store.folder_of(KEY)}\n"


def test_an_error_leaves_no_entry_and_the_checkpoints_of_the_training(store: Store) -> None:
    def fail() -> None:
        (store.unfinished(KEY) / "checkpoint-1").mkdir()
        with store.put(KEY) as folder:
            (folder / "shard.arrow").write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.obtain(KEY, "teach tiny", fail)
    assert store.get(KEY) is None
    assert (store.unfinished(KEY) / "checkpoint-1").exists()
    assert list(store.unfinished(KEY).parent.glob("[!.]*")) == [store.lock_file(key_hash(KEY))], "nothing half written"


HOLD = """
import sys, time
from pathlib import Path
from pipeline.store.store import Store
with Store(Path(sys.argv[1])).lock({"content": "soft_labels", "teacher": "ab" * 32, "variant": 1}, "first"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_who_comes_second_waits_and_says_so_and_a_killed_process_holds_nothing(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    first = subprocess.Popen([sys.executable, "-c", HOLD, store.folder], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert first.stdout
    assert first.stdout.readline() == "held\n"
    with store.lock(KEY | {"variant": 2}, "other"):
        pass
    assert capsys.readouterr().out == "", "another entry is free"
    with ThreadPoolExecutor(1) as beside:
        beside.submit(lambda: (time.sleep(0.3), first.kill()))
        with store.lock(KEY, "second"):
            assert first.wait() < 0
    first.stdout.close()
    assert capsys.readouterr().out == "second: another process trains this; waiting for it\n"


def test_a_store_that_cannot_be_written_to_is_named_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PipelineError, match=r"runtime\.store: .*/file/store cannot be written to: "):
        Store(tmp_path / "file" / "store").obtain({"content": "x"}, "x", lambda: pytest.fail("it was made"))
