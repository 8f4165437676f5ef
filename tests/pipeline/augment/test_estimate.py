from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.augment.estimate import Estimate, augment_estimate, mixed_tokens, score_estimate
from pipeline.augment.passes import augment, score
from pipeline.augment.recipes import AugmentSettings
from pipeline.augment.workers import ThisProcess
from pipeline.config.errors import PipelineError
from pipeline.shards.codec import CODECS
from pipeline.shards.reader import Shards
from pipeline.shards.schema import CodecName
from tests.stored import shards_in
from tests.world import SCORE_SETTINGS, augment_settings, make_task, runtime_at, save_masked_lm, save_prepared

ONE_SHARD = SCORE_SETTINGS.model_copy(update={"rows_per_shard": 300, "batch_rows": 32})


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    """Scores of 400 training rows in one or two shards; read only."""
    folder = tmp_path_factory.mktemp("many")
    prepared = save_prepared(folder / "prepared", make_task(), {"train": 400, "dev": 4, "test": 4})
    score(prepared, teacher, ONE_SHARD, runtime_at(folder), folder / "scores")
    return folder / "scores"


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here loses power."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in [folder, *folder.rglob("*")]}


def planned(scores: Path, teacher: Path, folder: Path, settings: AugmentSettings, words: Path | None = None) -> Estimate:
    return augment_estimate(scores, teacher, None, settings, runtime_at(folder), words)


def test_a_plan_writes_nothing_not_even_a_time(scores: Path, prepared: Path, teacher: Path, tmp_path: Path) -> None:
    settings = augment_settings()
    for already in (False, True):
        if already:
            score(prepared, teacher, SCORE_SETTINGS, runtime_at(tmp_path), tmp_path / "scores")
            augment(scores, teacher, None, settings, runtime_at(tmp_path), tmp_path / "shards")
        before = [tree(folder) for folder in (tmp_path, scores, prepared, teacher)]
        score_estimate(prepared, teacher, SCORE_SETTINGS, runtime_at(tmp_path))
        planned(scores, teacher, tmp_path, settings)
        planned(scores, teacher, tmp_path, augment_settings({"radius": {"flips": 0.1}}))
        assert [tree(folder) for folder in (tmp_path, scores, prepared, teacher)] == before
        assert (tmp_path / "store").exists() == already


@pytest.mark.parametrize("search", [{"objective": "none", "radius": {"flips": 0.1}}, {"radius": {"divergence": 0.1}}])
def test_shards_are_counted(
    scores: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, search: dict[str, Any]
) -> None:
    settings = augment_settings(search, variants=2)
    shards = 2 * len(Shards(scores).manifest.of_split("train"))
    before = planned(scores, teacher, tmp_path, settings)
    assert (before.shards, before.missing, before.rows, before.missing_rows, before.variants) == (shards, shards, 60, 120, 2)
    run = ThisProcess.run

    def three_jobs(workers: ThisProcess, jobs: Any) -> Iterator[Any]:
        yield from run(workers, jobs[:3])
        if len(jobs) > 3:
            raise PipelineError("killed")

    monkeypatch.setattr(ThisProcess, "run", three_jobs)
    with pytest.raises(PipelineError, match="killed"):
        augment(scores, teacher, None, settings, runtime_at(tmp_path), tmp_path / "shards")
    monkeypatch.setattr(ThisProcess, "run", run)
    assert planned(scores, teacher, tmp_path, settings).missing == shards - 3
    augment(scores, teacher, None, settings, runtime_at(tmp_path), tmp_path / "shards")
    after = planned(scores, teacher, tmp_path, settings)
    assert (after.missing, after.missing_rows) == (0, 0)
    assert set(after.bytes.values()) == {0}


def test_a_radius_that_is_not_known_means_that_nothing_is_in_the_store(scores: Path, teacher: Path, tmp_path: Path) -> None:
    augment(scores, teacher, None, augment_settings({"radius": 0.3}), runtime_at(tmp_path), tmp_path / "shards")
    found = planned(scores, teacher, tmp_path, augment_settings({"radius": {"flips": 0.1}}))
    assert found.missing == found.shards
    edits = augment_settings({"radius": {"flips": 0.1}}, recipes=[["mask"]])
    augment(scores, teacher, None, edits, runtime_at(tmp_path), tmp_path / "shards")
    assert planned(scores, teacher, tmp_path, edits).missing == 0, "edits need no radius"


@pytest.mark.parametrize("codec", list(CODECS))
def test_bytes_are_those_of_the_shards_then_written(many: Path, teacher: Path, tmp_path: Path, codec: CodecName) -> None:
    settings = augment_settings(variants=1, codec=codec, batch_rows=32)
    asked = {other: planned(many, teacher, tmp_path, settings.model_copy(update={"codec": other})) for other in CODECS}
    written = bytes_written(many, teacher, tmp_path, settings)
    assert [estimate.bytes[codec] for estimate in asked.values()] == [pytest.approx(written, rel=0.1)] * len(CODECS)
    assert asked["sign"].bytes["sign"] < asked["sign"].bytes["int8"] / 1.5 < asked["sign"].bytes["float16"] / 2


def bytes_written(scores: Path, teacher: Path, folder: Path, settings: AugmentSettings) -> int:
    manifest = augment(scores, teacher, None, settings, runtime_at(folder), folder / "shards")
    return sum(entry.receipt.bytes for entry in manifest.shards)


@pytest.mark.parametrize(("corpus", "recipe"), [("scores", "perturb"), ("many", "mask"), ("many", "mix")])
def test_bytes_of_small_shards_and_of_other_recipes_are_close_too(
    teacher: Path, tmp_path: Path, corpus: str, recipe: str, request: pytest.FixtureRequest
) -> None:
    scores, settings = request.getfixturevalue(corpus), augment_settings(variants=1, recipes=[[recipe]], batch_rows=32)
    estimate = planned(scores, teacher, tmp_path, settings).bytes["int8"]
    assert estimate == pytest.approx(bytes_written(scores, teacher, tmp_path, settings), rel=0.1)


def test_words_that_are_looked_up_are_counted_once_and_never_too_low(many: Path, teacher: Path, tmp_path: Path) -> None:
    words, proposing = save_masked_lm(tmp_path / "words"), {"replace": 0.4, "candidates": 15, "batch_rows": 16}
    settings = augment_settings(variants=2, recipes=[["masked_lm"]], masked_lm=proposing)
    estimate = planned(many, teacher, tmp_path, settings, words).bytes["int8"]
    augment(many, teacher, None, settings, runtime_at(tmp_path), tmp_path / "shards", words)
    added = sum(file.stat().st_size for file in shards_in(tmp_path / "store"))
    assert added <= estimate < 1.3 * added
    more = settings.model_copy(update={"variants": 3})
    assert planned(many, teacher, tmp_path, more, words).bytes["int8"] < estimate / 3, "the words are there"


def test_mixed_rows_are_as_long_as_the_longer_of_two_drawn_at_random() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, size=200)
    drawn = np.random.default_rng(1).choice(lengths, (2, 200_000)).max(axis=0).mean()
    assert mixed_tokens(lengths) == pytest.approx(drawn * len(lengths), rel=0.01)


def test_a_score_plan_counts_every_row_of_every_split_that_is_not_scored(prepared: Path, teacher: Path, tmp_path: Path) -> None:
    before = score_estimate(prepared, teacher, SCORE_SETTINGS, runtime_at(tmp_path))
    manifest = score(prepared, teacher, SCORE_SETTINGS, runtime_at(tmp_path), tmp_path / "scores")
    shards = len(manifest.shards)
    assert (before.rows, before.missing, before.missing_rows, before.shards) == (100, shards, 100, shards)
    after = score_estimate(prepared, teacher, SCORE_SETTINGS, runtime_at(tmp_path))
    assert (after.rows, after.missing, after.missing_rows) == (100, 0, 0)


def test_more_than_max_bytes_is_refused_before_anything_is_computed_and_enough_is_not(
    scores: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    run = ThisProcess.run
    monkeypatch.setattr(ThisProcess, "run", lambda self, jobs: started.extend(job.name for job in jobs) or run(self, jobs))
    settings = augment_settings({"radius": {"divergence": 0.1}})
    needed = planned(scores, teacher, tmp_path, settings).bytes
    room = runtime_at(tmp_path).model_copy(update={"max_bytes": needed["int8"] - 1})
    sizes = {codec: f"{size / 1000:.3g} kB" for codec, size in needed.items()}
    sentence = rf"would write about {sizes['int8']}, .* nothing was computed.* float16 {sizes['float16']}, sign {sizes['sign']}"
    with pytest.raises(PipelineError, match=sentence):
        augment(scores, teacher, None, settings, room, tmp_path / "shards")
    assert (started, list(tmp_path.iterdir())) == ([], [])
    enough = runtime_at(tmp_path).model_copy(update={"max_bytes": needed["int8"]})
    made = augment(scores, teacher, None, settings, enough, tmp_path / "shards").shards
    assert len(made) == len([name for name in started if name.startswith("variant")])
