import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.shards.manifest import manifest_hash
from pipeline.shards.reader import Shards
from pipeline.store.collect import delete, garbage, items_of, uses_of
from pipeline.store.files import PARTIAL
from pipeline.store.store import Store
from tests.running import SEARCH, Stage, kill, labelled, lives, nodes, title, undisturbed
from tests.stored import HOUR, age
from tests.world import AUGMENT

SLOW: dict[str, Any] = AUGMENT | {
    "variants": 4,
    "perturbation": SEARCH | {"epsilon": {"divergence": 0.05}, "num_steps": 4, "step_size": 0.4},
    "calibration_rows": 16,
}
"""Enough work to kill a process during it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    """Soft labels, and the variants of an undisturbed run with another store."""
    made = tmp_path_factory.mktemp("killed")
    labelled(made, teacher, rows=120)
    undisturbed(made, teacher, SLOW)
    return made


@pytest.fixture
def stage(folder: Path, teacher: Path) -> Iterator[Stage]:
    made = Stage(folder, teacher, SLOW, workers=2, out="alone", store=folder / "store of one machine")
    yield made
    made.kill_all()


def test_a_killed_run_resumes_and_survives_a_killed_worker(stage: Stage, folder: Path) -> None:
    wanted = folder / "undisturbed" / "shards"
    shards = len(Shards(wanted).manifest.shards)

    driver = stage.start()
    stage.until(lambda: stage.finished_shards() >= shards // 4)
    assert stage.workers(), "worker processes make the shards"
    driver.kill()
    assert stage.end() == -signal.SIGKILL
    assert stage.left_behind() == []
    finished = stage.finished_shards()
    assert shards // 4 <= finished < shards, "killed half-way"
    assert not stage.out.exists()
    killed = set(stage.unfinished())
    assert len(killed) <= 3, "a folder of each worker and the driver's probe file"
    assert all(name.startswith(PARTIAL) for name in killed)

    stage.start()
    stage.until(lambda: stage.finished_shards() >= finished + 4)
    stage.workers()[0].kill()
    assert stage.end() == 0, stage.said()
    said = stage.said()
    assert f"augment tiny: {shards} shards, {finished} in the store, {shards - finished} to compute" in said
    assert said.count(": its worker was lost; another one runs it") == 1
    assert "searching epsilon" not in said, "epsilon was kept"
    assert "damaged" not in said
    assert stage.left_behind() == []

    assert stage.hash() == manifest_hash(wanted)
    assert {file.name for file in stage.out.iterdir()} == {file.name for file in wanted.iterdir()}
    left = set(stage.unfinished())
    assert killed <= left
    assert [name for name in left - killed if not name.startswith(PARTIAL)] == []
    assert len(left - killed) <= 1, "a folder of the killed worker"
    store = Store(stage.store)
    for name in left:
        age(stage.store / name, 2 * HOUR)  # those of the last hour may belong to a run in progress
    unused, _ = garbage(items_of(store, uses_of([stage.out], store)), least_age=0)
    doomed = [item for item in unused if item.state == "partial"]
    assert {item.name for item in doomed} == left
    assert all(delete(store, item) for item in doomed)
    assert stage.unfinished() == []
    Shards(stage.out)


def of_node(node: Any) -> list[psutil.Process]:
    """The raylet of a node and all below it."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [raylet, *raylet.children(recursive=True)]


def workers_of(node: Any) -> list[psutil.Process]:
    return [process for process in of_node(node) if "ray::Worker" in title(process)]


@contextmanager
def pausing(processes: list[psutil.Process]) -> Iterator[None]:
    """Suspends processes; resumes those that are still alive."""
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in filter(lives, processes):
            process.resume()


def test_no_shard_is_lost_with_a_node_and_its_workers(folder: Path, teacher: Path) -> None:
    with nodes(2) as cluster:
        lose_a_node(cluster, Stage(folder, teacher, SLOW, workers=2, out="two nodes", store=folder / "store of two nodes"))


def lose_a_node(cluster: Any, stage: Stage) -> None:
    wanted, lost = stage.out.parent / "undisturbed" / "shards", next(iter(cluster.worker_nodes))

    def more_shards_are_finished() -> None:
        until = stage.finished_shards() + 3
        stage.until(lambda: stage.finished_shards() >= until)

    stage.start(environment={"RAY_ADDRESS": cluster.address})
    try:
        more_shards_are_finished()
        with pausing(workers_of(cluster.head_node)):
            more_shards_are_finished()  # on the node that will die
        with pausing(workers_of(lost)):
            more_shards_are_finished()  # on the other
            assert stage.finished_shards() < len(Shards(wanted).manifest.shards), "killed half-way"
            kill(of_node(lost))
        assert stage.end() == 0, stage.said()
    finally:
        stage.kill_all()
    assert stage.said().count(": its worker was lost; another one runs it") == 1
    assert stage.hash() == manifest_hash(wanted)
    assert not list(stage.store.glob("*probe_file*"))
