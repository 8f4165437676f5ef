from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.augment.estimate import Estimate, augment_estimate, soft_label_estimate
from pipeline.augment.passes import augment, soft_label
from pipeline.augment.plans import Augmentation
from pipeline.augment.workers import ThisProcess
from pipeline.config.errors import PipelineError
from pipeline.config.settings import AugmentSettings, CodecName
from pipeline.shards.codec import CODECS
from pipeline.shards.reader import Shards
from tests.stored import shards_in
from tests.world import INFERENCE, augment_settings, make_task, runtime_at, save_masked_lm, save_prepared

ONE_SHARD = INFERENCE.model_copy(update={"rows_per_shard": 300, "batch_size": 32})


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    """Soft labels of 400 training rows in one or two shards; read only."""
    folder = tmp_path_factory.mktemp("many")
    prepared = save_prepared(folder / "prepared", make_task(), {"train": 400, "dev": 4, "test": 4})
    soft_label(prepared, teacher, ONE_SHARD, runtime_at(folder), folder / "soft_labels")
    return folder / "soft_labels"


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in [folder, *folder.rglob("*")]}


def planned(
    soft_labels: Path, teacher: Path, folder: Path, settings: AugmentSettings, masked_lm: Path | None = None
) -> Estimate:
    return augment_estimate(Augmentation.of(soft_labels, teacher, settings, masked_lm=masked_lm), runtime_at(folder))


def test_an_estimate_writes_nothing(soft_labels: Path, prepared: Path, teacher: Path, tmp_path: Path) -> None:
    settings = augment_settings()
    for already in (False, True):
        if already:
            soft_label(prepared, teacher, INFERENCE, runtime_at(tmp_path), tmp_path / "soft_labels")
            augment(Augmentation.of(soft_labels, teacher, settings), runtime_at(tmp_path), tmp_path / "shards")
        before = [tree(folder) for folder in (tmp_path, soft_labels, prepared, teacher)]
        soft_label_estimate(prepared, teacher, INFERENCE, runtime_at(tmp_path))
        planned(soft_labels, teacher, tmp_path, settings)
        planned(soft_labels, teacher, tmp_path, augment_settings({"epsilon": {"divergence": 0.1}}))
        assert [tree(folder) for folder in (tmp_path, soft_labels, prepared, teacher)] == before
        assert (tmp_path / "store").exists() == already


@pytest.mark.parametrize(
    "search", [{"gradient_from": "noise", "epsilon": {"divergence": 0.02}}, {"epsilon": {"divergence": 0.1}}]
)
def test_shards_are_counted(
    soft_labels: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, search: dict[str, Any]
) -> None:
    settings = augment_settings(search, variants=2)
    plan = Augmentation.of(soft_labels, teacher, settings)
    shards = 2 * len(Shards(soft_labels).manifest.of_split("train"))
    before = planned(soft_labels, teacher, tmp_path, settings)
    assert (before.shards, before.missing, before.rows, before.missing_rows, before.variants) == (shards, shards, 60, 120, 2)
    run = ThisProcess.run

    def three_jobs(workers: ThisProcess, jobs: Any) -> Iterator[Any]:
        yield from run(workers, jobs[:3])
        if len(jobs) > 3:
            raise PipelineError("killed")

    monkeypatch.setattr(ThisProcess, "run", three_jobs)
    with pytest.raises(PipelineError, match="killed"):
        augment(plan, runtime_at(tmp_path), tmp_path / "shards")
    monkeypatch.setattr(ThisProcess, "run", run)
    assert planned(soft_labels, teacher, tmp_path, settings).missing == shards - 3
    augment(plan, runtime_at(tmp_path), tmp_path / "shards")
    after = planned(soft_labels, teacher, tmp_path, settings)
    assert (after.missing, after.missing_rows) == (0, 0)
    assert set(after.bytes.values()) == {0}


def test_without_a_known_epsilon_no_perturbed_shard_is_in_the_store(soft_labels: Path, teacher: Path, tmp_path: Path) -> None:
    known = Augmentation.of(soft_labels, teacher, augment_settings({"epsilon": 0.3}))
    augment(known, runtime_at(tmp_path), tmp_path / "shards")
    found = planned(soft_labels, teacher, tmp_path, augment_settings({"epsilon": {"divergence": 0.1}}))
    assert found.missing == found.shards
    edits = augment_settings({"epsilon": {"divergence": 0.1}}, recipes=[["mask"]])
    augment(Augmentation.of(soft_labels, teacher, edits), runtime_at(tmp_path), tmp_path / "shards")
    assert planned(soft_labels, teacher, tmp_path, edits).missing == 0, "edits need no epsilon"


@pytest.mark.parametrize("codec", list(CODECS))
def test_bytes_are_close_to_those_of_the_shards(many: Path, teacher: Path, tmp_path: Path, codec: CodecName) -> None:
    settings = augment_settings(variants=1, codec=codec, batch_size=32)
    asked = {other: planned(many, teacher, tmp_path, settings.model_copy(update={"codec": other})) for other in CODECS}
    written = bytes_written(many, teacher, tmp_path, settings)
    assert [estimate.bytes[codec] for estimate in asked.values()] == [pytest.approx(written, rel=0.1)] * len(CODECS)
    assert asked["sign"].bytes["sign"] < asked["sign"].bytes["int8"] / 1.5 < asked["sign"].bytes["float16"] / 2


def bytes_written(soft_labels: Path, teacher: Path, folder: Path, settings: AugmentSettings) -> int:
    manifest = augment(Augmentation.of(soft_labels, teacher, settings), runtime_at(folder), folder / "shards")
    return sum(entry.receipt.bytes for entry in manifest.shards)


@pytest.mark.parametrize(("corpus", "recipe"), [("soft_labels", "perturb"), ("many", "mask")])
def test_bytes_of_small_shards_and_other_recipes_are_close_too(
    teacher: Path, tmp_path: Path, corpus: str, recipe: str, request: pytest.FixtureRequest
) -> None:
    soft_labels, settings = request.getfixturevalue(corpus), augment_settings(variants=1, recipes=[[recipe]], batch_size=32)
    estimate = planned(soft_labels, teacher, tmp_path, settings).bytes["int8"]
    assert estimate == pytest.approx(bytes_written(soft_labels, teacher, tmp_path, settings), rel=0.1)


def test_word_candidates_are_counted_once_and_never_too_low(many: Path, teacher: Path, tmp_path: Path) -> None:
    words, replacement = save_masked_lm(tmp_path / "words"), {"replace": 0.4, "candidates": 15}
    settings = augment_settings(variants=2, recipes=[["masked_lm"]], masked_lm=replacement)
    estimate = planned(many, teacher, tmp_path, settings, words).bytes["int8"]
    augment(Augmentation.of(many, teacher, settings, masked_lm=words), runtime_at(tmp_path), tmp_path / "shards")
    added = sum(file.stat().st_size for file in shards_in(tmp_path / "store"))
    assert added <= estimate < 1.3 * added
    more = settings.model_copy(update={"variants": 3})
    assert planned(many, teacher, tmp_path, more, words).bytes["int8"] < estimate / 3, "the candidates are in the store"


def test_an_estimate_of_soft_labels_counts_the_rows_of_every_split(prepared: Path, teacher: Path, tmp_path: Path) -> None:
    before = soft_label_estimate(prepared, teacher, INFERENCE, runtime_at(tmp_path))
    manifest = soft_label(prepared, teacher, INFERENCE, runtime_at(tmp_path), tmp_path / "soft_labels")
    shards = len(manifest.shards)
    assert (before.rows, before.missing, before.missing_rows, before.shards) == (100, shards, 100, shards)
    after = soft_label_estimate(prepared, teacher, INFERENCE, runtime_at(tmp_path))
    assert (after.rows, after.missing, after.missing_rows) == (100, 0, 0)


def test_more_than_max_bytes_is_rejected_before_anything_is_computed(
    soft_labels: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    run = ThisProcess.run

    def noted(workers: ThisProcess, jobs: Any) -> Iterator[Any]:
        started.extend(job.name for job in jobs)
        return run(workers, jobs)

    monkeypatch.setattr(ThisProcess, "run", noted)
    settings = augment_settings({"epsilon": {"divergence": 0.1}})
    plan = Augmentation.of(soft_labels, teacher, settings)
    needed = augment_estimate(plan, runtime_at(tmp_path)).bytes
    room = runtime_at(tmp_path).model_copy(update={"max_bytes": needed["int8"] - 1})
    sizes = {codec: f"{size / 1000:.3g} kB" for codec, size in needed.items()}
    sentence = rf"would write about {sizes['int8']}, .* nothing was computed.* float16 {sizes['float16']}, sign {sizes['sign']}"
    with pytest.raises(PipelineError, match=sentence):
        augment(plan, room, tmp_path / "shards")
    assert (started, list(tmp_path.iterdir())) == ([], [])
    enough = runtime_at(tmp_path).model_copy(update={"max_bytes": needed["int8"]})
    made = augment(plan, enough, tmp_path / "shards").shards
    assert len(made) == len([name for name in started if name.startswith("variant")])
