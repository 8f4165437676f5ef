"""``python -m stages.distill`` as a real process that is killed, and run again."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.running import ROOT
from tests.world import OPTIMISER, RUNTIME, STUDENT

Folders = tuple[Path, Path]
LONG: dict[str, Any] = STUDENT | {"optimiser": OPTIMISER | {"num_train_epochs": 16}}
"""A hundred and twenty-eight steps with dropout and stored variants."""

SECONDS = 120.0


class Distill:
    """The command in a folder of its own."""

    def __init__(self, folder: Path, made: Folders, teacher: Path, trainers: int = 1) -> None:
        self.folder, self.out, self.store = folder, folder / "half", folder / "store"
        runtime = RUNTIME | {"store": "store", "save_steps": 3, "trainers": trainers}
        params = {"distill": LONG, "students": {"half": {"layers": 1}}, "runtime": runtime}
        folder.mkdir(exist_ok=True)
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
        for name, path in {"scores": made[0], "shards": made[1], "teacher": teacher}.items():
            (folder / name).symlink_to(path)
        given = {name: name for name in ("scores", "shards", "teacher")}  # relative, as dvc.yaml has them
        given |= {"student": "half", "params": "params.yaml", "out": "half", "cost": "cost.json"}
        words = [word for name, value in given.items() for word in (f"--{name}", value)]
        self._command = [sys.executable, "-m", "stages.distill", *words]

    def start(self) -> "subprocess.Popen[str]":
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            self._command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self) -> str:
        process = self.start()
        said, _ = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, said
        return said

    def states(self) -> list[Path]:
        """Whole and half-written states of the training."""
        return list(self.store.glob(".unfinished-*/checkpoint-*"))

    def until_states(self, least: int) -> None:
        """Wait until a state after that step is there."""
        end = time.monotonic() + SECONDS
        while not any(int(path.name.split("-")[1]) >= least for path in self.states()):
            assert time.monotonic() < end, "no state was kept"
            time.sleep(0.01)

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.out.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(made: Folders, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The student of a run that nobody killed."""
    distill = Distill(tmp_path_factory.mktemp("undisturbed"), made, teacher)
    distill.run()
    return distill.files()


def test_killed_at_random_moments_it_ends_with_the_same_losses_and_weights_to_the_last_digit(
    undisturbed: dict[str, bytes], made: Folders, teacher: Path, tmp_path: Path
) -> None:
    distill, chance = Distill(tmp_path / "killed", made, teacher), random.Random(1)
    reached = 0
    for _ in range(2):
        process = distill.start()
        distill.until_states(reached := reached + chance.randint(4, 50))
        time.sleep(chance.random() / 5)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.stdout
        process.stdout.close()
        assert not distill.out.exists(), "nothing half-written"
    said = distill.run()
    assert "distill tiny half: resumes after step " in said
    assert distill.files() == undisturbed
    assert not distill.states(), "what it went on from is gone when it is finished"


@pytest.mark.timeout(600)
def test_one_of_two_trainers_is_killed_and_they_go_on_together(made: Folders, teacher: Path, tmp_path: Path) -> None:
    distill = Distill(tmp_path / "together", made, teacher, trainers=2)
    process = distill.start()
    distill.until_states(9)
    family = psutil.Process(process.pid).children(recursive=True)
    trainers = [child for child in family if "RayTrainWorker" in " ".join(child.cmdline())]
    assert len(trainers) == 2
    trainers[1].kill()
    said, _ = process.communicate(timeout=4 * SECONDS)
    assert process.returncode == 0, said
    assert "distill tiny half: resumes after step " in said
    assert (distill.out / "model.safetensors").exists()


def test_two_runs_at_once_train_one_student_once(made: Folders, teacher: Path, tmp_path: Path) -> None:
    distill = Distill(tmp_path / "both", made, teacher)
    first = distill.start()
    distill.until_states(3)
    first.send_signal(signal.SIGSTOP)
    second = distill.start()
    assert second.stdout
    assert second.stdout.readline() == "distill tiny half: another process trains this; waiting for it\n"
    first.send_signal(signal.SIGCONT)
    for process in (first, second):
        said, _ = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, said
    assert "finished before, taken from" in said
