import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.augment import variant_jobs as jobs_code
from pipeline.augment.jobs import Done
from pipeline.augment.passes import augment, publish, take_stock
from pipeline.augment.plans import Augmentation
from pipeline.augment.teacher import ModelSet
from pipeline.augment.variant_jobs import VariantJob, VariantWork
from pipeline.augment.workers import ThisProcess
from pipeline.config.errors import PipelineError
from pipeline.shards.manifest import SHARD_FILE, Manifest, ShardMismatch
from pipeline.shards.reader import Shards
from pipeline.store.hashing import Key, key_hash
from pipeline.store.store import RECEIPT, Store
from tests.stored import shards_in
from tests.world import augment_settings, runtime_at


@dataclass
class Run:
    """The stage in a folder of its own, where it has run once."""

    folder: Path
    scores: Path
    teacher: Path

    def again(self, **changed: Any) -> Manifest:
        runtime = runtime_at(self.folder)
        return augment(self.scores, self.teacher, None, augment_settings(**changed), runtime, self.shards)

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")

    def manifest(self) -> Manifest:
        return Shards(self.shards).manifest

    def jobs(self) -> list[VariantJob]:
        return Augmentation.of(self.scores, self.teacher, None, augment_settings()).jobs(0.2, self.store)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory, scores: Path, teacher: Path) -> Run:
    """Read only."""
    run = Run(tmp_path_factory.mktemp("once"), scores, teacher)
    run.again()
    return run


@pytest.fixture
def run(once: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    shutil.copytree(once.folder, tmp_path, dirs_exist_ok=True)
    return Run(tmp_path, once.scores, once.teacher)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that were computed, in this order."""
    names: list[str] = []
    do = ThisProcess.run

    def noted(workers: ThisProcess, jobs: Sequence[Any]) -> Iterator[tuple[Any, Done]]:
        for job, done in do(workers, jobs):
            names.extend([job.name] if isinstance(job, VariantJob) else [])
            yield job, done

    monkeypatch.setattr(ThisProcess, "run", noted)
    return names


def hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def left_over(folder: Path) -> list[str]:
    """Files and folders that are no product."""
    return [path.name for path in folder.rglob("*") if path.name.startswith(".partial")]


def damage_one(store: Store, key: Key, damage: str) -> None:
    target = store.folder_of(key) / (RECEIPT if "receipt" in damage else SHARD_FILE)
    content = target.read_bytes()
    target.unlink()
    if damage == "flipped byte":
        target.write_bytes(content[:-700] + bytes([content[-700] ^ 1]) + content[-699:])
    elif "cut off" in damage:
        target.write_bytes(content[:-1] if target.name == SHARD_FILE else content[:40])


@pytest.mark.parametrize("damage", ["flipped byte", "cut off", "deleted", "no receipt", "receipt cut off"])
def test_a_damaged_shard_is_made_again(run: Run, computed: list[str], damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    before, entries = hashes(run.shards), run.manifest().shards
    damage_one(run.store, entries[-1].receipt.key, damage)
    run.again()
    name = f"variant {entries[-1].variant}, partition {entries[-1].partition}"
    assert computed == [name]
    lines = capsys.readouterr().out
    assert f"augment tiny: damaged in the store, computed again: {name}\n" in lines
    assert f"augment tiny: {len(entries)} shards, {len(entries) - 1} in the store, 1 to compute" in lines
    assert hashes(run.shards) == before


def test_shards_stand_in_the_order_of_the_jobs_whichever_is_finished_first(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, do = run.manifest(), ThisProcess.run

    def backwards(workers: ThisProcess, jobs: Sequence[Any]) -> Iterator[tuple[Any, Done]]:
        for job, done in reversed(list(do(workers, jobs))):
            yield job, Done(done.result, ("memory ran out",) if job.partition == 2 else ())

    for entry in (before.shards[number] for number in (0, 2, 3)):
        run.store.remove(key_hash(entry.receipt.key))
    monkeypatch.setattr(ThisProcess, "run", backwards)
    assert run.again() == run.manifest() == before
    lines = capsys.readouterr().out
    assert f"augment tiny: {len(before.shards)} shards, {len(before.shards) - 3} in the store, 3 to compute\n" in lines
    assert "\nvariant 1, partition 2: memory ran out\n" in lines


def test_tampering_with_what_was_published_reaches_no_later_run(run: Run) -> None:
    run.again()  # which links the published files to the store's
    before, target = hashes(run.shards), run.shards / run.manifest().shards[0].file
    content = target.read_bytes()
    target.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    (run.shards / "mine").touch()
    with pytest.raises(ShardMismatch, match=target.name):
        Shards(run.shards)
    run.again()
    assert hashes(run.shards) == before, "a set is published as a whole"


@pytest.mark.parametrize("place", ["occupied/shards", "occupied"])
def test_a_folder_that_cannot_be_written_is_a_sentence_and_the_store_keeps_all(run: Run, place: str) -> None:
    (run.folder / "occupied").write_text("mine")
    out = run.folder / place
    with pytest.raises(PipelineError, match=rf"^{out} cannot be written: .+; all shards are kept in the store$"):
        publish(out, run.store, run.manifest())
    assert (run.folder / "occupied").read_text() == "mine"
    assert left_over(run.folder) == []
    assert take_stock(run.jobs(), run.store).missing == []


def full(*arguments: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_full_half_way_leaves_what_was_published(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before, placed = hashes(run.shards), []

    def copy(source: Path, target: Path) -> None:
        placed.append(target)
        Path(target).write_bytes(b"half" if len(placed) == 3 else Path(source).read_bytes())
        if len(placed) == 3:
            full()

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(shutil, "copyfile", copy)
    with pytest.raises(PipelineError, match=rf"^{run.shards} cannot be written: No space left on device; all shards are kept"):
        run.again(seed=2)
    assert len(placed) == 3
    assert (hashes(run.shards), left_over(run.folder)) == (before, [])


def test_a_failure_leaves_the_published_set_and_what_was_finished(
    run: Run, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, work = hashes(run.shards), VariantWork.run

    def stumble(given: VariantWork, models: ModelSet, store: Store) -> Done:
        if len(computed) == 3:
            raise PipelineError("stumbled")
        return work(given, models, store)

    names = [f"variant {entry.variant}, partition {entry.partition}" for entry in run.manifest().shards]
    with monkeypatch.context() as patch:
        patch.setattr(VariantWork, "run", stumble)
        with pytest.raises(PipelineError, match=rf"^{names[3]} failed: stumbled$"):
            run.again(seed=2)
    assert (hashes(run.shards), left_over(run.folder), computed) == (before, [], names[:3])
    run.again(seed=2)
    assert computed == names, "what was finished was kept"


@pytest.mark.parametrize("moment", ["within", "receipt"])
def test_a_full_store_is_a_sentence_that_names_the_shard_and_the_next_run_goes_on(
    run: Run, tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    other, write_shard = Run(tmp_path / "other", run.scores, run.teacher), jobs_code.write_shard

    def full_at_the_end(*arguments: Any) -> Any:
        with monkeypatch.context() as inner:
            inner.setattr(os, "fsync", full)
            return write_shard(*arguments)

    with monkeypatch.context() as patch:
        if moment == "receipt":
            patch.setattr("pipeline.store.store.complete", lambda folder: (folder / SHARD_FILE).exists() and full())
        else:
            patch.setattr(jobs_code, "write_shard", full_at_the_end)
        sentence = rf"^variant 1, partition 0 failed: the store {other.store.folder} does not take it: No space left on device$"
        with pytest.raises(PipelineError, match=sentence):
            other.again()
    assert left_over(other.folder) == shards_in(other.store.folder) == []
    assert not other.shards.exists()
    assert len(other.again().shards) == len(computed)
