"""One world for all trials that compare trainings from shards with the teacher in the loop."""

from pathlib import Path

import pytest

from benchmarks.trainings import VARIANTS, Needs, StageOne, World
from benchmarks.worlds import RADIUS
from pipeline.corpus.task import Task
from tests.benchmarks.figures import ROWS, SIZES
from tests.world import SCORE_SETTINGS, augment_settings, rewrite, save_teacher, student_settings


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, prepared: Path, task: Task) -> World:
    """Its teacher, and so every student, has no dropout: what is learnt depends on rows and losses alone."""
    folder = tmp_path_factory.mktemp("trainings")
    teacher = save_teacher(folder / "teacher", task)
    rewrite(teacher / "config.json", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    needs = Needs(
        score=SCORE_SETTINGS,
        augment=augment_settings({"radius": RADIUS}, variants=VARIANTS),
        students={name: student_settings(**size) for name, size in SIZES.items()},
    )
    return World.of(folder / "world", prepared, teacher, ROWS, needs)


@pytest.fixture(scope="session")
def stage_one(world: World) -> StageOne:
    """Scores and shards of that world; read only."""
    return world.stage_one("made")
