from pathlib import Path

import pytest

from benchmarks import augment
from benchmarks.augment import World
from pipeline.augment.teacher import FrozenTeacher
from pipeline.models.folder import ModelFolder
from tests.benchmarks.figures import by_key
from tests.stored import shards_in


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, prepared: Path, teacher: Path) -> World:
    return World(tmp_path_factory.mktemp("benchmark") / "world", prepared, teacher, rows=96, shard_rows=32)


def test_the_loop_and_its_arithmetic_do_the_passes_that_are_compared(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = FrozenTeacher(ModelFolder(world.teacher))
    batches = augment.ready_batches(teacher, world.labelled())
    passes: list[int] = []
    logits_at = FrozenTeacher.logits_at

    def counted(self: FrozenTeacher, batch: dict[str, object], at: object) -> object:
        passes.append(1)
        return logits_at(self, batch, at)  # type: ignore[arg-type]

    monkeypatch.setattr(FrozenTeacher, "logits_at", counted)
    augment.bare_loop(teacher, world.labelled())
    assert len(passes) == 2 * len(batches), "one to follow the gradient, one to label"
    passes.clear()
    augment.arithmetic(teacher, batches)
    assert len(passes) == 3 * len(batches)


def test_the_stage_is_timed_on_shards_that_it_really_computes(world: World) -> None:
    augment.fresh(world, 0)
    assert augment.stage_seconds(world, 0) > 0
    assert len(shards_in(world.folder / "store-0")) == 2 * len(world.labelled()), "soft labels, which it reads, and variants"
    augment.fresh(world, 0)
    assert not shards_in(world.folder / "store-0")


def test_figures_of_codecs_padding_and_precision_are_what_their_keys_say(world: World, prepared: Path) -> None:
    codecs, padding = by_key(augment.codec_figures(world)), by_key(augment.padding_figures(world, prepared))
    assert codecs["sign_bits"] == pytest.approx(1 + 32 / 32), "a bit an element and a scale a token of 32"
    assert 0.5 < codecs["sign_kept"] < 1.2
    assert codecs["int8_kept"] == pytest.approx(1, abs=0.05)
    assert 1 <= padding["padding"] < 1.6
    assert 0.9 < by_key(augment.bf16_figures(world, 1))["bf16_agreement"] <= 1
