import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import Tensor

from benchmarks import cost
from benchmarks.cost import Costs, Pace
from benchmarks.trainings import VARIANTS, StageOne, World
from pipeline.config.params import read_params
from pipeline.distill.dataset import VARIANT
from pipeline.distill.student import make_student
from pipeline.models.folder import ModelFolder
from tests.benchmarks.figures import ROWS, SIZES, by_key

PARAMS = Path(__file__).parent.parent.parent / "params.yaml"


def test_bytes_are_those_of_the_files(stage_one: StageOne) -> None:
    found = by_key(cost.disk_figures(stage_one))
    shards = sum(file.stat().st_size for file in stage_one.shards.glob("*.arrow"))
    soft_labels = sum(file.stat().st_size for file in stage_one.soft_labels.glob("*.arrow"))
    assert found["bytes_per_row"] == pytest.approx(shards / (VARIANTS * ROWS))
    assert 1e6 * found["disk_mb"] == pytest.approx(shards + soft_labels), "no file counts twice"


PACES = {
    "half": {"offline": Pace(once=4, epoch=10), "online": Pace(once=2, epoch=30), "cached": Pace(once=2, epoch=25)},
    "narrow": {"offline": Pace(once=3, epoch=6), "online": Pace(once=1, epoch=20)},
    "tiny": {"offline": Pace(once=2, epoch=1), "online": Pace(once=3, epoch=15)},
}


def test_costs_are_stage_one_once_and_every_size_in_its_turn() -> None:
    costs = Costs(soft_label=8, augment=50, sizes=PACES)
    found = by_key(costs.figures(6))
    offline, online = (4 + 60, 3 + 36, 2 + 6), (2 + 180, 1 + 120, 3 + 90)
    for sizes in (1, 2, 3):
        assert found[f"cost_ratio_{sizes}"] == pytest.approx(sum(online[:sizes]) / (58 + sum(offline[:sizes])))
    assert found["cost_ratio_5"] == pytest.approx((sum(online) + sum(online[:2])) / (58 + sum(offline) + sum(offline[:2])))
    assert found["cost_ratio_3_same"] == pytest.approx(3 * online[0] / (58 + 3 * offline[0]))


def test_where_it_breaks_even_a_first_student_costs_the_same_in_both_forms() -> None:
    costs = Costs(soft_label=8, augment=50, sizes=PACES)
    found = by_key(costs.figures(6))
    for form, key in (("online", "break_even"), ("cached", "break_even_cached")):
        epochs: Any = found[key]
        assert costs.total("offline", 1, epochs) == pytest.approx(costs.total(form, 1, epochs)), "both cost the same then"
    slow = {"half": PACES["half"] | {"online": Pace(2, 9)}}
    assert Costs(8, 50, slow).break_even("online") == float("inf"), "it never pays"


def test_each_use_takes_the_passes_and_the_variants_that_its_name_says(world: World, stage_one: StageOne) -> None:
    seen: Counter[str] = Counter()

    def count(model: torch.nn.Module, positional: tuple[Any, ...], given: dict[str, Tensor]) -> None:
        seen["rows"] += len(given["inputs_embeds"])
        seen["passes"] += 1

    wanted = {"soft_labels": (1, 1), "use_rotate": (2, 2), "use_all": (2, 4)}
    student = make_student(ModelFolder(world.teacher), world.student(1), 1)
    student.model.register_forward_pre_hook(count, with_kwargs=True)
    for key, (changed, _) in cost.USES.items():
        rows, pieces, loss = cost.step_of(stage_one, student, world.student(1, **changed))
        assert len(pieces) == cost.STEPS
        batch = rows.batch(pieces[0])
        seen.clear()
        loss(student.model, batch)
        assert (seen["passes"], seen["rows"] / len(batch["labels"])) == wanted[key], key
        assert (VARIANT + "input_ids" in batch) == ("use" in key)


def test_a_trial_prints_and_writes_every_figure(prepared: Path, teacher: Path, tmp_path: Path) -> None:
    target, params = tmp_path / "cost.json", tmp_path / "params.yaml"
    params.write_text(yaml.safe_dump(read_params(PARAMS) | {"students": SIZES}, sort_keys=False))
    folders = ["--prepared", str(prepared), "--teacher", str(teacher), "--params", str(params), "--json", str(target)]
    result = CliRunner().invoke(cost.main, [*folders, "--rows", "40", "--epochs", "3", "--rounds", "1"])
    assert result.exit_code == 0, result.output
    figures = json.loads(target.read_text())
    assert figures.keys() >= {"cost_ratio_3", "cost_ratio_3_cached", "break_even", "composition", "bytes_per_row"}
    assert all(key in result.output for key in figures)
