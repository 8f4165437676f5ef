import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import safetensors.torch

from pipeline.augment import cluster, passes
from pipeline.augment.calibration import CalibrationJob
from pipeline.augment.cluster import RuntimeSettings
from pipeline.augment.jobs import Job, PerturbJob, ScoreJob
from pipeline.augment.passes import AugmentSettings, ScoreSettings, augment, score
from pipeline.augment.teacher import FrozenTeacher
from pipeline.errors import PipelineError
from pipeline.shards.manifest import Manifest, ShardMismatch, manifest_hash
from pipeline.shards.reader import Shards
from tests.world import make_task, save_prepared, save_teacher

ROWS = {"train": 60, "dev": 20, "test": 20}
SETTINGS: dict[str, Any] = {
    "variants": 2,
    "perturbation": {
        "objective": "divergence",
        "norm": "l2",
        "radius": 0.3,
        "steps": 1,
        "step_size": 1.0,
        "start": 0.5,
        "special_tokens": False,
    },
    "codec": "int8",
    "seed": 1,
    "calibration_rows": 64,
    "batch_rows": 4,
}


def settings_of(perturbation: dict[str, Any] | None = None, **changed: Any) -> AugmentSettings:
    search = SETTINGS["perturbation"] | (perturbation or {})
    return AugmentSettings.model_validate(SETTINGS | changed | {"perturbation": search})


def hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def names_of(folder: Path, split: str = "train", variant: int = 0) -> list[list[str]]:
    """The ids of every shard of a split and variant."""
    shards = Shards(folder)
    entries = [entry for entry in shards.manifest.of_split(split) if entry.variant == variant]  # type: ignore[arg-type]
    return [shards.rows_of(entry).column("example_id").to_pylist() for entry in entries]


@dataclass
class World:
    """Folders of one corpus, teacher and store, and the jobs that were run since somebody last looked."""

    folder: Path
    prepared: Path
    teacher: Path
    workers: int = 1
    jobs: list[Job] = field(default_factory=list)

    @property
    def runtime(self) -> RuntimeSettings:
        return RuntimeSettings(ray_address=None, workers=self.workers, store=str(self.folder / "store"))

    @property
    def scores(self) -> Path:
        return self.folder / "scores"

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    def score(self, rows_per_shard: int = 8, batch_rows: int = 4) -> Manifest:
        settings = ScoreSettings(rows_per_shard=rows_per_shard, batch_rows=batch_rows)
        return score(self.prepared, self.teacher, settings, self.runtime, self.scores)

    def augment(self, settings: AugmentSettings | None = None) -> Manifest:
        return augment(self.scores, self.teacher, settings or settings_of(), self.runtime, self.shards)

    def computed(self) -> list[str]:
        names = [job.name for job in self.jobs]
        self.jobs.clear()
        return names


@pytest.fixture
def world(tmp_path: Path, prepared: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world of its own store, whose jobs run in this process; that Ray gives the same bytes is shown below."""
    made = World(tmp_path, prepared, teacher)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # nothing here loses power, and it takes half the time

    class InThisProcess:
        def __init__(self, folder: Path, runtime: RuntimeSettings) -> None:
            self.folder = folder

        def __enter__(self) -> "InThisProcess":
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Any]]:
            frozen = FrozenTeacher(self.folder)
            for job in reversed(jobs):
                made.jobs.append(job)
                yield job, job.run(frozen)

    monkeypatch.setattr(passes, "Cluster", InThisProcess)
    return made


def test_one_and_two_workers_and_none_give_equal_bytes_and_a_second_run_starts_no_ray(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    world.score()
    world.augment()
    monkeypatch.setattr(passes, "Cluster", cluster.Cluster)
    one, other = (World(world.folder / name, world.prepared, world.teacher, n) for n, name in ((1, "one"), (2, "two")))
    other.score()
    other.augment()
    augment(other.scores, one.teacher, settings_of(), one.runtime, one.shards)
    assert hashes(world.scores) == hashes(other.scores)
    assert hashes(world.shards) == hashes(other.shards) == hashes(one.shards)
    stored = {name: of for name, of in hashes(other.folder / "store").items() if name.endswith(".arrow")}
    assert sorted(stored.values()) == sorted(
        of for folder in (world.scores, world.shards) for name, of in hashes(folder).items() if name != "manifest.json"
    )

    def fail(runtime: RuntimeSettings) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(cluster, "_join_ray", fail)
    before = hashes(other.scores), hashes(other.shards)
    capsys.readouterr()
    scored, perturbed = other.score(), other.augment()
    assert (hashes(other.scores), hashes(other.shards)) == before
    lines = capsys.readouterr().out
    assert f"score tiny: {len(scored.shards)} shards, {len(scored.shards)} in the store, 0 to compute" in lines
    assert f"augment tiny: {len(perturbed.shards)} shards, {len(perturbed.shards)} in the store, 0 to compute" in lines


def test_every_example_of_every_split_is_scored_once_in_the_order_of_the_corpus(world: World) -> None:
    manifest = world.score()
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


def test_the_manifest_tells_what_was_found_on_the_way(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.score()
    manifest = world.augment(settings_of(codec="float16"))
    rows = Shards(world.shards).rows("train", 1)
    assert manifest.coding is not None
    assert (manifest.coding.codec, manifest.coding.width, manifest.variants) == ("float16", 32, 2)
    assert manifest.details["radius"] == 0.3
    assert manifest.details["scores"] == manifest_hash(world.scores)
    found = manifest.details["calibration"]
    assert found["rows"] == 60
    assert found["flips"] == pytest.approx(np.mean(rows.column("flipped").to_pylist()), abs=0.05)
    assert found["divergence"] == pytest.approx(np.mean(rows.column("divergence").to_pylist()), rel=1e-3)
    assert f"radius 0.3; on 60 rows it flips {found['flips']:.1%}" in capsys.readouterr().out
    first = [entry.receipt for entry in manifest.shards if entry.variant == 1]
    assert sum(receipt.statistics["flipped"] for receipt in first) == sum(rows.column("flipped").to_pylist())
    assert sum(receipt.rows for receipt in first) == 60
    assert sum(receipt.tokens for receipt in first) == rows.lengths().sum()


def test_every_receipt_counts_what_its_rows_say(world: World) -> None:
    world.score()
    manifest = world.augment()
    shards = Shards(world.shards)
    for entry in manifest.shards:
        rows, counted = shards.rows_of(entry), entry.receipt.statistics
        assert counted["divergence"] == pytest.approx(pc.mean(rows.column("divergence")).as_py())
        assert counted["flipped"] == sum(rows.column("flipped").to_pylist())
        assert counted["vanished"] == 0
        assert entry.receipt.rows == len(rows)


def test_rows_without_a_gradient_are_counted(world: World, tmp_path: Path) -> None:
    world.teacher = Path(shutil.copytree(world.teacher, tmp_path / "constant"))
    weights = safetensors.torch.load_file(world.teacher / "model.safetensors")
    weights["classifier.weight"].zero_()
    safetensors.torch.save_file(weights, world.teacher / "model.safetensors", metadata={"format": "pt"})
    world.score()
    for entry in world.augment().shards:
        assert entry.receipt.statistics["vanished"] == entry.receipt.rows


def test_the_radius_is_found_from_an_effect_and_stands_in_the_key(world: World) -> None:
    world.score()
    manifest = world.augment(settings_of({"radius": {"divergence": 0.05}}))
    found = manifest.details["calibration"]
    assert found["divergence"] == pytest.approx(0.05, abs=0.01)
    assert manifest.key["perturbation"]["radius"] == found["radius"] == manifest.details["radius"]
    world.computed()
    again = world.augment(settings_of({"radius": found["radius"]}))
    assert [entry.receipt for entry in again.shards] == [entry.receipt for entry in manifest.shards]
    assert not [name for name in world.computed() if name.startswith("variant")]


def test_the_radius_is_measured_on_a_sample_that_no_order_of_the_corpus_chooses(world: World) -> None:
    samples = []
    for order in (slice(None), slice(None, None, -1)):
        save_changed(world, order)
        world.score()
        found = world.augment(settings_of(calibration_rows=16)).details["calibration"]
        (job,) = [job for job in world.jobs if isinstance(job, CalibrationJob)]
        world.computed()
        sample = set(job.inputs.example_ids)
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
    assert sorted(world.computed()) == [f"variant 2, partition {number}" for number in range(len(one) - 1)]
    kept = {name: of for name, of in one.items() if name != "manifest.json"}
    assert kept == {name: of for name, of in two.items() if "variant-1" in name}
    world.augment(settings_of(variants=1))
    assert world.computed() == []
    assert hashes(world.shards) == one


def test_no_variants_give_an_empty_set(world: World) -> None:
    world.score()
    manifest = world.augment(settings_of(variants=0))
    assert manifest.shards == ()
    assert Shards(world.shards).manifest == manifest


def save_changed(world: World, keep: slice, **changed: Any) -> None:
    """The corpus with part of its training rows, or with the text or label of one changed."""
    whole = pq.read_table(world.prepared / "train.parquet")
    table = whole.to_pylist()
    for name, value in changed.items():
        table[30][name] = value
    folder = world.folder / f"prepared {len(list(world.folder.iterdir()))}"
    world.prepared = Path(shutil.copytree(world.prepared, folder))
    pq.write_table(whole.from_pylist(table[keep], schema=whole.schema), world.prepared / "train.parquet")


def test_appended_rows_compute_only_the_partitions_that_changed(world: World) -> None:
    whole = world.prepared
    save_changed(world, slice(0, 50))
    world.score()
    world.augment()
    before = names_of(world.scores)
    world.computed()
    world.prepared = whole
    world.score()
    world.augment()
    after = names_of(world.scores)
    new = [number for number, ids in enumerate(after) if ids not in before]
    assert 0 < len(new) < len(after) / 2
    assert sorted(name for name in world.computed() if not name.startswith("calibration")) == sorted(
        [f"scores of train, partition {number}" for number in new]
        + [f"variant {variant}, partition {number}" for number in new for variant in (1, 2)]
    )


@pytest.mark.parametrize("changed", [{"text_a": "word1 word2"}, {"label": 1}, {"label": 0}, {"label": None}])
def test_a_changed_text_or_label_computes_its_own_partition_again(world: World, changed: dict[str, Any]) -> None:
    label = pq.read_table(world.prepared / "train.parquet")["label"][30].as_py()
    world.score()
    world.computed()
    save_changed(world, slice(None), **changed)
    world.score()
    (number,) = [number for number, ids in enumerate(names_of(world.scores)) if "train00030" in ids]
    assert world.computed() == ([] if changed == {"label": label} else [f"scores of train, partition {number}"])


def test_a_changed_setting_computes_all_shards_and_changed_back_none(world: World) -> None:
    settings = [
        {"seed": 2},
        {"codec": "sign"},
        {"batch_rows": 8},
        {"perturbation": {"norm": "linf"}},
        {"perturbation": {"objective": "label"}},
        {"perturbation": {"radius": 0.2}},
        {"perturbation": {"steps": 2}},
        {"perturbation": {"step_size": 0.5}},
        {"perturbation": {"start": 0.25}},
        {"perturbation": {"special_tokens": True}},
    ]
    world.score(rows_per_shard=30)
    first = world.augment(settings_of(variants=1))
    before = hashes(world.shards)
    for changed in settings:
        world.computed()
        world.augment(settings_of(**changed, variants=1))
        assert len(world.computed()) == 1 + len(first.shards), changed
        world.augment(settings_of(variants=1))
        assert world.computed() == [], changed
        assert hashes(world.shards) == before, changed


def test_equal_keys_mean_equal_bytes_also_where_the_scores_were_batched_otherwise(world: World, tmp_path: Path) -> None:
    runs = []
    for batch_rows in (1, 16):
        other = World(tmp_path / f"batches of {batch_rows}", world.prepared, world.teacher)
        other.score(batch_rows=batch_rows)
        runs.append(other.augment())
    assert [
        one.file for one, two in zip(runs[0].shards, runs[1].shards, strict=True)
        if one.receipt.key == two.receipt.key and one.receipt.sha256 != two.receipt.sha256
    ] == []  # fmt: skip


@pytest.mark.parametrize("damage", ["flipped byte", "cut off", "deleted", "no receipt", "receipt cut off"])
def test_a_damaged_shard_is_computed_again_and_reported(world: World, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    world.score()
    manifest = world.augment()
    before = hashes(world.shards)
    world.computed()
    entry = manifest.shards[-1]
    (receipt,) = [
        path for path in (world.folder / "store").glob("*.json")
        if json.loads(path.read_text()).get("sha256") == entry.receipt.sha256
    ]  # fmt: skip
    shard = receipt.with_suffix(".arrow")
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
    capsys.readouterr()
    world.augment()
    name = f"variant {entry.variant}, partition {entry.partition}"
    assert world.computed() == [name]
    report = f"augment tiny: damaged in the store, computed again: {name}\n"
    lines = capsys.readouterr().out
    assert (report in lines) == (damage != "no receipt")
    count = len(manifest.shards)
    assert f"augment tiny: {count} shards, {count - 1} in the store, 1 to compute" in lines
    assert hashes(world.shards) == before


def test_tampering_with_what_was_published_reaches_no_later_run(world: World) -> None:
    world.score()
    manifest = world.augment()
    before = hashes(world.shards)
    target = world.shards / manifest.shards[0].file
    content = bytearray(target.read_bytes())
    content[-100] ^= 1
    target.write_bytes(content)
    with pytest.raises(ShardMismatch, match=manifest.shards[0].file):
        Shards(world.shards)
    world.augment()
    assert hashes(world.shards) == before
    Shards(world.shards)


def test_scores_that_were_tampered_with_are_not_perturbed(world: World) -> None:
    manifest = world.score()
    target = world.scores / manifest.shards[0].file
    target.write_bytes(target.read_bytes()[:-8])
    with pytest.raises(ShardMismatch, match=rf"{manifest.shards[0].file} has \d+ bytes, the manifest says \d+"):
        world.augment()
    assert not world.shards.exists()


def test_scores_of_another_teacher_are_refused_by_the_name_of_the_field(world: World, tmp_path: Path) -> None:
    world.score()
    world.teacher = save_teacher(tmp_path / "other", make_task(), seed=1)
    with pytest.raises(ShardMismatch) as refusal:
        world.augment()
    text = str(refusal.value)
    assert text.startswith(f"the scores in {world.scores} do not fit: teacher: ")
    assert text.endswith("Score again with this teacher: dvc repro")
    assert "; " not in text, "nothing but the teacher differs"
    assert not world.shards.exists()


def test_scores_of_another_label_order_are_refused_by_the_name_of_the_field(world: World, tmp_path: Path) -> None:
    world.score()
    world.teacher = save_teacher(tmp_path / "other", make_task(labels=("good", "bad")))
    with pytest.raises(ShardMismatch, match=r'labels: \["good", "bad"\] wanted, \["bad", "good"\] found'):
        world.augment()


def test_another_teacher_finds_nothing_in_the_store(world: World, tmp_path: Path) -> None:
    scored, perturbed = world.score(), world.augment()
    world.computed()
    world.teacher = save_teacher(tmp_path / "other", make_task(), seed=1)
    world.score()
    assert len(world.computed()) == len(scored.shards)
    world.augment()
    assert len(world.computed()) == 1 + len(perturbed.shards), "the effect of the radius is measured again too"


def test_a_failure_leaves_the_published_set_as_it_was_and_keeps_what_was_finished(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.score()
    world.augment()
    before = hashes(world.shards)
    world.computed()
    run = PerturbJob.run
    other = settings_of(seed=2)

    def stumble(job: PerturbJob, teacher: FrozenTeacher) -> Any:
        if (job.variant, job.partition) == (1, 1):
            raise PipelineError("stumbled")
        return run(job, teacher)

    with monkeypatch.context() as patch:
        patch.setattr(PerturbJob, "run", stumble)
        with pytest.raises(PipelineError, match="stumbled"):
            world.augment(other)
    assert hashes(world.shards) == before
    assert [path.name for path in world.folder.iterdir() if path.name.startswith(".partial")] == []
    world.computed()
    world.augment(other)
    assert sorted(world.computed()) == ["variant 1, partition 0", "variant 1, partition 1"]


def test_truncated_texts_are_counted(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert world.score().details == {"truncated": 0}
    lengths = [len(text.split()) + 2 for split in ROWS for text in pq.read_table(world.prepared / f"{split}.parquet")["text_a"].to_pylist()]  # fmt: skip  # noqa: E501
    world.teacher = Path(shutil.copytree(world.teacher, tmp_path / "shorter"))
    settings = json.loads((world.teacher / "tokenizer_config.json").read_text())
    (world.teacher / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 6}))
    manifest = world.score()
    assert manifest.details == {"truncated": sum(length > 6 for length in lengths)}
    assert manifest.key["max_length"] == 6
    assert Shards(world.scores).rows("train", 0).lengths().max() == 6


@pytest.mark.parametrize(("kind", "pair"), [("classification", True), ("regression", False)])
def test_pairs_and_regressions_go_through_both_passes(tmp_path: Path, world: World, kind: str, pair: bool) -> None:
    task = make_task(kind, pair)
    world.prepared = save_prepared(tmp_path / "prepared", task, {"train": 20, "dev": 5, "test": 5})
    world.teacher = save_teacher(tmp_path / "teacher", task)
    world.score()
    world.augment()
    scores, rows = Shards(world.scores).rows("train", 0), Shards(world.shards).rows("train", 1)
    labels = pq.read_table(world.prepared / "train.parquet")["label"].to_pylist()
    assert scores.column("label").to_pylist() == rows.column("label").to_pylist() == labels
    assert any(1 in types for types in scores.column("token_type_ids").to_pylist()) == pair
    assert scores.matrix("teacher_logits").shape == (20, task.outputs)
    assert min(rows.column("divergence").to_pylist()) >= 0 or kind == "classification"


def test_a_score_job_and_a_perturb_job_of_equal_examples_never_share_a_key(world: World) -> None:
    world.score()
    world.augment()
    keys = [job.key for job in world.jobs if isinstance(job, (ScoreJob, PerturbJob))]
    assert len({json.dumps(key, sort_keys=True) for key in keys}) == len(keys)
