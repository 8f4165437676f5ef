import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import ObjectLostError

from pipeline.augment import cluster
from pipeline.augment.cluster import Cluster
from pipeline.augment.jobs import Done
from pipeline.augment.plans import Augmentation
from pipeline.augment.teacher import ModelFolders, ModelSet
from pipeline.config.errors import PipelineError
from pipeline.shards.manifest import SHARD_FILE, Receipt
from pipeline.shards.reader import Shards
from pipeline.store.hashing import key_hash, sha256_of
from pipeline.store.store import Store
from tests.stored import found, shards_in
from tests.world import AUGMENT_SETTINGS, runtime_at


@dataclass(frozen=True)
class Looking:
    """Tells which files its worker computes with, and what it is told to."""

    name: str = "looking"

    def work(self) -> Any:
        return self

    def run(self, models: ModelSet, store: Store) -> Done:
        folder = models._folders.teacher
        return Done((folder, {path.name: sha256_of(path) for path in folder.iterdir()}, models.teacher.width))


@dataclass(frozen=True)
class Writing:
    """Makes a shard of so many bytes; the next that its worker does sees what was left in the worker's folder."""

    number: int
    bytes: int
    wrong_hash: bool = False

    @property
    def name(self) -> str:
        return f"writing {self.number}"

    def work(self) -> Any:
        return self

    def run(self, models: ModelSet, store: Store) -> Done:
        left = tuple(sorted(path.name for path in store.folder.iterdir())) if store.folder.exists() else ()
        key = {"content": "scores", "number": self.number}
        content = os.urandom(self.bytes)
        sha256 = "0" * 64 if self.wrong_hash else hashlib.sha256(content).hexdigest()
        receipt = Receipt(key=key, rows=1, tokens=1, bytes=self.bytes, sha256=sha256, statistics={})
        with store.put(key, receipt.facts()) as folder:
            (folder / SHARD_FILE).write_bytes(content)
        return Done(receipt, (str(store.folder), *left))


@contextmanager
def seen_by_nobody(store: Store) -> Iterator[Path]:
    """A landmark that no worker finds, as if it had another disk."""
    yield store.folder / "landmark of another machine"


@pytest.fixture(scope="module")
def guest(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A worker that sees neither the store nor the weights as they are here; there is a place for another one beside it."""
    folder = Path(shutil.copytree(teacher, tmp_path_factory.mktemp("unshared") / "teacher"))
    (folder / "empty.txt").touch()
    hash_here = cluster.sha256_of
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setattr(cluster, "landmark", seen_by_nobody)
        patch.setattr(cluster, "sha256_of", lambda path: "other weights" if path.suffix == ".safetensors" else hash_here(path))
        with unshared(folder, folder.parent, places=2) as one:
            list(one.run([Looking()]))
            patch.setattr(one, "_runtime", runtime_at(folder.parent, workers=1))
            yield one
            ((_, done),) = one.run([Looking()])
        assert not own_folder(done).exists(), "the worker tidied up when it left"


def unshared(teacher: Path, folder: Path, places: int = 1) -> Cluster:
    return Cluster(ModelFolders(teacher), "float32", Store(folder / "store"), runtime_at(folder, workers=places))


def own_folder(done: Done) -> Path:
    """Of the worker that has been looking."""
    return next(folder for folder in done.result[0].parents if folder.name.startswith("augment-worker-"))


@pytest.fixture
def store(guest: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Of the driver, new for every test."""
    monkeypatch.setattr(guest, "_store", Store(tmp_path / "store"))
    return guest._store


def test_workers_without_store_or_models_give_the_same_shards(
    guest: Cluster, store: Store, made: tuple[Path, Path], teacher: Path
) -> None:
    jobs = Augmentation.of(made[0], teacher, None, AUGMENT_SETTINGS).jobs(0.2, store)
    receipts = {key_hash(job.key): done.result.sha256 for job, done in guest.run(jobs)}
    assert receipts == {key_hash(entry.receipt.key): entry.receipt.sha256 for entry in Shards(made[1]).manifest.shards}
    assert {path.parent.name: sha256_of(path) for path in shards_in(store.folder)} == receipts
    assert all(found(store, job.key) for job in jobs)
    assert {path.name for path in store.folder.iterdir()} == receipts.keys()


def test_shards_travel_in_pieces_and_leave_nothing_behind(
    guest: Cluster, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces: list[int] = []
    get = ray.get

    def counting(promise: Any) -> Any:
        assert isinstance(promise, ray.ObjectRef), "one at a time"
        if isinstance(value := get(promise), bytes):
            pieces.append(len(value))
        return value

    monkeypatch.setattr(cluster.ray, "get", counting)
    large = 2 * cluster.PIECE_BYTES + 5
    done = [done for _, done in guest.run([Writing(1, large), Writing(2, large)])]
    assert pieces == [cluster.PIECE_BYTES, cluster.PIECE_BYTES, 5] * 2
    lair, *left = done[1].notes
    assert Path(lair) != store.folder
    assert left == [], "of the first shard nothing remained when the second was made"
    for written in done:
        assert found(store, written.result.key) == written.result


def assert_models_were_sent_byte_for_byte(guest: Cluster) -> None:
    here = guest._folders.teacher
    ((_, done),) = guest.run([Looking()])
    used, hashes, width = done.result
    assert used != here
    assert (hashes, width) == ({path.name: sha256_of(path) for path in here.iterdir()}, 32)


def test_a_piece_lost_with_its_node_makes_another_worker_take_the_job_over(
    guest: Cluster, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_models_were_sent_byte_for_byte(guest)
    ((_, lost),) = guest.run([Looking()])
    losses = iter([ObjectLostError("00", b"", "")])
    get = ray.get

    def losing(promise: Any) -> Any:
        value = get(promise)
        if isinstance(value, bytes) and (loss := next(losses, None)):
            raise loss
        return value

    monkeypatch.setattr(cluster, "PIECE_BYTES", 10_000)  # of the models that the new worker is sent
    monkeypatch.setattr(cluster.ray, "get", losing)
    ((_, done),) = guest.run([Writing(3, 100)])
    assert capsys.readouterr().out.count("a worker died on writing 3; another takes it over") == 1
    assert found(store, done.result.key) == done.result
    monkeypatch.undo()
    assert_models_were_sent_byte_for_byte(guest)
    shutil.rmtree(own_folder(lost))


def test_a_shard_that_arrives_changed_is_refused(
    guest: Cluster, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "join_ray", lambda settings, cores: None)  # a second worker on the Ray that runs
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
    with (
        unshared(teacher, tmp_path) as another,
        pytest.raises(PipelineError, match=r"^writing 1 failed: what came from its worker is not what the worker wrote"),
    ):
        list(another.run([Writing(1, 100, wrong_hash=True)]))
    assert not list((tmp_path / "store").iterdir())
