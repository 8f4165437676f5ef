import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from pipeline.augment import passes
from pipeline.augment.cluster import RuntimeSettings
from pipeline.augment.jobs import Job
from pipeline.augment.passes import AugmentSettings, ScoreSettings
from pipeline.augment.teacher import FrozenTeacher
from pipeline.shards.manifest import manifest_hash
from pipeline.shards.reader import Shards
from tests.world import make_task, save_prepared

ROOT = Path(__file__).parents[2]
AUGMENT: dict[str, Any] = {
    "variants": 4,
    "perturbation": {
        "objective": "divergence",
        "norm": "l2",
        "radius": {"divergence": 0.05},
        "steps": 4,
        "step_size": 0.4,
        "start": 0.5,
        "special_tokens": False,
    },
    "codec": "int8",
    "seed": 1,
    "calibration_rows": 16,
    "batch_rows": 8,
}
SECONDS = 120.0
"""After which something that should happen is given up."""


class InThisProcess:
    """Does the jobs without Ray, for the run that nobody disturbs."""

    def __init__(self, teacher: Path, runtime: RuntimeSettings) -> None:
        self._teacher = teacher

    def __enter__(self) -> "InThisProcess":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Any]]:
        frozen = FrozenTeacher(self._teacher)
        return ((job, job.run(frozen)) for job in jobs)


class Stage:
    """``python -m stages.augment`` in a folder of its own, as a process that can be killed."""

    def __init__(self, folder: Path, teacher: Path) -> None:
        self.store, self.out, self.output = folder / "store", folder / "shards", folder / "output.txt"
        runtime = {"ray_address": None, "workers": 2, "store": str(self.store)}
        (folder / "params.yaml").write_text(yaml.safe_dump({"augment": AUGMENT, "runtime": runtime}), encoding="utf-8")
        self._command = [
            sys.executable,
            "-m",
            "stages.augment",
            "--task",
            "tiny",
            "--scores",
            "scores",
            "--teacher",
            str(teacher),
        ]
        self._folder = folder
        self._seen: dict[int, psutil.Process] = {}

    def start(self) -> psutil.Process:
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])
        with self.output.open("w") as output:
            self._process = subprocess.Popen(
                [*self._command, "--out", "shards"],
                cwd=self._folder, env=environment, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        return psutil.Process(self._process.pid)

    def said(self) -> str:
        return self.output.read_text(encoding="utf-8")

    def finished_shards(self) -> int:
        return len([path for path in self.store.glob("*.json") if not path.name.endswith(".note.json")])

    def family(self) -> list[psutil.Process]:
        """All processes of the run that were ever seen and live."""
        try:
            for process in psutil.Process(self._process.pid).children(recursive=True):
                self._seen.setdefault(process.pid, process)
        except psutil.NoSuchProcess:
            pass
        return [process for process in self._seen.values() if lives(process)]

    def until(self, happened: Callable[[], bool]) -> None:
        began = time.monotonic()
        while not happened():
            assert self._process.poll() is None, f"the stage ended too early:\n{self.said()}"
            assert time.monotonic() - began < SECONDS, f"it did not come to that:\n{self.said()}"
            time.sleep(0.05)
        self.family()

    def workers(self) -> list[psutil.Process]:
        return [process for process in self.family() if "ray::Worker" in title(process)]

    def end(self) -> int:
        self.family()
        return self._process.wait(timeout=SECONDS)

    def left_behind(self) -> list[str]:
        """What still lives some seconds after the driver has ended; it is ended too.

        Ray's two agents do not count: for a minute they try to tell the server, which died with the driver, of its end.
        """
        began = time.monotonic()
        while (left := [name for process in self.family() if not (name := title(process)).endswith("Agent")]) and (
            time.monotonic() - began < 30
        ):
            time.sleep(0.1)
        self.kill_all()
        return left

    def kill_all(self) -> None:
        family = self.family()
        if self._process.poll() is None:
            self._process.kill()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).strip()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""


@pytest.fixture
def stage(tmp_path: Path, teacher: Path) -> Iterator[Stage]:
    prepared = save_prepared(tmp_path / "prepared", make_task(), {"train": 120, "dev": 5, "test": 5})
    runtime = RuntimeSettings(ray_address=None, workers=1, store=str(tmp_path / "store of scores"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "Cluster", InThisProcess)
        patch.setattr(os, "fsync", lambda descriptor: None)
        passes.score(prepared, teacher, ScoreSettings(rows_per_shard=8, batch_rows=8), runtime, tmp_path / "scores")
    made = Stage(tmp_path, teacher)
    yield made
    made.kill_all()


@pytest.fixture
def undisturbed(stage: Stage, tmp_path: Path, teacher: Path) -> Path:
    """What a run of another store gives that nobody disturbs."""
    runtime = RuntimeSettings(ray_address=None, workers=1, store=str(tmp_path / "another store"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "Cluster", InThisProcess)
        patch.setattr(os, "fsync", lambda descriptor: None)
        settings = AugmentSettings.model_validate(AUGMENT)
        passes.augment(tmp_path / "scores", teacher, settings, runtime, tmp_path / "undisturbed")
    return tmp_path / "undisturbed"


def test_a_killed_run_goes_on_where_it_was_and_outlives_a_killed_worker(stage: Stage, undisturbed: Path) -> None:
    shards = len(Shards(undisturbed).manifest.shards)

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

    assert manifest_hash(stage.out) == manifest_hash(undisturbed)
    assert {file.name for file in stage.out.iterdir()} == {file.name for file in undisturbed.iterdir()}
    Shards(stage.out)
    assert {path.suffix for path in stage.store.iterdir() if not path.name.startswith(".")} == {".arrow", ".json"}
