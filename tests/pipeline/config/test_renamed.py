from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipeline.config.errors import PipelineErrors
from pipeline.config.params import load, read_params
from pipeline.config.renamed import renamed_settings
from pipeline.config.sections import TEACH, read_sections
from pipeline.config.settings import TrainingSettings
from stages import check
from tests.parameters import ROOT

FIRST_EDITION = """
tasks:
  tickets:
    aim: scout
    words: null
    augment: {variants: 4, perturbation: {radius: 0.2}}
teach: {epochs: 3, accumulation: 1, clip: 1.0}
words: {masked: 0.15, rows: null, schedule: linear}
score: {rows_per_shard: 256, batch_rows: 32, hidden: []}
scout: {layers: 3, snapshots: 8}
augment: {keep_label: false, mixing: {alpha: 0.4}, perturbation: {objective: gap, start: 0.3, steps: 1}}
distill: {start: teacher, adversary: shards, objective: {hard: 0.0, soft: 1.0}, optimiser: {warmup: 0.1}}
students:
  half: {layers: 3}
  tiny: {hidden: 128, heads: 4}
runtime: {trainers: 1, readers: 0, checkpoint_steps: 500, log_to: [], ray_address: null}
"""


@pytest.fixture
def params(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(FIRST_EDITION)
    return path


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("tasks.tickets.aim", "gradient_from"),
        ("tasks.tickets.words", "masked_lm.model"),
        ("tasks.tickets.augment.perturbation.radius", "perturbation.epsilon"),
        ("teach.epochs", "num_train_epochs"),
        ("words", "masked_lm"),
        ("words.masked", "masked_lm.mlm_probability"),
        ("score", "inference"),
        ("score.hidden", "removed"),
        ("scout.snapshots", "checkpoints"),
        ("augment.keep_label", "removed"),
        ("augment.perturbation.start", "perturbation.init"),
        ("distill.adversary", "variant_policy"),
        ("distill.objective.hard", "loss.labels"),
        ("distill.optimiser.warmup", "training.warmup_ratio"),
        ("students.half.layers", "num_hidden_layers"),
        ("students.tiny.heads", "num_attention_heads"),
        ("runtime.log_to", "report_to"),
        ("runtime.ray_address", "use RAY_ADDRESS"),
    ],
)
def test_every_old_name_is_answered_with_the_new_one(params: Path, old: str, new: str) -> None:
    (line,) = [line for line in renamed_settings(read_params(params)) if line.split(" ")[0] == old]
    assert new in line


def test_check_and_stages_answer_an_old_file_with_one_list(params: Path) -> None:
    result = CliRunner().invoke(check.main, ["--params", str(params)])
    assert result.exit_code == 1
    assert "distill.start is now initial_weights" in result.output
    for read in (lambda: read_sections(params), lambda: load(params, TrainingSettings, section=TEACH)):
        with pytest.raises(PipelineErrors, match="score is now inference"):
            read()


def test_no_current_name_is_an_old_one() -> None:
    assert renamed_settings(read_params(ROOT / "params.yaml")) == []


def test_values_of_any_kind_are_survived() -> None:
    odd: dict[Any, Any] = {"teach": 3, "students": [1], "tasks": {"a": None, 1: {"aim": "scout"}}, 7: {}}
    assert renamed_settings(odd) == [
        "tasks.1.aim is now perturbation.gradient_from, for one task tasks.<task>.perturbation.gradient_from"
    ]
