import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from torch import Tensor

from benchmarks import cost
from benchmarks.cost import Costs, Pace
from benchmarks.timing import Figure
from benchmarks.trainings import VARIANTS, Needs, StageOne, World
from benchmarks.worlds import RADIUS
from pipeline.config.params import read_params
from pipeline.corpus.encoding import Batch
from pipeline.distill import step
from pipeline.distill.examples import VARIANT, Examples
from pipeline.distill.student import make_student
from pipeline.training.order import MicroBatch
from tests.world import SCORE_SETTINGS, augment_settings, student_settings

PARAMS = Path(__file__).parent.parent.parent / "params.yaml"

SIZES: dict[str, dict[str, Any]] = {
    "half": {"layers": 2},
    "narrow": {"layers": 2, "hidden": 16, "heads": 2, "intermediate": 32},
    "tiny": {"layers": 1, "hidden": 8, "heads": 1, "intermediate": 16},
}
NEEDS = Needs(
    score=SCORE_SETTINGS,
    augment=augment_settings({"radius": RADIUS}, variants=VARIANTS),
    students={name: student_settings(**size) for name, size in SIZES.items()},
)
ROWS = 44


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, prepared: Path, teacher: Path) -> World:
    return World.of(tmp_path_factory.mktemp("cost") / "world", prepared, teacher, ROWS, NEEDS)


@pytest.fixture(scope="module")
def made(world: World) -> StageOne:
    return world.stage_one("made")


def by_key(figures: list[Figure]) -> dict[str, float]:
    return {figure.key: figure.value for figure in figures}


def test_bytes_are_those_of_the_files(made: StageOne) -> None:
    found = by_key(cost.disk_figures(made))
    shards = sum(file.stat().st_size for file in made.shards.glob("*.arrow"))
    scores = sum(file.stat().st_size for file in made.scores.glob("*.arrow"))
    assert found["bytes_per_row"] == pytest.approx(shards / (VARIANTS * ROWS))
    assert shards + scores < 1e6 * found["disk_mb"] < 2 * (shards + scores), "no file counts twice"


def test_the_pace_from_shards_is_that_of_a_second_epoch_and_what_else_a_student_takes_stands_apart(
    world: World, made: StageOne, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, steps = Examples.batch, -(-ROWS // 8)
    naps = [0.0, 0.0]

    def slow(self: Examples, piece: MicroBatch) -> Batch:
        if self.split == "train":
            time.sleep(naps[piece.epoch])
        return read(self, piece)

    monkeypatch.setattr(Examples, "batch", slow)
    usual = cost.offline_pace(world, made)
    naps[1] = 0.2
    second = cost.offline_pace(world, made)
    assert second.epoch - usual.epoch == pytest.approx(0.2 * steps, abs=0.6)
    naps[:] = [0.3, 0.0]
    first = cost.offline_pace(world, made)
    assert first.once - usual.once == pytest.approx(0.3 * steps, abs=0.8)
    assert usual.once > 0
    assert usual.epoch > 0


PACES = {
    "half": {"offline": Pace(once=4, epoch=10), "online": Pace(once=2, epoch=30), "cached": Pace(once=2, epoch=25)},
    "narrow": {"offline": Pace(once=3, epoch=6), "online": Pace(once=1, epoch=20)},
    "tiny": {"offline": Pace(once=2, epoch=1), "online": Pace(once=3, epoch=15)},
}


def test_costs_are_stage_one_once_and_every_size_in_its_turn() -> None:
    costs = Costs(score=8, augment=50, sizes=PACES)
    found = by_key(costs.figures(6))
    offline, online = (4 + 60, 3 + 36, 2 + 6), (2 + 180, 1 + 120, 3 + 90)
    assert found["cost_ratio_1"] == pytest.approx(online[0] / (58 + offline[0]))
    assert found["cost_ratio_2"] == pytest.approx(sum(online[:2]) / (58 + sum(offline[:2])))
    assert found["cost_ratio_3"] == pytest.approx(sum(online) / (58 + sum(offline)))
    assert found["cost_ratio_5"] == pytest.approx((sum(online) + sum(online[:2])) / (58 + sum(offline) + sum(offline[:2])))
    assert found["cost_ratio_3_same"] == pytest.approx(3 * online[0] / (58 + 3 * offline[0]))
    assert [(figure.key, figure.bar) for figure in costs.figures(6) if figure.bar] == [("cost_ratio_3", ("≥", 1.8))]


def test_known_answers_spare_every_size_what_they_spare_the_first() -> None:
    costs = Costs(score=8, augment=50, sizes=PACES)
    assert [costs.pace(name, "cached") for name in PACES] == [Pace(2, 25), Pace(1, 15), Pace(3, 10)]
    wanted = (8 + (2 + 150) + (1 + 90) + (3 + 60)) / costs.total("offline", 3, 6)
    assert by_key(costs.figures(6))["cost_ratio_3_cached"] == pytest.approx(wanted)


def test_where_it_breaks_even_a_first_student_costs_the_same_in_both_forms() -> None:
    costs = Costs(score=8, augment=50, sizes=PACES)
    found = by_key(costs.figures(6))
    for form, key in (("online", "break_even"), ("cached", "break_even_cached")):
        epochs: Any = found[key]
        assert costs.total("offline", 1, epochs) == pytest.approx(costs.total(form, 1, epochs)), "both cost the same then"
    slow = {"half": PACES["half"] | {"online": Pace(2, 9)}}
    assert Costs(8, 50, slow).break_even("online") == float("inf"), "it never pays"


def test_every_size_is_trained_in_both_forms_and_the_first_in_the_others_too(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str]] = []

    def noted(form: str, size: World) -> Pace:
        kind = (size.name, form)
        seen.append(kind)
        return Pace(once=seen.count(kind), epoch=10 * seen.count(kind))

    def online(size: World, batches: list[Batch], cached: bool) -> Pace:
        assert sum(len(batch["labels"]) for batch in batches) == ROWS
        return noted("cached" if cached else "online", size)

    monkeypatch.setattr(cost, "offline_pace", lambda size, made: noted("offline", size))
    monkeypatch.setattr(cost, "online_pace", online)
    monkeypatch.setattr(cost, "bare_pace", lambda size, made: noted("bare", size))
    first, costs = cost.measured(replace(world, folder=tmp_path), 2)
    wanted = {"half": {"offline", "online", "cached", "bare"}, "narrow": {"offline", "online"}, "tiny": {"offline", "online"}}
    assert Counter(seen) == {(name, form): 2 for name, forms in wanted.items() for form in forms}
    assert costs.sizes == {name: dict.fromkeys(forms, Pace(1.5, 15)) for name, forms in wanted.items()}
    assert list(costs.sizes) == list(SIZES), "in their order"
    assert first.shards == tmp_path / "round-1" / "shards"
    assert (tmp_path / "round-2" / "shards").exists()


def test_each_use_takes_the_passes_and_the_variants_that_its_name_says(
    world: World, made: StageOne, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: Counter[str] = Counter()
    answer = step.logits_from_embeddings

    def counted(model: Any, inputs: Batch, at: Tensor) -> Tensor:
        seen["rows"] += len(at)
        seen["passes"] += 1
        return answer(model, inputs, at)

    monkeypatch.setattr(step, "logits_from_embeddings", counted)
    wanted = {
        "scores": (1, 1), "use_rotate": (2, 2), "use_all": (2, 4), "use_worst_of_2": (3, 4),
        "own_adversary": (2, 2), "own_adversary_started": (3, 3), "own_and_stored": (3, 3),
    }  # fmt: skip
    student = make_student(world.teacher, world.student(1), 1)
    for key, (changed, _) in cost.USES.items():
        rows, pieces, loss = cost.step_of(world, made, student, world.student(1, **changed))
        assert len(pieces) == cost.STEPS
        batch = rows.batch(pieces[0])
        seen.clear()
        loss(student.model, batch)
        assert (seen["passes"], seen["rows"] / len(batch["labels"])) == wanted[key], key
        assert (VARIANT + "input_ids" in batch) == ("use" in key or "stored" in key)


def test_a_trial_prints_and_writes_every_figure(prepared: Path, teacher: Path, tmp_path: Path) -> None:
    target, params = tmp_path / "cost.json", tmp_path / "params.yaml"
    students = {"plain": {"layers": 2, "adversary": "none"}, **SIZES}
    params.write_text(yaml.safe_dump(read_params(PARAMS) | {"students": students}, sort_keys=False))
    folders = ["--prepared", str(prepared), "--teacher", str(teacher), "--params", str(params), "--json", str(target)]
    result = CliRunner().invoke(cost.main, [*folders, "--rows", "40", "--epochs", "3", "--rounds", "1"])
    assert result.exit_code == 0, result.output
    figures = json.loads(target.read_text())
    wanted = {f"cost_ratio_{students}" for students in (1, 2, 3, 5)} | set(cost.USES) - {"scores"}
    wanted |= {"cost_ratio_3_same", "cost_ratio_3_cached", "break_even", "break_even_cached"}
    wanted |= {"composition", "composition_online", "trainer_over_loop", "bytes_per_row", "disk_mb"}
    assert figures.keys() == wanted
    assert all(key in result.output for key in figures)
    assert "half, narrow, tiny, half, narrow" in " ".join(result.output.split())
    assert "plain" not in result.output
    assert cost.GIVEN_UP in result.output
    assert 0.2 < figures["composition"] < 5
