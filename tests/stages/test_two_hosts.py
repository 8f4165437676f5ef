"""A Ray cluster whose nodes share a bucket: one is lost half-way, another one joins."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from stages.augment import main as augment
from stages.distill import main as distill
from stages.soft_label import main as soft_label
from tests.bucket import bucket, names, server
from tests.running import NODE, ROOT, nodes
from tests.stages.test_bucket import Machine, local

__all__ = ["bucket", "local", "server"]

SECONDS = 180.0


def start(module: str, arguments: Sequence[str], address: str) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-m", module, *arguments], cwd=ROOT, env=environment)


@pytest.mark.timeout(600)
def test_a_node_lost_half_way_and_one_that_joins_change_no_byte(
    bucket: str, local: Machine, server: str, prepared: Path, teacher: Path, tmp_path: Path
) -> None:
    machine = Machine(tmp_path / "machine", bucket, prepared, teacher, workers=2)
    with nodes(2) as cluster:
        assert start("stages.soft_label", machine.arguments(soft_label), cluster.address).wait(SECONDS) == 0
        there, end = len(names(server)), time.monotonic() + SECONDS
        with start("stages.augment", machine.arguments(augment), cluster.address) as process:
            while len(names(server)) < there + 8:
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.02)
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
            assert process.poll() is None, "half-way"
            cluster.add_node(**NODE)
            assert process.wait(SECONDS) == 0
        assert machine.hash() == local.hash()

        data = machine.folder / "data"
        for name in ("soft_labels", "shards"):
            shutil.copytree(machine.folder / name, data / name / "tiny")
        shutil.copytree(teacher, data / "teacher" / "tiny")
        every = ["--all", str(data), "--params", str(machine.folder / "params.yaml")]
        assert start("stages.distill", every, cluster.address).wait(SECONDS) == 0
    machine.run(distill)
    weights = (local.folder / "half" / "model.safetensors").read_bytes()
    assert (machine.folder / "half" / "model.safetensors").read_bytes() == weights
    assert not list((machine.folder / "cache").glob(".unfinished-*")), "it was fetched, not trained here"
