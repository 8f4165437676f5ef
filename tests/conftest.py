"""Fixtures: the tiny world in folders that tests share and only read."""

from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch

from pipeline.corpus.task import Task
from tests.world import make_shards, make_task, save_on_hub, save_prepared, save_teacher

torch.set_num_threads(1)
hypothesis.settings.register_profile("tests", deadline=None)  # a busy machine is no fault
hypothesis.settings.load_profile("tests")


@pytest.fixture(scope="session")
def task() -> Task:
    """Two classes, single texts."""
    return make_task()


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory, task: Task) -> Path:
    """The tiny teacher's folder; read only."""
    return save_teacher(tmp_path_factory.mktemp("teacher"), task)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, task: Task) -> Path:
    """The tiny corpus; read only."""
    return save_prepared(tmp_path_factory.mktemp("prepared"), task, {"train": 60, "dev": 20, "test": 20})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub with one model, org/teacher, and no hub behind it."""
    cache = tmp_path / "hub"
    save_on_hub(cache, {"main": 0})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return cache


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a text file below ``tmp_path``."""

    def of(name: str, content: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        return path

    return of


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, prepared: Path, teacher: Path) -> tuple[Path, Path]:
    """Scores and perturbations of the tiny corpus; read only."""
    return make_shards(tmp_path_factory.mktemp("made"), prepared, teacher)


@pytest.fixture(scope="session")
def scores(made: tuple[Path, Path]) -> Path:
    """Of 60 training rows; read only."""
    return made[0]
