from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.augment.estimate import Estimate, augment_estimate, mixed_tokens, score_estimate
from pipeline.augment.passes import augment, score
from pipeline.config.settings import AugmentSettings
from pipeline.augment.workers import ThisProcess
from pipeline.config.errors import PipelineError
from pipeline.shards.codec import CODECS
from pipeline.shards.reader import Shards
from pipeline.config.settings import CodecName
from tests.stored import shards_in
from tests.world import SCORE_SETTINGS, augment_settings, make_task, runtime_at, save_masked_lm, save_prepared

ONE_SHARD = SCORE_SETTINGS.model_copy(update={"rows_per_shard": 300, "batch_rows": 32})


@pytest.fixture(scope="module")
def scores(made: tuple[Path, Path]) -> Path:
    """Of 60 training rows; read only."""
    return made[0]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    """Scores of 400 training rows in one or two shards; read only."""
    folder = tmp_path_factory.mktemp("many")
    prepared = save_prepared(folder / "prepared", make_task(), {"train": 400, "dev": 4, "test": 4})
    score(prepared, teacher, ONE_SHARD, runtime_at(folder), folder / "scores")
    return folder / "scores"


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in [folder, *folder.rglob("*")]}


def planned(scores: Path, teacher: Path, folder: Path, settings: AugmentSettings, words: Path | None = None) -> Estimate:
    return augment_estimate(scores, teacher, None, settings, runtime_at(folder), words)


def test_a_plan_writes_nothing_not_even_a_time_or_an_empty_store(
    scores: Path, prepared: Path, teacher: Path, tmp_path: Path
) -> None:
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


@pytest.mark.parametrize("search", [{}, {"objective": "none", "radius": {"flips": 0.1}}, {"radius": {"divergence": 0.1}}])
def test_shards_are_counted_before_half_way_and_after(
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


def test_a_damaged_shard_is_missing(scores: Path, teacher: Path, tmp_path: Path) -> None:
    augment(scores, teacher, None, augment_settings(), runtime_at(tmp_path), tmp_path / "shards")
    cut, lost = shards_in(tmp_path / "store")[:2]
    content = cut.read_bytes()
    for path in (cut, lost):
        path.unlink()  # the published file is the same one by hard link
    cut.write_bytes(content[:-1])
    assert planned(scores, teacher, tmp_path, augment_settings()).missing == 2


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
    manifest = augment(many, teacher, None, settings, runtime_at(tmp_path), tmp_path / "shards")
    written = sum(entry.receipt.bytes for entry in manifest.shards)
    assert [estimate.bytes[codec] for estimate in asked.values()] == [pytest.approx(written, rel=0.1)] * len(CODECS)
    assert asked["sign"].bytes["sign"] < asked["sign"].bytes["int8"] / 1.5 < asked["sign"].bytes["float16"] / 2


def test_bytes_of_small_shards_and_of_other_recipes_are_close_too(
    many: Path, scores: Path, teacher: Path, tmp_path: Path
) -> None:
    for folder, recipe in ((scores, "perturb"), (many, "mask"), (many, "mix")):
        settings = augment_settings(variants=1, recipes=[[recipe]], batch_rows=32)
        estimate = planned(folder, teacher, tmp_path, settings).bytes["int8"]
        manifest = augment(folder, teacher, None, settings, runtime_at(tmp_path), tmp_path / "shards")
        assert estimate == pytest.approx(sum(entry.receipt.bytes for entry in manifest.shards), rel=0.1), recipe


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
    assert not any("variants" in line or "bytes" in line for line in after.lines())


def test_the_plan_as_the_user_reads_it() -> None:
    sizes: dict[CodecName, int] = {"float16": 2_500_000_000, "int8": 1_300_000, "sign": 999}
    assert Estimate("augment movies", 1600, 2, 8, 6, 2400, "int8", sizes).lines() == [
        "augment movies: nothing is written, this is the plan",
        "  examples         1,600 in 2 variants",
        "  shards           8: 2 in the store, 6 to compute",
        "  rows to compute  2,400",
        "  bytes to write   float16 2.5 GB, int8 1.3 MB (chosen), sign 999 B",
    ]


def test_more_than_max_bytes_is_refused_before_anything_is_computed_and_exactly_enough_is_not(
    scores: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    run = ThisProcess.run
    monkeypatch.setattr(ThisProcess, "run", lambda self, jobs: started.extend(job.name for job in jobs) or run(self, jobs))
    settings = augment_settings({"radius": {"divergence": 0.1}})
    needed = planned(scores, teacher, tmp_path, settings).bytes
    room = runtime_at(tmp_path).model_copy(update={"max_bytes": needed["int8"] - 1})
    with pytest.raises(PipelineError) as refusal:
        augment(scores, teacher, None, settings, room, tmp_path / "shards")
    sizes = {codec: f"{size / 1000:.3g} kB" for codec, size in needed.items()}
    assert str(refusal.value) == (
        f"augment tiny would write about {sizes['int8']}, runtime.max_bytes allows {sizes['int8']}; nothing was computed. "
        f"With another codec it would be: float16 {sizes['float16']}, sign {sizes['sign']}"
    )
    assert started == []
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "shards").exists()
    enough = runtime_at(tmp_path).model_copy(update={"max_bytes": needed["int8"]})
    made = augment(scores, teacher, None, settings, enough, tmp_path / "shards").shards
    assert len(made) == len([name for name in started if name.startswith("variant")])


def test_what_the_store_has_does_not_count_against_max_bytes(scores: Path, teacher: Path, tmp_path: Path) -> None:
    augment(scores, teacher, None, augment_settings(), runtime_at(tmp_path), tmp_path / "shards")
    least = runtime_at(tmp_path).model_copy(update={"max_bytes": 1})
    assert augment(scores, teacher, None, augment_settings(), least, tmp_path / "shards").shards
    with pytest.raises(PipelineError, match=r"would write about .* kB, runtime\.max_bytes allows 1 B"):
        augment(scores, teacher, None, augment_settings(variants=3), least, tmp_path / "shards")
