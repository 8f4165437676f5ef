import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.augment import variant_jobs as jobs_code
from pipeline.augment.jobs import Done
from pipeline.augment.passes import augment, finish, manifest_of, publish, take_stock
from pipeline.augment.plans import Augmentation
from pipeline.augment.teacher import ModelSet
from pipeline.augment.variant_jobs import VariantJob, VariantWork
from pipeline.augment.workers import ThisProcess
from pipeline.config.errors import PipelineError
from pipeline.shards.manifest import SHARD_FILE, Manifest, Receipt, ShardMismatch
from pipeline.shards.reader import Shards
from pipeline.store.keys import Key, key_hash
from pipeline.store.store import RECEIPT, Store
from tests.stored import shard_path, shards_in
from tests.world import augment_settings, runtime_at


@pytest.fixture
def scores(made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of 60 training rows; read only."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    return made[0]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that were computed, in this order."""
    names: list[str] = []
    run = ThisProcess.run

    def noted(workers: ThisProcess, jobs: Sequence[Any]) -> Iterator[tuple[Any, Done]]:
        for job, done in run(workers, jobs):
            names.extend([job.name] if isinstance(job, VariantJob) else [])
            yield job, done

    monkeypatch.setattr(ThisProcess, "run", noted)
    return names


def run_in(folder: Path, scores: Path, teacher: Path, **changed: Any) -> Manifest:
    return augment(scores, teacher, None, augment_settings(**changed), runtime_at(folder), folder / "shards")


def jobs_in(folder: Path, scores: Path, teacher: Path) -> tuple[list[VariantJob], Store]:
    store = Store(folder / "store")
    return Augmentation.of(scores, teacher, None, augment_settings()).jobs(0.2, store), store


def hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def left_over(folder: Path) -> list[str]:
    """Files and folders that are no product."""
    return [path.name for path in folder.rglob("*") if path.name.startswith(".partial")]


def damage_one(store: Store, key: Key, damage: str) -> None:
    shard, receipt = shard_path(store, key), store.folder_of(key) / RECEIPT
    content = bytearray(shard.read_bytes())
    shard.unlink()  # the published file is the same one by hard link
    match damage:
        case "flipped byte":
            content[len(content) // 2] ^= 1
            shard.write_bytes(content)
        case "cut off":
            shard.write_bytes(content[:-1])
        case "no receipt":
            shard.write_bytes(content)
            receipt.unlink()
        case "receipt cut off":
            shard.write_bytes(content)
            receipt.write_bytes(receipt.read_bytes()[:40])


@pytest.mark.parametrize("damage", ["flipped byte", "cut off", "deleted", "no receipt", "receipt cut off"])
def test_a_damaged_shard_is_computed_again_and_reported(
    scores: Path, teacher: Path, tmp_path: Path, computed: list[str], damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = run_in(tmp_path, scores, teacher)
    before, entry = hashes(tmp_path / "shards"), manifest.shards[-1]
    damage_one(Store(tmp_path / "store"), entry.receipt.key, damage)
    computed.clear()
    capsys.readouterr()
    run_in(tmp_path, scores, teacher)
    name = f"variant {entry.variant}, partition {entry.partition}"
    assert computed == [name]
    lines = capsys.readouterr().out
    assert f"augment tiny: damaged in the store, computed again: {name}\n" in lines
    count = len(manifest.shards)
    assert f"augment tiny: {count} shards, {count - 1} in the store, 1 to compute" in lines
    assert hashes(tmp_path / "shards") == before


def test_stock_tells_missing_from_damaged(scores: Path, teacher: Path, tmp_path: Path) -> None:
    manifest = run_in(tmp_path, scores, teacher)
    jobs, store = jobs_in(tmp_path, scores, teacher)
    shard_path(store, jobs[1].key).unlink()
    store.remove(key_hash(jobs[3].key))
    stock = take_stock(jobs, store)
    assert (stock.missing, stock.damaged) == ([1, 3], [jobs[1].name])
    whole = [entry.receipt for entry in manifest.shards]
    assert stock.receipts == [None if number in (1, 3) else receipt for number, receipt in enumerate(whole)]


class Backwards:
    """Workers that finish the last job first and have something to say of one."""

    def __init__(self, receipts: Sequence[Receipt], jobs: Sequence[VariantJob]) -> None:
        self._receipts = {job.name: receipt for job, receipt in zip(jobs, receipts, strict=True)}
        self.given: list[str] = []

    def __enter__(self) -> "Backwards":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def run(self, jobs: Sequence[Any]) -> Iterator[tuple[Any, Done]]:
        self.given += [job.name for job in jobs]
        for job in reversed(jobs):
            yield job, Done(self._receipts[job.name], ("memory ran out",) if job.partition == 2 else ())


def test_receipts_stand_in_the_order_of_the_jobs_whoever_finishes_first(
    scores: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    receipts = [entry.receipt for entry in run_in(tmp_path, scores, teacher).shards]
    jobs, store = jobs_in(tmp_path, scores, teacher)
    for number in (0, 2, 3):
        store.remove(key_hash(jobs[number].key))
    capsys.readouterr()
    workers = Backwards(receipts, jobs)
    assert finish("augment tiny", jobs, take_stock(jobs, store), workers) == receipts
    assert workers.given == [jobs[number].name for number in (0, 2, 3)]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"augment tiny: {len(jobs)} shards, {len(jobs) - 3} in the store, 3 to compute"
    assert lines[1] == "variant 1, partition 2: memory ran out"
    assert lines[2].startswith("augment tiny: 3/3 shards, ")
    assert finish("again", jobs[4:5], take_stock(jobs[4:5], store), Backwards([], [])) == receipts[4:5], (
        "no worker is asked for nothing"
    )


def test_the_manifest_lists_every_shard_with_its_place(scores: Path, teacher: Path, tmp_path: Path) -> None:
    receipts = [entry.receipt for entry in run_in(tmp_path, scores, teacher).shards]
    jobs, _ = jobs_in(tmp_path, scores, teacher)
    key, task = jobs[0].shared_key, Shards(scores).manifest.task
    manifest = manifest_of(task, teacher, key, 2, None, {"found": 1}, jobs, receipts)
    assert [(e.file, e.split, e.variant, e.partition, e.receipt.sha256) for e in manifest.shards] == [
        (f"train-variant-{job.variant}-{job.partition:05d}.arrow", "train", job.variant, job.partition, receipt.sha256)
        for job, receipt in zip(jobs, receipts, strict=True)
    ]
    assert (manifest.content, manifest.token_types, manifest.pad_token_id, manifest.variants) == ("perturbations", True, 0, 2)
    assert (manifest.key, manifest.task, manifest.details) == (key, task, {"found": 1})
    with pytest.raises(ValueError, match="shorter"):
        manifest_of(task, teacher, key, 2, None, {}, jobs, receipts[:-1])


def test_tampering_with_what_was_published_reaches_no_later_run(scores: Path, teacher: Path, tmp_path: Path) -> None:
    manifest = run_in(tmp_path, scores, teacher)
    before = hashes(tmp_path / "shards")
    target = tmp_path / "shards" / manifest.shards[0].file
    content = bytearray(target.read_bytes())
    content[-100] ^= 1
    target.write_bytes(content)
    with pytest.raises(ShardMismatch, match=manifest.shards[0].file):
        Shards(tmp_path / "shards")
    run_in(tmp_path, scores, teacher)
    assert hashes(tmp_path / "shards") == before
    Shards(tmp_path / "shards")


def test_a_set_is_published_as_a_whole_and_nothing_of_the_one_before_stays(scores: Path, teacher: Path, tmp_path: Path) -> None:
    run_in(tmp_path, scores, teacher, variants=3)
    (tmp_path / "shards" / "mine").touch()
    manifest = run_in(tmp_path, scores, teacher, variants=1)
    assert set(hashes(tmp_path / "shards")) == {"manifest.json", *(entry.file for entry in manifest.shards)}


@pytest.mark.parametrize("place", ["below a file", "a file"])
def test_a_folder_that_cannot_be_written_is_a_sentence_and_the_store_keeps_all(
    scores: Path, teacher: Path, tmp_path: Path, place: str
) -> None:
    manifest = run_in(tmp_path, scores, teacher)
    file = tmp_path / "occupied"
    file.write_text("mine")
    out = file / "shards" if place == "below a file" else file
    with pytest.raises(PipelineError, match=rf"^{out} cannot be written: .+; all shards are kept in the store$"):
        publish(out, Store(tmp_path / "store"), manifest)
    assert file.read_text() == "mine"
    assert left_over(tmp_path) == []
    assert take_stock(*jobs_in(tmp_path, scores, teacher)).missing == []


def test_a_disk_that_is_full_half_way_leaves_what_was_published(
    scores: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_in(tmp_path, scores, teacher)
    before, placed = hashes(tmp_path / "shards"), []

    def no_links(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    def full(source: Path, target: Path) -> None:
        placed.append(target)
        if len(placed) == 3:
            Path(target).write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        Path(target).write_bytes(Path(source).read_bytes())

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", no_links)
        patch.setattr(shutil, "copyfile", full)
        sentence = rf"^{tmp_path}/shards cannot be written: No space left on device; all shards are kept in the store$"
        with pytest.raises(PipelineError, match=sentence):
            run_in(tmp_path, scores, teacher, seed=2)
    assert (hashes(tmp_path / "shards"), left_over(tmp_path)) == (before, [])


def test_a_failure_leaves_the_published_set_as_it_was_and_keeps_what_was_finished(
    scores: Path, teacher: Path, tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = run_in(tmp_path, scores, teacher)
    before, run = hashes(tmp_path / "shards"), VariantWork.run

    def stumble(work: VariantWork, models: ModelSet, store: Store) -> Done:
        if len(computed) == 3:
            raise PipelineError("stumbled")
        return run(work, models, store)

    names = [f"variant {entry.variant}, partition {entry.partition}" for entry in manifest.shards]
    computed.clear()
    with monkeypatch.context() as patch:
        patch.setattr(VariantWork, "run", stumble)
        with pytest.raises(PipelineError, match=rf"^{names[3]} failed: stumbled$"):
            run_in(tmp_path, scores, teacher, seed=2)
    assert (hashes(tmp_path / "shards"), left_over(tmp_path), computed) == (before, [], names[:3])
    computed.clear()
    run_in(tmp_path, scores, teacher, seed=2)
    assert computed == names[3:]


@pytest.mark.parametrize("moment", ["before", "within", "receipt"])
def test_a_full_store_is_a_sentence_that_names_the_shard_and_the_next_run_goes_on(
    scores: Path, teacher: Path, tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    write_shard = jobs_code.write_shard

    def full(*arguments: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full_at_the_end(*arguments: Any) -> Any:
        with monkeypatch.context() as inner:
            inner.setattr(os, "fsync", full)
            return write_shard(*arguments)

    with monkeypatch.context() as patch:
        if moment == "receipt":
            patch.setattr("pipeline.store.store.complete", lambda folder: (folder / SHARD_FILE).exists() and full())
        else:
            patch.setattr(jobs_code, "write_shard", full if moment == "before" else full_at_the_end)
        sentence = rf"^variant 1, partition 0 failed: the store {tmp_path}/store does not take it: No space left on device$"
        with pytest.raises(PipelineError, match=sentence):
            run_in(tmp_path, scores, teacher)
    assert left_over(tmp_path) == []
    assert shards_in(tmp_path / "store") == []
    assert not (tmp_path / "shards").exists()
    assert len(run_in(tmp_path, scores, teacher).shards) == len(computed)
