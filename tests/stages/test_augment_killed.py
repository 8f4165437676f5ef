import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster as Nodes

from pipeline.shards.manifest import manifest_hash
from pipeline.shards.reader import Shards
from pipeline.store.files import PARTIAL
from tests.running import ROOT, SEARCH, Stage, kill, lives, scored, title, undisturbed
from tests.world import AUGMENT

SLOW: dict[str, Any] = AUGMENT | {
    "variants": 4,
    "perturbation": SEARCH | {"radius": {"divergence": 0.05}, "steps": 4, "step_size": 0.4},
    "calibration_rows": 16,
}
"""So much work that there is time to kill somebody."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    """Scores, and what a run of another store gives that nobody disturbs."""
    made = tmp_path_factory.mktemp("killed")
    scored(made, teacher, rows=120)
    undisturbed(made, teacher, SLOW)
    return made


@pytest.fixture
def stage(folder: Path, teacher: Path) -> Iterator[Stage]:
    made = Stage(folder, teacher, SLOW, workers=2, out="alone", store=folder / "store of one machine")
    yield made
    made.kill_all()


def test_a_killed_run_goes_on_where_it_was_and_outlives_a_killed_worker(stage: Stage, folder: Path) -> None:
    wanted = folder / "undisturbed" / "shards"
    shards = len(Shards(wanted).manifest.shards)

    driver = stage.start()
    stage.until(lambda: stage.finished_shards() >= shards // 4)
    assert stage.workers(), "the shards are made by worker processes"
    driver.kill()
    assert stage.end() == -signal.SIGKILL
    assert stage.left_behind() == []
    finished = stage.finished_shards()
    assert shards // 4 <= finished < shards, "it was to be killed half-way"
    assert not stage.out.exists()

    stage.start()
    stage.until(lambda: stage.finished_shards() >= finished + 4)
    stage.workers()[0].kill()
    assert stage.end() == 0, stage.said()
    said = stage.said()
    assert f"augment tiny: {shards} shards, {finished} in the store, {shards - finished} to compute" in said
    assert said.count("a worker died on variant ") == 1
    assert "calibration of the radius" not in said, "the radius was found before and kept"
    assert "damaged" not in said
    assert stage.left_behind() == []

    assert stage.hash() == manifest_hash(wanted)
    assert {file.name for file in stage.out.iterdir()} == {file.name for file in wanted.iterdir()}
    Shards(stage.out)
    assert all(name.startswith(PARTIAL) for name in stage.unfinished()), "what `stages.store` removes once it is old"


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """A Ray cluster of its own on loopback: two nodes with a place for one worker each."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    each = {"num_cpus": 1, "num_gpus": 0, "include_dashboard": False, "object_store_memory": 80 * 2**20}
    made = Nodes(initialize_head=True, head_node_args=each)
    try:
        made.add_node(**each)
        yield made
    finally:
        made.shutdown()


def of_node(node: Any) -> list[psutil.Process]:
    """The raylet of a node and all below it."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [raylet, *raylet.children(recursive=True)]


def workers_of(node: Any) -> list[psutil.Process]:
    return [process for process in of_node(node) if "ray::Worker" in title(process)]


@contextmanager
def pausing(processes: list[psutil.Process]) -> Iterator[None]:
    """They do nothing meanwhile; those that are then alive go on."""
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in filter(lives, processes):
            process.resume()


def test_a_node_that_dies_with_its_workers_takes_no_shard_with_it(nodes: Nodes, folder: Path, teacher: Path) -> None:
    stage = Stage(folder, teacher, SLOW, workers=2, out="two nodes", store=folder / "store of two nodes")
    wanted = folder / "undisturbed" / "shards"
    lost = next(iter(nodes.worker_nodes))

    def more_shards_are_finished() -> None:
        until = stage.finished_shards() + 3
        stage.until(lambda: stage.finished_shards() >= until)

    stage.start(environment={"RAY_ADDRESS": nodes.address})
    try:
        more_shards_are_finished()
        with pausing(workers_of(nodes.head_node)):
            more_shards_are_finished()  # by the node that will be lost
        with pausing(workers_of(lost)):
            more_shards_are_finished()  # by the other
            assert stage.finished_shards() < len(Shards(wanted).manifest.shards), "it was to be killed half-way"
            kill(of_node(lost))
        assert stage.end() == 0, stage.said()
    finally:
        stage.kill_all()
    assert stage.said().count("a worker died on variant ") == 1
    assert stage.hash() == manifest_hash(wanted)
    assert not list(stage.store.glob("*landmark*"))
