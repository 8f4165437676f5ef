import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from pipeline.config.errors import PipelineError
from pipeline.store import bucket as bucket_module
from pipeline.store import collect
from pipeline.store.bucket import TOTAL_FILE, BucketStore, bucket_store
from pipeline.store.collect import Uses, items_of
from pipeline.store.keys import Key, key_hash
from pipeline.store.store import RECEIPT, Files, Store
from tests.bucket import BUCKET, breaking, bucket, client, objects, server

__all__ = ["bucket", "server"]

KEY: Key = {"content": "student", "seed": 1}
NOTHING = Uses({}, (), ())


@pytest.fixture
def store(bucket: str, tmp_path: Path) -> BucketStore:
    return bucket_store(bucket, str(tmp_path / "cache"), 10**9)


def elsewhere(store: BucketStore, folder: Path, cache_bytes: int = 10**9) -> BucketStore:
    """The same store on another machine."""
    return bucket_store(store.url, str(folder), cache_bytes)


def put(store: Store, key: Key = KEY, content: bytes = b"weights") -> None:
    with store.put(key, {"dev": 0.5}) as folder:
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_bytes(content)


def test_another_machine_finds_what_was_put(store: BucketStore, server: str, tmp_path: Path) -> None:
    assert store.get(KEY) is None
    put(store)
    name, digest = key_hash(KEY), hashlib.sha256(b"weights").hexdigest()
    assert set(objects(server)) == {f"{name}/{digest}/model/weights", f"{name}/{RECEIPT}"}
    entry = pickle.loads(pickle.dumps(elsewhere(store, tmp_path / "other"))).get(KEY)
    assert entry is not None
    assert (entry.folder / "model" / "weights").read_bytes() == b"weights"
    assert entry.folder.parent == tmp_path / "other"
    assert entry.facts == {"dev": 0.5}
    receipt = objects(server)[f"{name}/{RECEIPT}"]
    assert receipt == (entry.folder / RECEIPT).read_bytes()
    written = store.sizes()[name].touched
    time.sleep(1.1)  # the server counts whole seconds
    assert store.find([KEY, KEY | {"seed": 2}])[1] is None
    assert store.sizes()[name].touched > written, "garbage collection sees the use"
    assert objects(server)[f"{name}/{RECEIPT}"] == receipt


def test_a_url_that_is_not_understood_is_an_error(tmp_path: Path) -> None:
    store = bucket_store("s3://bucket/x?region=us-east-1&foo=bar", str(tmp_path), 1)
    with pytest.raises(PipelineError, match=r"^the store s3://bucket/x cannot be read: "):
        store.peek(KEY)


def test_a_cached_file_is_downloaded_once_and_verified_each_time(store: BucketStore, server: str, tmp_path: Path) -> None:
    put(store)
    other = elsewhere(store, tmp_path / "other")
    entry = other.get(KEY)
    assert entry is not None
    client(server).delete_object(Bucket=BUCKET, Key=f"prefix/{next(name for name in objects(server) if 'weights' in name)}")
    assert other.fetch(KEY, entry.files).folder == entry.folder
    (entry.folder / "model" / "weights").write_bytes(b"Weights")
    with pytest.raises(PipelineError, match="weights is missing"):
        other.fetch(KEY, entry.files)
    assert other.get(KEY) is None


def test_a_cache_below_the_home_directory_is_below_that_of_the_reading_process(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "driver"))
    sent = pickle.dumps(bucket_store(bucket, "~/.cache/ad2", 1))
    monkeypatch.setenv("HOME", str(tmp_path / "node"))
    assert pickle.loads(sent).folder == tmp_path / "node" / ".cache" / "ad2"


def test_a_flipped_byte_in_the_bucket_is_found_when_it_is_read(store: BucketStore, server: str, tmp_path: Path) -> None:
    put(store)
    entry = store.peek(KEY)
    assert entry is not None
    name = next(name for name in objects(server) if "weights" in name)
    client(server).put_object(Bucket=BUCKET, Key=f"prefix/{name}", Body=b"Weights")
    other = elsewhere(store, tmp_path / "other")
    with pytest.raises(PipelineError, match=rf"^s3://.*{key_hash(KEY)}/model/weights is damaged.*verify --delete$"):
        other.fetch(KEY, entry.files)
    assert other.get(KEY) is None
    assert not list((tmp_path / "other").glob("[!.]*/*"))
    (item,) = items_of(other, NOTHING)
    assert "is missing or damaged" in str(collect.error_of(other, item))
    put(other)
    assert collect.error_of(other, item) is None


def test_a_killed_writer_leaves_no_entry(store: BucketStore, server: str, tmp_path: Path) -> None:
    program = f"""
        import os, signal
        from pipeline.store.bucket import BucketStore, bucket_store
        upload = BucketStore._upload
        def until_the_receipt(self, source, name):
            if name.endswith("receipt.json"):
                os.kill(os.getpid(), signal.SIGKILL)
            upload(self, source, name)
        BucketStore._upload = until_the_receipt
        with bucket_store({store.url!r}, {str(tmp_path / "other")!r}, 10**9).put({KEY!r}) as folder:
            (folder / "weights").write_bytes(b"weights")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(objects(server)) == 1
    assert store.get(KEY) is None
    (item,) = items_of(store, NOTHING)
    assert item.state == "partial"
    assert collect.garbage([item], least_age=0) == ([], 1), "it may be written still"
    assert collect.delete(store, item)
    assert objects(server) == {}


def test_of_two_writers_each_reader_finds_the_files_of_its_receipt(store: BucketStore, tmp_path: Path) -> None:
    put(store)
    first = store.peek(KEY)
    put(elsewhere(store, tmp_path / "other"), content=b"other weights")
    second = store.peek(KEY)
    assert first is not None
    assert second is not None
    reader = elsewhere(store, tmp_path / "reader")
    for entry, content in ((first, b"weights"), (second, b"other weights"), (first, b"weights")):
        assert (reader.fetch(KEY, entry.files).folder / "model" / "weights").read_bytes() == content


def test_the_cache_keeps_what_was_used_last_within_its_bytes(store: BucketStore, tmp_path: Path) -> None:
    keys: list[Key] = [{"content": "student", "seed": seed} for seed in range(4)]
    for key in keys:
        put(store, key, bytes(1000))
    small = elsewhere(store, tmp_path / "small", cache_bytes=2900)
    for key, age in ((keys[0], 30), (keys[1], 20)):
        entry = small.get(key)
        assert entry is not None
        for path in [entry.folder, *entry.folder.rglob("*")]:
            os.utime(path, (path.stat().st_mtime - age,) * 2)
    assert small.get(keys[0]) is not None
    assert small.get(keys[2]) is not None
    assert {path.name for path in small.folder.iterdir() if path.is_dir()} == {key_hash(keys[0]), key_hash(keys[2])}
    put(store, KEY, bytes(5000))
    with pytest.raises(PipelineError, match=r"5,000 bytes, more than runtime\.cache_bytes 2,900"):
        small.get(KEY)


def wanted(root: Path, numbers: range, size: int) -> list[tuple[Key, Files]]:
    """Entries of a store in a folder, as ``fetch`` takes them, each with one file of so many bytes."""
    found: list[tuple[Key, Files]] = []
    for number in numbers:
        key, content = {"number": number}, number.to_bytes(4, "big") * (size // 4)
        digest = hashlib.sha256(content).hexdigest()
        path = root / key_hash(key) / digest / "file"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        found.append((key, {"file": {"sha256": digest, "bytes": size}}))
    return found


def in_folder(tmp_path: Path, cache_bytes: int) -> BucketStore:
    """A store whose objects are the files of a folder."""
    return bucket_store(f"file://{tmp_path / 'bucket'}", str(tmp_path / "cache"), cache_bytes)


def cached(store: BucketStore) -> int:
    """Bytes of finished and partial files in the cache, without receipts."""
    return sum(path.stat().st_size for path in store.folder.glob("*/file"))


def total(store: BucketStore) -> int:
    """What the cache's file says."""
    return int((store.folder / TOTAL_FILE).read_text())


def test_many_downloads_walk_the_cache_a_few_times_and_keep_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walks, sizes = [], Store.sizes
    monkeypatch.setattr(Store, "sizes", lambda store: walks.append(store) or sizes(store))
    store = in_folder(tmp_path, 1_000_000)
    for number, one in enumerate(wanted(tmp_path / "bucket", range(250), 10_000)):
        store.fetch(*one)
        if number % 10 == 9:
            assert min(number + 1, 80) * 10_000 <= cached(store) <= min(total(store), 1_000_000)
    assert len(walks) <= 25


def test_the_bound_holds_while_threads_of_several_processes_download(tmp_path: Path) -> None:
    """Each download is measured in its middle, when others are in theirs."""
    program = """
        import json, sys, time
        from concurrent.futures import ThreadPoolExecutor
        from pipeline.store import bucket
        store = bucket.bucket_store(sys.argv[1], sys.argv[2], 20_000)
        copy, seen = bucket.copy_files, []
        def measured(*given, **options):
            copy(*given, **options)
            time.sleep(0.01)
            with store._cache_lock:
                seen.append(sum(path.stat().st_size for path in store.folder.glob("*/file")))
        bucket.copy_files = measured
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda one: store.fetch(*one), json.load(sys.stdin)))
        print(max(seen), len(seen))
    """
    entries, store = wanted(tmp_path / "bucket", range(90), 1000), in_folder(tmp_path, 20_000)
    command = [sys.executable, "-c", textwrap.dedent(program), store.url, str(store.folder)]
    started = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    feeding = [json.dumps(entries[first : first + 60]) for first in (0, 30)]
    with ThreadPoolExecutor(2) as threads:
        said = list(threads.map(lambda process, given: process.communicate(given)[0], started, feeding))
    most, count = zip(*(map(int, line.split()) for line in said), strict=True)
    assert 10_000 <= max(most) <= 20_000
    assert sum(count) >= 90
    assert cached(store) <= total(store)


def test_a_download_in_progress_counts_in_full_when_the_cache_is_walked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, copy, started, go = in_folder(tmp_path, 10_000), bucket_module.copy_files, threading.Event(), threading.Event()
    (large,), others = wanted(tmp_path / "bucket", range(1), 6000), wanted(tmp_path / "bucket", range(1, 11), 1000)
    small = [one for one in others if key_hash(one[0])[0] != key_hash(large[0])[0]]  # they would wait for its download

    def waiting(path: str, *given: Any, **options: Any) -> None:
        if key_hash(large[0]) in path:
            started.set()
            assert go.wait(60)
        copy(path, *given, **options)

    monkeypatch.setattr(bucket_module, "copy_files", waiting)
    with ThreadPoolExecutor(1) as threads:
        download = threads.submit(store.fetch, *large)
        assert started.wait(60)
        try:
            for one in small:
                store.fetch(*one)
        finally:
            go.set()
        assert (download.result().folder / "file").stat().st_size == 6000
    assert cached(store) <= min(total(store), 10_000)


@pytest.mark.parametrize("content", [None, b"", b"12", b"-12\n", b"\xff\n"])
def test_a_total_that_is_missing_or_not_readable_is_counted_anew(tmp_path: Path, content: bytes | None) -> None:
    *first, last = wanted(tmp_path / "bucket", range(4), 1000)
    store = in_folder(tmp_path, 3900)
    for one in first:
        store.fetch(*one)
    if content is None:
        (store.folder / TOTAL_FILE).unlink()
    else:
        (store.folder / TOTAL_FILE).write_bytes(content)
    store.fetch(*last)
    assert 2000 <= cached(store) <= min(total(store), 3900)


def test_downloads_that_fail_and_entries_that_are_deleted_make_the_total_no_smaller_than_the_cache(tmp_path: Path) -> None:
    entries, store = wanted(tmp_path / "bucket", range(4), 1000), in_folder(tmp_path, 9000)
    shutil.rmtree(tmp_path / "bucket" / key_hash(entries[3][0]))
    for key, files in entries[:3]:
        store.fetch(key, files)
    with pytest.raises(PipelineError, match="file is missing"):
        store.fetch(*entries[3])
    (store.folder_of(entries[0][0]) / "file").write_bytes(bytes(1000))
    store.fetch(*entries[0])
    store.remove(key_hash(entries[1][0]))
    assert cached(store) == 2000 <= total(store)


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        (None, "^the store s3://absent/prefix cannot be written to: the bucket does not exist"),
        ("http://127.0.0.1:9", "^the store s3://absent/prefix cannot be written to: the connection failed"),
    ],
)
def test_a_bucket_that_cannot_be_used_is_an_error_before_work_begins(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str | None, message: str
) -> None:
    if endpoint is not None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    store = bucket_store("s3://absent/prefix", str(tmp_path / "cache"), 10**9)
    with pytest.raises(PipelineError, match=message), store.lock(KEY, "distill"):
        raise AssertionError("the work begins")


def test_credentials_that_the_server_rejects_are_an_error(
    bucket: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = Request(f"{server}/moto-api/reset-auth", b"0", {"Content-Type": "application/octet-stream"}, method="POST")
    urlopen(checked).read()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    try:
        store = bucket_store(f"{bucket}/other", str(tmp_path / "cache"), 10**9)
        with pytest.raises(PipelineError, match="the credentials of the environment or profile") as raised, store.probe():
            raise AssertionError("the work begins")
    finally:
        checked.data = b"inf"
        urlopen(checked).read()
    assert "wrong" not in str(raised.value)


def test_a_probe_is_seen_in_the_same_bucket_only(store: BucketStore, bucket: str, tmp_path: Path, server: str) -> None:
    with store.probe() as probe:
        assert elsewhere(store, tmp_path / "other").sees(probe)
        assert not bucket_store(f"{bucket}/other", str(tmp_path / "other"), 1).sees(probe)
    assert objects(server) == {}


@pytest.mark.parametrize("times", [1, 1000])
def test_a_connection_that_breaks_is_made_again_or_is_an_error(
    store: BucketStore, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    content = os.urandom(12 * 2**20)
    put(store, content=content)
    other = elsewhere(store, tmp_path / "other")
    with breaking(server, after=2 * 2**20, times=times) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        if times == 1:
            entry = other.get(KEY)
            assert entry is not None
            assert (entry.folder / "model" / "weights").read_bytes() == content
            return
        for call in (lambda: other.get(KEY), lambda: put(other, KEY | {"seed": 2}, content)):
            with pytest.raises(PipelineError, match=r"the store s3://.* cannot be .*: the connection failed"):
                call()
    assert not [path for path in other.folder.iterdir() if path.is_dir()]
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    assert other.peek(KEY | {"seed": 2}) is None
