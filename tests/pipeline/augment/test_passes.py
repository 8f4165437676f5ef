import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from torch import Tensor

from pipeline.augment import passes, variants
from pipeline.augment.calibration import CalibrationJob
from pipeline.augment.jobs import Done, Job
from pipeline.augment.passes import SECONDS_BETWEEN_LINES, Counter, augment, publish, soft_label, take_stock
from pipeline.augment.plans import Augmentation
from pipeline.augment.teacher import FrozenModel
from pipeline.augment.workers import ThisProcess
from pipeline.config.errors import PipelineError
from pipeline.config.settings import AugmentSettings, InferenceSettings
from pipeline.shards.manifest import SHARD_FILE, Manifest, ShardEntry, ShardMismatch, put_shards
from pipeline.shards.reader import Shards
from pipeline.shards.writer import write_shard
from pipeline.store.keys import key_hash
from pipeline.store.store import RECEIPT, Store
from tests.running import unsynced
from tests.stored import shards_in, verified
from tests.world import augment_settings, make_task, runtime_at, save_prepared, save_teacher

ROWS = {"train": 60, "dev": 20, "test": 20}


def hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def left_over(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name.startswith(".partial")]


def name_of(entry: ShardEntry) -> str:
    return f"variant {entry.variant}, partition {entry.partition}"


def ids_of(folder: Path, split: str = "train", variant: int = 0) -> list[list[str]]:
    """The ids of every shard of a split and variant."""
    shards = Shards(folder)
    entries = [entry for entry in shards.manifest.of_split(split) if entry.variant == variant]  # type: ignore[arg-type]
    return [shards.rows_of(entry).column("example_id").to_pylist() for entry in entries]


@dataclass
class World:
    """Folders of one corpus, teacher and store; the jobs that ran, and the rows of every call of a model."""

    folder: Path
    prepared: Path
    teacher: Path
    jobs: list[Job] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)

    @property
    def soft_labels(self) -> Path:
        return self.folder / "soft_labels"

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")

    def manifest(self) -> Manifest:
        return Shards(self.shards).manifest

    def soft_label(self, rows_per_shard: int = 8, batch_size: int = 8) -> Manifest:
        settings = InferenceSettings(rows_per_shard=rows_per_shard, batch_size=batch_size, precision="float32")
        return soft_label(self.prepared, self.teacher, settings, runtime_at(self.folder), self.soft_labels)

    def augment(self, settings: AugmentSettings | None = None) -> Manifest:
        plan = Augmentation.of(self.soft_labels, self.teacher, settings or augment_settings())
        return augment(plan, runtime_at(self.folder), self.shards)

    def computed(self) -> list[str]:
        """The names of the shards computed since the last call."""
        names = [job.name for job in self.jobs if not isinstance(job, CalibrationJob)]
        self.jobs.clear()
        self.rows.clear()
        return names


@pytest.fixture
def world(tmp_path: Path, prepared: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """An empty store and this process as worker; ``test_workers`` shows that Ray gives the same bytes."""
    made = World(tmp_path, prepared, teacher)
    run, logits_at = ThisProcess.run, FrozenModel.logits_at

    def noted(workers: ThisProcess, jobs: Sequence[Any]) -> Iterator[tuple[Any, Done]]:
        for job, done in run(workers, jobs):
            made.jobs.append(job)
            yield job, done

    def counted(model: FrozenModel, batch: dict[str, Tensor], embeddings: Tensor) -> Tensor:
        made.rows.append(len(embeddings))
        return logits_at(model, batch, embeddings)

    monkeypatch.setattr(ThisProcess, "run", noted)
    monkeypatch.setattr(FrozenModel, "logits_at", counted)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # takes half the time
    return made


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory, prepared: Path, teacher: Path) -> World:
    """Both passes in shards of about 16 rows; read only."""
    made = World(tmp_path_factory.mktemp("once"), prepared, teacher)
    with unsynced():
        made.soft_label(rows_per_shard=16)
        made.augment()
    return made


@pytest.fixture
def finished(once: World, world: World) -> World:
    """A world in which both passes have run."""
    shutil.copytree(once.folder, world.folder, dirs_exist_ok=True)
    return world


def save_changed(world: World, keep: slice, **changed: Any) -> None:
    """Use a part of the training rows, or change the text or label of one."""
    whole = pq.read_table(world.prepared / "train.parquet")
    table = whole.to_pylist()
    for name, value in changed.items():
        table[30][name] = value
    folder = world.folder / f"prepared {len(list(world.folder.iterdir()))}"
    world.prepared = Path(shutil.copytree(world.prepared, folder))
    pq.write_table(whole.from_pylist(table[keep], schema=whole.schema), world.prepared / "train.parquet")


def test_every_example_of_every_split_is_labelled_once_in_the_order_of_the_corpus(world: World) -> None:
    manifest = world.soft_label()
    assert sum(world.rows) == sum(ROWS.values())
    for split in ROWS:
        ids = [name for shard in ids_of(world.soft_labels, split) for name in shard]
        assert ids == pq.read_table(world.prepared / f"{split}.parquet")["id"].to_pylist()
    assert len(manifest.of_split("train")) > 3
    assert {entry.variant for entry in manifest.shards} == {0}
    assert {file.name for file in world.soft_labels.iterdir()} == {"manifest.json", *(e.file for e in manifest.shards)}


def test_every_variant_holds_every_training_example_with_its_soft_label_and_label(finished: World) -> None:
    manifest = finished.manifest()
    soft_labels, shards = Shards(finished.soft_labels).rows("train", 0), Shards(finished.shards)
    assert {entry.split for entry in manifest.shards} == {"train"}
    assert {file.name for file in finished.shards.iterdir()} == {"manifest.json", *(e.file for e in manifest.shards)}
    deltas = []
    for variant in (1, 2):
        rows = shards.rows("train", variant)
        for column in ("example_id", "input_ids", "token_type_ids", "label", "teacher_logits"):
            assert rows.column(column).to_pylist() == soft_labels.column(column).to_pylist()
        assert set(rows.column("variant").to_pylist()) == {variant}
        deltas.append(rows.column("delta").to_pylist())
        assert ids_of(finished.shards, variant=variant) == ids_of(finished.soft_labels)
    assert not set(deltas[0]) & set(deltas[1])


def test_epsilon_is_found_from_an_effect_and_is_part_of_every_key(world: World) -> None:
    world.soft_label()
    manifest = world.augment(augment_settings({"epsilon": {"divergence": 0.05}}, calibration_rows=64))
    found = manifest.details["calibration"]
    assert found["divergence"] == pytest.approx(0.05, abs=0.01)
    used = {entry.receipt.key["perturbation"]["epsilon"] for entry in manifest.shards}
    assert used == {found["epsilon"]} == {manifest.details["epsilon"]}
    world.computed()
    again = world.augment(augment_settings({"epsilon": found["epsilon"]}))
    assert [entry.receipt for entry in again.shards] == [entry.receipt for entry in manifest.shards]
    assert world.computed() == []


def test_the_calibration_sample_does_not_depend_on_the_order_of_the_corpus(world: World) -> None:
    samples = []
    for order in (slice(None), slice(None, None, -1)):
        save_changed(world, order)
        world.soft_label()
        found = world.augment(augment_settings(calibration_rows=16)).details["calibration"]
        (job,) = [job for job in world.jobs if isinstance(job, CalibrationJob)]
        world.computed()
        sample = set(job.labelled.inputs.example_ids)
        rows = Shards(world.shards).rows("train", 1)
        held = pc.is_in(rows.column("example_id"), pa.array(sorted(sample)))
        assert found["rows"] == len(sample) == 16
        assert found["divergence"] == pytest.approx(pc.mean(rows.column("divergence").filter(held)).as_py(), rel=1e-3)
        samples.append(sample)
    assert samples[0] == samples[1]


def test_more_variants_compute_only_the_new_one_and_fewer_compute_nothing(world: World) -> None:
    world.soft_label()
    world.augment(augment_settings(variants=1))
    one = hashes(world.shards)
    world.computed()
    world.augment()
    two = hashes(world.shards)
    assert sum(world.rows) == 2 * ROWS["train"], "one step and one label for every row of one variant"
    assert sorted(world.computed()) == [f"variant 2, partition {number}" for number in range(len(one) - 1)]
    kept = {name: of for name, of in one.items() if name != "manifest.json"}
    assert kept == {name: of for name, of in two.items() if "variant-1" in name}
    world.augment(augment_settings(variants=1))
    assert (world.rows, world.computed()) == ([], [])
    assert hashes(world.shards) == one


def test_appended_rows_compute_only_the_partitions_that_gained_rows(world: World) -> None:
    whole = world.prepared
    save_changed(world, slice(0, 50))
    world.soft_label()
    world.augment()
    before = ids_of(world.soft_labels)
    world.computed()
    world.prepared = whole
    world.soft_label()
    after = ids_of(world.soft_labels)
    new = [number for number, ids in enumerate(after) if ids not in before]
    rows = sum(len(after[number]) for number in new)
    assert 0 < len(new) < len(after) / 2
    assert world.computed() == [f"soft labels of train, partition {number}" for number in new]
    world.augment()
    searched = sum(2 * len(job.labelled.inputs) for job in world.jobs if isinstance(job, CalibrationJob))
    assert sum(world.rows) - searched == 2 * 2 * rows
    assert world.computed() == [f"variant {variant}, partition {number}" for variant in (1, 2) for number in new]


def test_a_changed_text_or_label_computes_only_its_partition_again(world: World) -> None:
    label = pq.read_table(world.prepared / "train.parquet")["label"][30].as_py()
    world.soft_label()
    (number,) = [number for number, ids in enumerate(ids_of(world.soft_labels)) if "train00030" in ids]
    changes: list[dict[str, Any]] = [{"label": label}, {"text_a": "word1 word2"}, {"label": 1 - label}, {"label": None}]
    for changed in changes:
        world.computed()
        save_changed(world, slice(None), **changed)
        world.soft_label()
        assert world.computed() == ([] if changed == {"label": label} else [f"soft labels of train, partition {number}"])


def test_equal_keys_mean_equal_bytes_even_if_the_soft_labels_were_batched_differently(world: World, tmp_path: Path) -> None:
    runs = []
    for batch_size in (2, 16):
        other = World(tmp_path / f"batches of {batch_size}", world.prepared, world.teacher)
        other.soft_label(batch_size=batch_size)
        runs.append([entry.receipt for entry in other.augment(augment_settings(variants=1)).shards])
    assert [one.key for one, two in zip(*runs, strict=True) if one.key == two.key and one.sha256 != two.sha256] == []


@pytest.mark.parametrize(("kind", "pair"), [("classification", True), ("regression", False)])
def test_pairs_and_regressions_go_through_both_passes(tmp_path: Path, world: World, kind: str, pair: bool) -> None:
    task = make_task(kind, pair)
    world.prepared = save_prepared(tmp_path / "prepared", task, {"train": 20, "dev": 5, "test": 5})
    world.teacher = save_teacher(tmp_path / "teacher", task)
    world.soft_label()
    world.augment(augment_settings(variants=2, recipes=[["perturb"], ["swap", "mask"]]))
    soft_labels, shards = Shards(world.soft_labels).rows("train", 0), Shards(world.shards)
    labels = pq.read_table(world.prepared / "train.parquet")["label"].to_pylist()
    for variant in (1, 2):
        rows = shards.rows("train", variant)
        assert soft_labels.column("label").to_pylist() == rows.column("label").to_pylist() == labels
        assert min(rows.column("divergence").to_pylist()) >= -1e-6
        assert any(1 in types for types in rows.column("token_type_ids").to_pylist()) == pair
    assert soft_labels.matrix("teacher_logits").shape == (20, task.outputs)


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.unlink()
    if how == "flipped byte":
        path.write_bytes(content[:-700] + bytes([content[-700] ^ 1]) + content[-699:])
    elif how == "cut off":
        path.write_bytes(content[:-1] if path.name == SHARD_FILE else content[:40])


@pytest.mark.parametrize(
    ("file", "how"),
    [*((SHARD_FILE, how) for how in ("flipped byte", "cut off", "deleted")), (RECEIPT, "deleted"), (RECEIPT, "cut off")],
)
def test_a_damaged_shard_is_computed_again(finished: World, file: str, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    before, entries = hashes(finished.shards), finished.manifest().shards
    damage(finished.store.folder_of(entries[-1].receipt.key) / file, how)
    finished.augment()
    name = name_of(entries[-1])
    assert finished.computed() == [name]
    lines = capsys.readouterr().out
    assert f"augment tiny: damaged in the store, computed again: {name}\n" in lines
    assert f"augment tiny: {len(entries)} shards, {len(entries) - 1} in the store, 1 to compute" in lines
    assert hashes(finished.shards) == before


def test_the_manifest_keeps_the_order_of_the_jobs_whichever_finishes_first(
    finished: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, run = finished.manifest(), ThisProcess.run

    def backwards(workers: ThisProcess, jobs: Sequence[Any]) -> Iterator[tuple[Any, Done]]:
        for job, done in reversed(list(run(workers, jobs))):
            yield job, Done(done.result, ("memory ran out",) if job.partition == 2 else ())

    for entry in (before.shards[number] for number in (0, 2, 3)):
        finished.store.remove(key_hash(entry.receipt.key))
    monkeypatch.setattr(ThisProcess, "run", backwards)
    assert finished.augment() == finished.manifest() == before
    lines = capsys.readouterr().out
    assert f"augment tiny: {len(before.shards)} shards, {len(before.shards) - 3} in the store, 3 to compute\n" in lines
    assert "\nvariant 1, partition 2: memory ran out\n" in lines


def test_a_published_shard_that_is_overwritten_changes_no_later_run(finished: World) -> None:
    finished.augment()  # links the published files to the store's
    before, target = hashes(finished.shards), finished.shards / finished.manifest().shards[0].file
    content = target.read_bytes()
    target.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    (finished.shards / "mine").touch()
    with pytest.raises(ShardMismatch, match=target.name):
        verified(finished.shards)
    finished.augment()
    assert hashes(finished.shards) == before, "a set is published as a whole"


@pytest.mark.parametrize("place", ["occupied/shards", "occupied"])
def test_a_folder_that_cannot_be_written_is_an_error_and_the_store_keeps_all(finished: World, place: str) -> None:
    (finished.folder / "occupied").write_text("mine")
    out = finished.folder / place
    with pytest.raises(PipelineError, match=rf"^{out} cannot be written: .+; all shards are kept in the store$"):
        publish(out, finished.store, finished.manifest())
    assert (finished.folder / "occupied").read_text() == "mine"
    assert left_over(finished.folder) == []
    jobs = Augmentation.of(finished.soft_labels, finished.teacher, augment_settings()).jobs(0.2)
    assert take_stock("augment tiny", jobs, finished.store) == [entry.receipt for entry in finished.manifest().shards]


def full(*arguments: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_previously_published_set(finished: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before, placed = hashes(finished.shards), []

    def copy(source: Path, target: Path) -> None:
        placed.append(target)
        Path(target).write_bytes(b"half" if len(placed) == 3 else Path(source).read_bytes())
        if len(placed) == 3:
            full()

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(shutil, "copyfile", copy)
    sentence = rf"^{finished.shards} cannot be written: No space left on device; all shards are kept"
    with pytest.raises(PipelineError, match=sentence):
        finished.augment(augment_settings(seed=2))
    assert len(placed) == 3
    assert (hashes(finished.shards), left_over(finished.folder)) == (before, [])


def test_a_failed_run_leaves_the_published_set_and_is_resumed(finished: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before, write = hashes(finished.shards), variants.write_variant

    def stumble(*arguments: Any) -> Done:
        if len([job for job in finished.jobs if not isinstance(job, CalibrationJob)]) == 3:
            raise PipelineError("stumbled")
        return write(*arguments)

    names = [name_of(entry) for entry in finished.manifest().shards]
    with monkeypatch.context() as patch:
        patch.setattr(variants, "write_variant", stumble)
        with pytest.raises(PipelineError, match=rf"^{names[3]} failed: stumbled$"):
            finished.augment(augment_settings(seed=2))
    assert (hashes(finished.shards), left_over(finished.folder), finished.computed()) == (before, [], names[:3])
    finished.augment(augment_settings(seed=2))
    assert finished.computed() == names[3:]


@pytest.mark.parametrize("moment", ["within", "receipt"])
def test_a_full_store_is_an_error_with_the_shard_and_the_next_run_resumes(
    once: World, world: World, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    shutil.copytree(once.soft_labels, world.soft_labels)
    put_shards(world.store, world.soft_labels, Manifest.read(world.soft_labels).shards)
    before = shards_in(world.store.folder)

    def full_at_the_end(*arguments: Any) -> Any:
        with monkeypatch.context() as inner:
            inner.setattr(os, "fsync", full)
            return write_shard(*arguments)

    with monkeypatch.context() as patch:
        if moment == "receipt":
            patch.setattr("pipeline.store.store.complete", lambda folder: (folder / SHARD_FILE).exists() and full())
        else:
            patch.setattr(variants, "write_shard", full_at_the_end)
        sentence = rf"^variant 1, partition 0 failed: cannot write to the store {world.store.folder}: No space left on device$"
        with pytest.raises(PipelineError, match=sentence):
            world.augment()
    assert (left_over(world.folder), shards_in(world.store.folder)) == ([], before)
    assert not world.shards.exists()
    assert world.computed() == []
    assert [name_of(entry) for entry in world.augment().shards] == world.computed()


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the clock forward."""
    clock = [1000.0]
    monkeypatch.setattr(passes, "time", SimpleNamespace(monotonic=lambda: sum(clock)))
    return clock.append


@pytest.mark.parametrize(
    ("shards", "seconds", "rows", "wanted"),
    [
        (3, 2, 1000, "x: 3/3 shards, 500 rows/s, done in 6 s"),
        (1, 0, 0, "x: 1/1 shards, 0 rows/s, done in 0 s"),
        (1, 1, 1_234_567, "x: 1/1 shards, 1,234,567 rows/s, done in 1 s"),
    ],
)
def test_short_work_prints_one_line_at_its_end(
    wait: Callable[[float], None], capsys: pytest.CaptureFixture[str], shards: int, seconds: int, rows: int, wanted: str
) -> None:
    counter = Counter("x", shards)
    for _ in range(shards):
        wait(seconds)
        counter.advance(rows)
    assert capsys.readouterr().out.splitlines() == [wanted]


def test_long_work_prints_progress_now_and_then(wait: Callable[[float], None], capsys: pytest.CaptureFixture[str]) -> None:
    counter = Counter("x", 40)
    for _ in range(10):
        wait(SECONDS_BETWEEN_LINES / 4)
        counter.advance(300)
    assert capsys.readouterr().out.splitlines() == [
        "x: 4/40 shards, 120 rows/s, 90 s left",
        "x: 8/40 shards, 120 rows/s, 80 s left",
    ]
