import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from click.testing import CliRunner

from benchmarks import peer_loops, peers
from benchmarks.peer_work import Work, ours, spread, write_job
from benchmarks.peers import Run
from benchmarks.trainings import World
from pipeline.config.errors import PipelineError
from pipeline.config.params import read_params
from pipeline.config.settings import SurrogateSettings
from tests.benchmarks.figures import SIZES, by_key
from tests.benchmarks.test_trainings import weights
from tests.world import augment_settings

PARAMS = Path(__file__).parent.parent.parent / "params.yaml"


def params_with(folder: Path, **changed: Any) -> Path:
    (path := folder / "params.yaml").write_text(yaml.safe_dump(read_params(PARAMS) | changed, sort_keys=False))
    return path


def tiny_params(folder: Path, **changed: Any) -> Path:
    """Of the tiny task, in place of the default one."""
    usual = read_params(PARAMS)
    return params_with(folder, students=SIZES, tasks={"tiny": usual["tasks"]["movies"]}, **changed)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("gradient", ["student", "teacher"])
@pytest.mark.parametrize("adversarial", [False, True])
def test_a_peer_learns_what_ours_learns_where_next_to_nothing_is_perturbed_so_both_are_timed_on_the_same_work(
    world: World, tmp_path: Path, adversarial: bool, gradient: str, norm: str
) -> None:
    """Neither teacher nor students have dropout here, so that what is learnt depends on rows, order, losses and steps alone."""
    surrogate = next(iter(world.needs.students.values())).model_dump() | {"checkpoints": 2}
    work = Work(
        adversarial=adversarial,
        prepared=world.prepared,
        teacher=world.teacher,
        augment=augment_settings({"epsilon": 1e-6, "norm": norm}),
        surrogate=SurrogateSettings.model_validate(surrogate),
        students=world.needs.students,
    ).turn(adversarial, 0)
    write_job(folder := tmp_path / "job", work, gradient)
    ours(folder)
    peer_loops.main(folder, "transformers")
    for name in SIZES:
        started, found = weights(folder / "initial" / name), weights(folder / "transformers" / name)
        for place, value in weights(folder / "ours" / name).items():
            torch.testing.assert_close(found[place], value, atol=2e-5, rtol=1e-3)
        assert any(not torch.allclose(started[place], value, atol=1e-3) for place, value in found.items()), (
            "something was learnt"
        )


def test_a_ratio_above_one_and_a_positive_quality_are_in_favour_of_ours() -> None:
    labels = np.array([0, 1, 1, 1])
    good, poor = np.array([[0, 1, 1, 1], [0, 1, 1, 0]]), np.array([[0, 1, 0, 0], [0, 1, 1, 0]])
    runs = {
        "ours": [Run(seconds, seconds, 1.0, 80.0, 100.0, good) for seconds in (9.0, 10.0, 30.0)],
        "textbrewer": [Run(seconds, seconds, 0.0, 90.0, 200.0, poor) for seconds in (20.0, 25.0, 90.0)],
    }
    found = by_key(peers.figures_of("plain", ["half", "tiny"], runs, labels, teacher=good[1]))
    assert found["plain_ratio_textbrewer"] == 2.5
    assert found["plain_quality_textbrewer"] == pytest.approx(7 / 8 - 5 / 8)
    assert found["plain_ours_agreement"] == pytest.approx(7 / 8)


def test_rows_are_taken_from_the_whole_corpus_for_its_labels_may_be_sorted() -> None:
    table = pa.table({"label": [0] * 30 + [1] * 30})
    assert spread(table, 20).column("label").to_pylist() == [0] * 10 + [1] * 10
    assert spread(table, None) == spread(table, 100) == table


def test_settings_without_a_counterpart_are_rejected(prepared: Path, teacher: Path, tmp_path: Path) -> None:
    usual = read_params(PARAMS)["distill"]
    params = tiny_params(tmp_path, distill=usual | {"loss": usual["loss"] | {"labels": 1.0}})
    with pytest.raises(PipelineError, match="labels: 0"):
        Work.of(params, prepared, teacher, 1.0, 2)


def test_a_trial_prints_and_writes_every_figure(prepared: Path, teacher: Path, tmp_path: Path) -> None:
    target, params = tmp_path / "peers.json", tiny_params(tmp_path, surrogate={"checkpoints": 2, "depth": 0.5})
    folders = ["--prepared", str(prepared), "--teacher", str(teacher), "--params", str(params), "--json", str(target)]
    result = CliRunner().invoke(peers.main, [*folders, "--rows", "40", "--epochs", "2", "--kind", "adversarial"])
    assert result.exit_code == 0, result.output
    figures = json.loads(target.read_text())
    assert figures.keys() >= {"adversarial_ratio_transformers", "adversarial_quality_transformers", "adversarial_ours_peak_mb"}
    assert all(key in result.output for key in figures)
    assert "TextBrewer was left out" in result.output
