"""``python -m stages.augment`` of the tiny world as a real process."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from click.testing import CliRunner

import stages.augment
from pipeline.augment.passes import augment, soft_label
from pipeline.augment.plans import Augmentation
from pipeline.config.settings import AugmentSettings, InferenceSettings
from pipeline.shards.manifest import manifest_hash
from pipeline.store.store import Store
from tests.stored import shards_in
from tests.world import AUGMENT, RUNTIME, make_task, runtime_at, save_prepared, sections_of

ROOT = Path(__file__).parents[1]

SEARCH: dict[str, Any] = AUGMENT["perturbation"]

SECONDS = 120.0
"""Timeout."""


class Stage:
    """One command with its settings in a folder that holds ``soft_labels``."""

    def __init__(
        self,
        folder: Path,
        teacher: Path,
        settings: Mapping[str, Any] = AUGMENT,
        workers: int = 0,
        out: str = "shards",
        store: Path | None = None,
    ) -> None:
        self.store, self.out, self.output = store or folder / "store", folder / out, folder / f"{out}.txt"
        runtime = RUNTIME | {"workers": workers, "store": str(self.store)}
        params = folder / f"{out}.yaml"
        sections = {"tasks": {"tiny": {}}, **sections_of(settings), "runtime": runtime}
        params.write_text(yaml.safe_dump(sections), encoding="utf-8")
        given = {"task": "tiny", "soft-labels": "soft_labels", "teacher": teacher, "params": params, "out": out}
        self.arguments = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        self._folder = folder
        self._seen: dict[int, psutil.Process] = {}

    def start(
        self,
        *program: str,
        limit: Callable[[], object] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> psutil.Process:
        """Start it, or another program with its arguments; ``limit`` is called in the new process."""
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        with self.output.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, *(program or ("-m", "stages.augment")), *self.arguments],
                cwd=self._folder,
                env=inherited | {"PYTHONPATH": paths} | dict(environment or {}),
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=limit,
            )
        return psutil.Process(self._process.pid)

    def run(self, *program: str, limit: Callable[[], object] | None = None) -> int:
        """Start it and wait for its end."""
        self.start(*program, limit=limit)
        return self.end()

    def run_here(self) -> tuple[int, str]:
        """Run the command in this process: its exit code, and the last line of stderr."""
        with contextlib.chdir(self._folder):
            result = CliRunner().invoke(stages.augment.main, self.arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stderr.splitlines()[-1] if result.stderr else ""

    def said(self) -> str:
        return self.output.read_text(encoding="utf-8")

    def last_line(self) -> str:
        return self.said().splitlines()[-1]

    def hash(self) -> str:
        return manifest_hash(self.out)

    def finished_shards(self) -> int:
        """Those of variants."""
        entries = (Store(self.store).named(path.parent.name) for path in shards_in(self.store))
        return len([entry for entry in entries if entry and entry.key["content"] == "variants"])

    def unfinished(self) -> list[str]:
        """Names in the store that are no finished entries."""
        names = [path.name for path in self.store.iterdir()] if self.store.is_dir() else []
        return sorted(name for name in names if Store(self.store).named(name) is None)

    def family(self) -> list[psutil.Process]:
        """All processes of the run that were ever seen and live."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self._process.pid).children(recursive=True):
                self._seen.setdefault(process.pid, process)
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
        """Kill what still lives some seconds after the driver ended; its names.

        Ray's two agents do not count: they retry for a minute to reach the server, which died with the driver.
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
            self._process.wait()
        kill(family)


def kill(processes: list[psutil.Process]) -> None:
    """SIGKILL to those that still live."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)


def lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).strip()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""


def labelled(folder: Path, teacher: Path, rows: int, rows_per_shard: int = 8) -> Path:
    """A corpus of so many training rows, and its soft labels in ``folder / "soft_labels"``."""
    prepared = save_prepared(folder / "prepared", make_task(), {"train": rows, "dev": 5, "test": 5})
    settings = InferenceSettings(rows_per_shard=rows_per_shard, batch_size=8, precision="float32")
    with unsynced():
        soft_label(prepared, teacher, settings, runtime_at(folder / "soft_labels"), folder / "soft_labels")
    return folder / "soft_labels"


def undisturbed(folder: Path, teacher: Path, settings: Mapping[str, Any] = AUGMENT) -> Path:
    """The variants of an undisturbed run: one process, no Ray, a store of its own below ``folder / "undisturbed"``."""
    out = folder / "undisturbed" / "shards"
    plan = Augmentation.of(folder / "soft_labels", teacher, AugmentSettings.model_validate(settings))
    with unsynced():
        augment(plan, runtime_at(out.parent), out)
    return out


NODE: dict[str, Any] = {"num_cpus": 1, "num_gpus": 0, "include_dashboard": False, "object_store_memory": 80 * 2**20}
"""A node of ``nodes``, with a place for one worker."""


@contextlib.contextmanager
def nodes(count: int) -> Iterator[Any]:
    """A ``ray.cluster_utils.Cluster`` on loopback."""
    from ray.cluster_utils import Cluster  # here, since most tests need no Ray

    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PYTHONPATH", paths)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = Cluster(initialize_head=True, head_node_args=NODE)
        try:
            for _ in range(count - 1):
                made.add_node(**NODE)
            yield made
        finally:
            made.shutdown()


@contextlib.contextmanager
def unsynced() -> Iterator[None]:
    """Without fsync, which takes half the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield
