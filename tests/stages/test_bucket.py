"""The stages with a store in a bucket, and what goes wrong on the way to it."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from pipeline.config.settings import InferenceSettings
from pipeline.shards.manifest import MANIFEST_FILE, Manifest, manifest_hash
from pipeline.store.keys import key_hash
from pipeline.store.store import RECEIPT
from stages.augment import main as augment
from stages.distill import main as distill
from stages.evaluate import main as evaluate
from stages.soft_label import main as soft_label
from stages.store import main as store
from tests.bucket import BUCKET, breaking, bucket, client, names, objects, server
from tests.parameters import changed, check
from tests.running import ROOT
from tests.world import AUGMENT, RUNTIME, STUDENT, TRAINING, sections_of

__all__ = ["bucket", "server"]

INFERENCE = InferenceSettings(rows_per_shard=8, batch_size=8, precision="float32").model_dump()


class Machine:
    """The stages in a folder of their own."""

    def __init__(self, folder: Path, url: str, prepared: Path, teacher: Path, **runtime: Any) -> None:
        folder.mkdir()
        self.folder, self.prepared, self.teacher = folder, prepared, teacher
        cached = {"cache": str(folder / "cache"), "store": url}
        sections: dict[str, Any] = sections_of(AUGMENT) | {"inference": INFERENCE, "runtime": RUNTIME | cached | runtime}
        sections |= {"tasks": {"tiny": {}}, "students": {"half": {"num_hidden_layers": 1}}, "training": TRAINING}
        sections |= {
            "distill": {name: value for name, value in STUDENT.items() if name not in ("training", "num_hidden_layers")}
        }
        sections |= {"evaluate": {"bootstrap_resamples": 100, "timed_rows": 2}}
        (folder / "params.yaml").write_text(yaml.safe_dump(sections))

    def arguments(self, command: Any) -> list[str]:
        soft_labels, shards, out = (self.folder / name for name in ("soft_labels", "shards", "half"))
        given: dict[str, Any] = {
            soft_label: {"prepared": self.prepared, "out": soft_labels},
            augment: {"task": "tiny", "soft-labels": soft_labels, "out": shards},
            distill: {
                "student": "half", "soft-labels": soft_labels, "shards": shards, "out": out, "cost": self.folder / "cost.json",
            },
            evaluate: {"soft-labels": soft_labels, "student": out, "out": self.folder / "evaluation"},
        }[command] | {"teacher": self.teacher, "params": self.folder / "params.yaml"}  # fmt: skip
        return [word for name, value in given.items() for word in (f"--{name}", str(value))]

    def run(self, *commands: Any) -> None:
        for command in commands:
            result = CliRunner().invoke(command, self.arguments(command))
            assert result.exit_code == 0, result.output

    def error(self, command: Any) -> str:
        result = CliRunner().invoke(command, self.arguments(command))
        assert isinstance(result.exception, SystemExit), result.exception
        assert result.exit_code == 1, result.output
        (line,) = result.stderr.splitlines()
        return line

    def store(self, *arguments: object) -> Result:
        return CliRunner().invoke(store, [*map(str, arguments), "--params", str(self.folder / "params.yaml")])

    def hash(self) -> str:
        return manifest_hash(self.folder / "shards")

    def files(self, folder: str) -> list[str]:
        return sorted(path.name for path in (self.folder / folder).iterdir())


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, prepared: Path, teacher: Path) -> Machine:
    """The undisturbed run with a store on a disk."""
    folder = tmp_path_factory.mktemp("local")
    made = Machine(folder / "machine", str(folder / "store"), prepared, teacher)
    made.run(soft_label, augment, distill)
    return made


@pytest.fixture
def machine(bucket: str, tmp_path: Path, prepared: Path, teacher: Path) -> Machine:
    return Machine(tmp_path / "machine", bucket, prepared, teacher)


def test_a_bucket_gives_the_same_manifests_and_student_and_another_machine_needs_the_manifests_only(
    machine: Machine, local: Machine, tmp_path: Path, bucket: str, server: str
) -> None:
    machine.run(soft_label, augment, distill, evaluate)
    assert (machine.files("soft_labels"), machine.files("shards")) == ([MANIFEST_FILE], [MANIFEST_FILE])
    assert machine.hash() == local.hash()
    weights = (machine.folder / "half" / "model.safetensors").read_bytes()
    assert weights == (local.folder / "half" / "model.safetensors").read_bytes()

    other = Machine(tmp_path / "other", bucket, machine.prepared, machine.teacher)
    for name in ("soft_labels", "shards"):
        shutil.copytree(machine.folder / name, other.folder / name)
    client(server).delete_object(Bucket=BUCKET, Key=f"prefix/{student_in(server)}/{RECEIPT}")
    other.run(distill)
    assert (other.folder / "half" / "model.safetensors").read_bytes() == weights

    listed = machine.store("list", "--data", machine.folder)
    assert listed.stdout.splitlines()[-1].startswith(f"{bucket}: ")
    assert machine.store("verify").exit_code == 0
    shutil.rmtree(machine.folder / "shards")
    before = len(names(server))
    assert machine.store("gc", "--data", machine.folder, "--min-age-hours", 0, "--delete").exit_code == 0
    assert 0 < len(names(server)) < before


def student_in(server: str) -> str:
    receipts = {name: content for name, content in objects(server).items() if name.endswith(RECEIPT)}
    (found,) = [name.split("/")[0] for name, content in receipts.items() if b'"content": "student"' in content]
    return found


def test_a_driver_that_is_killed_resumes_from_the_bucket(machine: Machine, local: Machine, server: str) -> None:
    machine.run(soft_label)
    there = len(names(server))
    command = [sys.executable, "-m", "stages.augment", *machine.arguments(augment)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while len(names(server)) < there + 6:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert not (machine.folder / "shards").exists()
    result = CliRunner().invoke(augment, machine.arguments(augment))
    assert result.exit_code == 0, result.output
    assert " 0 in the store" not in result.stdout
    assert machine.hash() == local.hash()


@pytest.mark.parametrize("breaks", [1, 10**6])
def test_a_connection_that_breaks_costs_a_repeat_or_ends_in_a_sentence_and_loses_nothing(
    machine: Machine, local: Machine, server: str, monkeypatch: pytest.MonkeyPatch, breaks: int
) -> None:
    machine.run(soft_label)
    with breaking(server, after=2000, times=breaks) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        if breaks > 1:
            assert "the connection failed" in machine.error(augment)
        else:
            machine.run(augment)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    machine.run(augment)
    assert machine.hash() == local.hash()


def test_a_flipped_byte_in_the_bucket_stops_the_training_and_is_repaired(machine: Machine, local: Machine, server: str) -> None:
    machine.run(soft_label, augment)
    entry = Manifest.read(machine.folder / "shards").of_split("train")[0]
    name = f"{key_hash(entry.receipt.key)}/{entry.receipt.sha256}/shard.arrow"
    content = bytearray(objects(server)[name])
    content[len(content) // 2] ^= 1
    client(server).put_object(Bucket=BUCKET, Key=f"prefix/{name}", Body=bytes(content))
    shutil.rmtree(machine.folder / "cache")
    error = machine.error(distill)
    assert entry.file in error
    assert "shard.arrow is damaged" in error
    assert "python -m stages.store verify --delete" in error
    assert machine.store("verify", "--delete").exit_code == 1
    machine.run(augment, distill)
    assert machine.hash() == local.hash()


def test_credentials_and_bucket_are_checked_before_work(
    machine: Machine,
    prepared: Path,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[str, str], Path],
) -> None:
    absent = Machine(tmp_path / "absent", "s3://absent/prefix", prepared, teacher)
    assert "the store s3://absent/prefix cannot be written to: the bucket does not exist" in absent.error(soft_label)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "the connection failed" in machine.error(soft_label)
    assert not (machine.folder / "soft_labels").exists()
    settings = {"runtime.store": "s3://results/prefix", "runtime.cache": str(tmp_path / "cache")}
    status, text = check(write("params.yaml", changed(settings)))
    assert status == 1
    assert "the store s3://results/prefix cannot be written to: the connection failed" in text


def test_a_cache_that_is_too_small_is_an_error_before_the_training(
    machine: Machine, bucket: str, prepared: Path, teacher: Path, tmp_path: Path
) -> None:
    machine.run(soft_label, augment)
    small = Machine(tmp_path / "small", bucket, prepared, teacher, cache_bytes=20_000)
    for name in ("soft_labels", "shards"):
        shutil.copytree(machine.folder / name, small.folder / name)
    assert "more than runtime.cache_bytes 20,000" in small.error(distill)
    assert not (small.folder / "half").exists()
