import ctypes
import errno
import os
import resource
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.shards.manifest import Manifest
from pipeline.shards.reader import Shards
from tests.running import Stage, labelled, undisturbed

TOGETHER = """
import os, time
from pathlib import Path
from stages.augment import main

Path(f"ready-{os.getpid()}").touch()
while len(list(Path().glob("ready-*"))) < 2:
    time.sleep(0.001)
main()
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    """Soft labels of four partitions, and the variants of an undisturbed run; read only."""
    folder = tmp_path_factory.mktemp("source")
    labelled(folder, teacher, rows=64, rows_per_shard=16)
    undisturbed(folder, teacher)
    return folder


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    """A new folder with the same soft labels."""
    shutil.copytree(source / "soft_labels", tmp_path / "soft_labels")
    return tmp_path


@pytest.fixture
def wanted(source: Path) -> Manifest:
    """Of the undisturbed run."""
    return Shards(source / "undisturbed" / "shards").manifest


def files_of_at_most(most: int) -> Callable[[], None]:
    """Limits the size of files, as on a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def without_rights_of_root() -> None:
    """Makes file permissions apply to root too."""
    drop_from_bounding_set, override_rights = 24, 1
    ctypes.CDLL(None).prctl(drop_from_bounding_set, override_rights, 0, 0, 0)


def test_a_full_disk_is_one_sentence_and_costs_only_one_shard(folder: Path, teacher: Path, wanted: Manifest) -> None:
    most = sorted(entry.receipt.bytes for entry in wanted.shards)[-2] - 1
    number, stuck = next((number, entry) for number, entry in enumerate(wanted.shards) if entry.receipt.bytes > most)
    assert number > 0, "another shard is finished before"
    stage = Stage(folder, teacher)

    assert stage.run(limit=files_of_at_most(most)) == 1
    name = f"variant {stuck.variant}, partition {stuck.partition}"
    assert stage.last_line().startswith(f"Error: {name} failed: cannot write to the store {stage.store}: ")
    assert stage.last_line().endswith("File too large")
    assert "Traceback" not in stage.said()
    assert stage.unfinished() == []
    assert stage.finished_shards() == number
    assert not stage.out.exists()

    assert stage.run() == 0, stage.said()
    assert f"{len(wanted.shards)} shards, {number} in the store, {len(wanted.shards) - number} to compute" in stage.said()
    assert Shards(stage.out).manifest == wanted


def test_a_read_only_store_is_one_sentence(folder: Path, teacher: Path) -> None:
    store = folder / "read only"
    store.mkdir(mode=0o555)
    stage = Stage(folder, teacher, store=store)
    assert stage.run(limit=without_rights_of_root) == 1
    assert stage.last_line().startswith("Error: ")
    assert str(store) in stage.last_line()
    assert "Permission denied" in stage.last_line()
    assert "Traceback" not in stage.said()
    assert not stage.out.exists()
    assert not list(folder.rglob(".partial-*"))
    assert not list(store.iterdir())


def test_an_unreachable_or_broken_ray_is_one_sentence(folder: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{closed.getsockname()[1]}"
    stage = Stage(folder, teacher, workers=1)
    closed_port = f"[Errno {errno.ECONNREFUSED}] {os.strerror(errno.ECONNREFUSED)}"
    for address, cause in ((nobody, closed_port), ("nonsense", "Invalid address format: nonsense")):
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert stage.run_here() == (1, f"Error: no Ray cluster is reachable at {address}: {cause}")
    monkeypatch.delenv("RAY_ADDRESS")
    (folder / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(folder / "file"))
    code, said = stage.run_here()
    assert code == 1
    assert said.startswith("Error: Ray does not start on this machine: [Errno 20] Not a directory: ")
    assert said.endswith("; runtime.workers: 0 does the work without it")
    assert stage.unfinished() == [], "not even a probe file"


def test_two_runs_at_once_on_one_store_both_succeed(folder: Path, teacher: Path, wanted: Manifest) -> None:
    (folder / "together.py").write_text(TOGETHER)
    runs = [Stage(folder, teacher, out=out) for out in ("one", "another")]
    for run in runs:
        run.start(str(folder / "together.py"))
    assert [run.end() for run in runs] == [0, 0], [run.said() for run in runs]
    assert [Shards(run.out).manifest for run in runs] == [wanted] * 2
    for run in runs:
        assert f"{len(wanted.shards)} shards, {len(wanted.shards)} in the store" not in run.said(), "both compute"
        Shards(run.out)
    assert runs[0].unfinished() == []
    assert runs[0].finished_shards() == len(wanted.shards)


@pytest.mark.parametrize(
    ("named", "sentence"),
    [("tinny", "has no task tinny; it has tiny, other"), ("other", "soft_labels holds the soft labels of tiny, not of other")],
)
def test_another_task_than_that_of_the_soft_labels_is_rejected(folder: Path, teacher: Path, named: str, sentence: str) -> None:
    stage = Stage(folder, teacher)
    params = folder / "shards.yaml"
    params.write_text(params.read_text().replace("  tiny: {}", "  tiny: {}\n  other: {}"))
    stage.arguments[stage.arguments.index("tiny")] = named
    code, said = stage.run_here()
    assert (code, sentence in said) == (1, True), said
    assert not stage.out.exists()
