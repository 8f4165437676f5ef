import hashlib
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from pipeline.config.errors import PipelineError
from pipeline.store import collect
from pipeline.store.bucket import BucketStore, bucket_store
from pipeline.store.collect import Uses, items_of
from pipeline.store.keys import Key, key_hash
from pipeline.store.store import RECEIPT, Store
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
    small = elsewhere(store, tmp_path / "small", cache_bytes=3000)
    for key, age in ((keys[0], 30), (keys[1], 20)):
        entry = small.get(key)
        assert entry is not None
        for path in [entry.folder, *entry.folder.rglob("*")]:
            os.utime(path, (path.stat().st_mtime - age,) * 2)
    assert small.get(keys[0]) is not None
    assert small.get(keys[2]) is not None
    assert {path.name for path in small.folder.iterdir() if path.is_dir()} == {key_hash(keys[0]), key_hash(keys[2])}
    put(store, KEY, bytes(5000))
    with pytest.raises(PipelineError, match=r"5,000 bytes, more than runtime\.cache_bytes 3,000"):
        small.get(KEY)


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
