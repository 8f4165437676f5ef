import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from torch import Tensor

from pipeline.augment.calibration import CalibrationJob
from pipeline.augment.jobs import Done, Job
from pipeline.augment.passes import augment, score
from pipeline.augment.recipes import AugmentSettings, ScoreSettings
from pipeline.augment.teacher import FrozenModel
from pipeline.augment.workers import ThisProcess
from pipeline.shards.manifest import Manifest
from pipeline.shards.reader import Shards
from tests.world import augment_settings, make_task, runtime_at, save_prepared, save_teacher

ROWS = {"train": 60, "dev": 20, "test": 20}


def settings_of(perturbation: dict[str, Any] | None = None, **changed: Any) -> AugmentSettings:
    return augment_settings({"radius": 0.3} | (perturbation or {}), **{"calibration_rows": 64, "batch_rows": 8} | changed)


def hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def names_of(folder: Path, split: str = "train", variant: int = 0) -> list[list[str]]:
    """The ids of every shard of a split and variant."""
    shards = Shards(folder)
    entries = [entry for entry in shards.manifest.of_split(split) if entry.variant == variant]  # type: ignore[arg-type]
    return [shards.rows_of(entry).column("example_id").to_pylist() for entry in entries]


@dataclass
class World:
    """Folders of one corpus, teacher and store; the jobs, and the rows of every pass, since somebody last looked."""

    folder: Path
    prepared: Path
    teacher: Path
    jobs: list[Job] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)

    @property
    def scores(self) -> Path:
        return self.folder / "scores"

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    def score(self, rows_per_shard: int = 8, batch_rows: int = 8) -> Manifest:
        settings = ScoreSettings(rows_per_shard=rows_per_shard, batch_rows=batch_rows, precision="float32")
        return score(self.prepared, self.teacher, settings, runtime_at(self.folder), self.scores)

    def augment(self, settings: AugmentSettings | None = None) -> Manifest:
        return augment(self.scores, self.teacher, None, settings or settings_of(), runtime_at(self.folder), self.shards)

    def computed(self) -> list[str]:
        names = [job.name for job in self.jobs if not isinstance(job, CalibrationJob)]
        self.jobs.clear()
        self.rows.clear()
        return names

    def passes(self) -> tuple[int, int]:
        """How often a model was called, and with how many rows in all."""
        counted = len(self.rows), sum(self.rows)
        self.computed()
        return counted


@pytest.fixture
def world(tmp_path: Path, prepared: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world of its own store, whose jobs are done in this process; ``test_workers`` shows that Ray gives the same bytes."""
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
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # nothing here loses power, and it takes half the time
    return made


def save_changed(world: World, keep: slice, **changed: Any) -> None:
    """The corpus with part of its training rows, or with the text or label of one changed."""
    whole = pq.read_table(world.prepared / "train.parquet")
    table = whole.to_pylist()
    for name, value in changed.items():
        table[30][name] = value
    folder = world.folder / f"prepared {len(list(world.folder.iterdir()))}"
    world.prepared = Path(shutil.copytree(world.prepared, folder))
    pq.write_table(whole.from_pylist(table[keep], schema=whole.schema), world.prepared / "train.parquet")


def test_every_example_of_every_split_is_scored_once_in_the_order_of_the_corpus(world: World) -> None:
    manifest = world.score()
    assert world.passes()[1] == sum(ROWS.values())
    for split in ROWS:
        ids = [name for shard in names_of(world.scores, split) for name in shard]
        assert ids == pq.read_table(world.prepared / f"{split}.parquet")["id"].to_pylist()
    assert len(manifest.of_split("train")) > 3
    assert {entry.variant for entry in manifest.shards} == {0}
    assert {file.name for file in world.scores.iterdir()} == {"manifest.json", *(e.file for e in manifest.shards)}


def test_every_variant_holds_every_training_example_with_its_score_and_label(world: World) -> None:
    world.score()
    manifest = world.augment()
    scores, shards = Shards(world.scores).rows("train", 0), Shards(world.shards)
    assert {entry.split for entry in manifest.shards} == {"train"}
    assert {file.name for file in world.shards.iterdir()} == {"manifest.json", *(e.file for e in manifest.shards)}
    deltas = []
    for variant in (1, 2):
        rows = shards.rows("train", variant)
        for column in ("example_id", "input_ids", "token_type_ids", "label", "teacher_logits"):
            assert rows.column(column).to_pylist() == scores.column(column).to_pylist()
        assert set(rows.column("variant").to_pylist()) == {variant}
        deltas.append(rows.column("delta").to_pylist())
        assert names_of(world.shards, variant=variant) == names_of(world.scores)
    assert not set(deltas[0]) & set(deltas[1])


def test_the_radius_is_found_from_an_effect_and_stands_in_every_key(world: World) -> None:
    world.score()
    manifest = world.augment(settings_of({"radius": {"divergence": 0.05}}))
    found = manifest.details["calibration"]
    assert found["divergence"] == pytest.approx(0.05, abs=0.01)
    radii = {entry.receipt.key["perturbation"]["radius"] for entry in manifest.shards}
    assert radii == {found["radius"]} == {manifest.details["radius"]}
    world.computed()
    again = world.augment(settings_of({"radius": found["radius"]}))
    assert [entry.receipt for entry in again.shards] == [entry.receipt for entry in manifest.shards]
    assert world.computed() == []


def test_the_radius_is_measured_on_a_sample_that_no_order_of_the_corpus_chooses(world: World) -> None:
    samples = []
    for order in (slice(None), slice(None, None, -1)):
        save_changed(world, order)
        world.score()
        found = world.augment(settings_of(calibration_rows=16)).details["calibration"]
        (job,) = [job for job in world.jobs if isinstance(job, CalibrationJob)]
        world.computed()
        sample = set(job.scored.inputs.example_ids)
        rows = Shards(world.shards).rows("train", 1)
        held = pc.is_in(rows.column("example_id"), pa.array(sorted(sample)))
        assert found["rows"] == len(sample) == 16
        assert found["divergence"] == pytest.approx(pc.mean(rows.column("divergence").filter(held)).as_py(), rel=1e-3)
        assert found["flips"] == pc.mean(rows.column("flipped").filter(held)).as_py()
        samples.append(sample)
    assert samples[0] == samples[1]


def test_more_variants_compute_the_new_one_only_and_fewer_compute_nothing(world: World) -> None:
    world.score()
    world.augment(settings_of(variants=1))
    one = hashes(world.shards)
    world.computed()
    world.augment()
    two = hashes(world.shards)
    assert sorted(name.name for name in world.jobs) == [f"variant 2, partition {number}" for number in range(len(one) - 1)]
    assert world.passes()[1] == 2 * ROWS["train"], "one step and one label for every row of one variant"
    kept = {name: of for name, of in one.items() if name != "manifest.json"}
    assert kept == {name: of for name, of in two.items() if "variant-1" in name}
    world.augment(settings_of(variants=1))
    assert world.passes() == (0, 0)
    assert hashes(world.shards) == one


def test_appended_rows_compute_only_the_partitions_that_gained_rows(world: World) -> None:
    whole = world.prepared
    save_changed(world, slice(0, 50))
    world.score()
    world.augment(settings_of(calibration_rows=8))
    before = names_of(world.scores)
    world.passes()
    world.prepared = whole
    world.score()
    after = names_of(world.scores)
    new = [number for number, ids in enumerate(after) if ids not in before]
    rows = sum(len(after[number]) for number in new)
    assert 0 < len(new) < len(after) / 2
    assert world.computed() == [f"scores of train, partition {number}" for number in new]
    world.augment(settings_of(calibration_rows=8))
    searched = sum(2 * len(job.scored.inputs) for job in world.jobs if isinstance(job, CalibrationJob))
    assert sum(world.rows) - searched == 2 * 2 * rows
    assert world.computed() == [f"variant {variant}, partition {number}" for variant in (1, 2) for number in new]


def test_a_changed_text_or_label_computes_its_own_partition_again(world: World) -> None:
    label = pq.read_table(world.prepared / "train.parquet")["label"][30].as_py()
    world.score()
    (number,) = [number for number, ids in enumerate(names_of(world.scores)) if "train00030" in ids]
    changes: list[dict[str, Any]] = [{"label": label}, {"text_a": "word1 word2"}, {"label": 1 - label}, {"label": None}]
    for changed in changes:
        world.computed()
        save_changed(world, slice(None), **changed)
        world.score()
        assert world.computed() == ([] if changed == {"label": label} else [f"scores of train, partition {number}"])


def test_equal_keys_mean_equal_bytes_also_where_the_scores_were_batched_otherwise(world: World, tmp_path: Path) -> None:
    runs = []
    for batch_rows in (2, 16):
        other = World(tmp_path / f"batches of {batch_rows}", world.prepared, world.teacher)
        other.score(batch_rows=batch_rows)
        runs.append([entry.receipt for entry in other.augment(settings_of(variants=1)).shards])
    assert [one.key for one, two in zip(*runs, strict=True) if one.key == two.key and one.sha256 != two.sha256] == []


@pytest.mark.parametrize(("kind", "pair"), [("classification", True), ("regression", False)])
def test_pairs_and_regressions_go_through_both_passes(tmp_path: Path, world: World, kind: str, pair: bool) -> None:
    task = make_task(kind, pair)
    world.prepared = save_prepared(tmp_path / "prepared", task, {"train": 20, "dev": 5, "test": 5})
    world.teacher = save_teacher(tmp_path / "teacher", task)
    world.score()
    world.augment(settings_of(variants=3, recipes=[["perturb"], ["swap", "mask"], ["mix"]]))
    scores, shards = Shards(world.scores).rows("train", 0), Shards(world.shards)
    labels = pq.read_table(world.prepared / "train.parquet")["label"].to_pylist()
    for variant in (1, 2, 3):
        rows = shards.rows("train", variant)
        assert scores.column("label").to_pylist() == rows.column("label").to_pylist() == labels
        assert min(rows.column("divergence").to_pylist()) >= -1e-6
        assert any(1 in types for types in rows.column("token_type_ids").to_pylist()) == pair
    assert scores.matrix("teacher_logits").shape == (20, task.outputs)
