"""A store with shards and students in it, and folders of products that use it."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.corpus.task import Task
from pipeline.distill.jobs import COST_FILE, OUTCOME_FILE, Called, StudentStore
from pipeline.distill.training import LINEAGE_FILE, Outcome
from pipeline.store.hashing import Key, key_hash
from pipeline.shards.manifest import Manifest, ShardEntry
from pipeline.shards.schema import FORMAT_VERSION, shard_schema
from pipeline.store.store import Store
from pipeline.shards.writer import write_shard
from pipeline.store.files import write_json
from pipeline.training.trainer import HISTORY_FILE

TASK = Task(name="tiny", kind="classification", metric="accuracy", labels=("bad", "good"), pair=False)
SCORES: Key = {"content": "scores", "teacher": "ab" * 32, "batch_rows": 8}
SEARCH = {"objective": "divergence", "norm": "l2", "radius": 0.0143, "steps": 1}
PERTURBED: Key = {
    "content": "perturbations",
    "teacher": "ab" * 32,
    "computed_by": {"code": "ef" * 32},
    "perturbation": SEARCH,
    "codec": "int8",
}
STRONGER: Key = PERTURBED | {"perturbation": SEARCH | {"radius": 0.5}}
HOUR, DAY = 3600.0, 24 * 3600.0


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Where folders of products are published."""
    return tmp_path / "data"


@pytest.fixture
def store(data: Path) -> Store:
    """An empty store among them."""
    return Store(data / "store")


def key_of(shared: Key, number: int = 0, variant: int = 1) -> Key:
    return shared | {"examples": f"{number:064d}", "variant": variant}


def unfinished(store: Store, key: Key, held: Key | None = None) -> Any:
    """A shard before its receipt is written; its metadata holds its key, or another."""
    columns: dict[str, Any] = {
        "example_id": ["a", "b"],
        "variant": [1, 1],
        "input_ids": [[2, 7, 3], [2, 8, 9, 3]],
        "label": [0, None],
        "teacher_logits": [[0.5, -0.5], [1.0, 2.0]],
    }
    schema = shard_schema("scores", "classification", False)
    receipt = write_shard(store.shard_path(key), schema, columns, held or key, {}, {})
    return receipt.model_copy(update={"key": key})


def add(store: Store, shared: Key, count: int = 2) -> list[Key]:
    keys = [key_of(shared, number) for number in range(count)]
    for key in keys:
        store.finish(unfinished(store, key))
    return keys


def publish(folder: Path, store: Store, keys: list[Key]) -> Path:
    """A complete set in an output folder, hard-linked as the stages leave it."""
    folder.mkdir(parents=True)
    entries = []
    for number, key in enumerate(keys):
        receipt = store.receipt_named(store.shard_path(key).stem)
        assert receipt is not None
        store.place(key, folder / f"{number}.arrow")
        entries.append(ShardEntry(file=f"{number}.arrow", split="train", variant=1, partition=number, receipt=receipt))
    Manifest(
        format_version=FORMAT_VERSION,
        content="scores",
        task=TASK,
        key={},
        token_types=False,
        pad_token_id=0,
        coding=None,
        variants=1,
        details={},
        shards=tuple(entries),
    ).save(folder)
    return folder


def age(store: Store, seconds: float, key: Key | None = None) -> None:
    """Everything in the store, or what one key has there, was last touched so long ago."""
    then = time.time() - seconds
    for path in [store.shard_path(key), store.receipt_path(key)] if key else store.folder.iterdir():
        os.utime(path, (then, then))


def student_key(student: str = "half", **changed: Any) -> Key:
    return {"content": "student", "settings": student, "teacher": "ab" * 32, "computed_by": {"code": "ef" * 32}} | changed


def keep_student(store: StudentStore, student: str = "half", **changed: Any) -> Key:
    """A finished student of 1,000 bytes of weights, as the training leaves it."""
    key = student_key(student, **changed)
    with store.kept(key, Called(student, "tiny")) as folder:
        (folder / "model.safetensors").write_bytes(bytes(1000))
        (folder / HISTORY_FILE).write_text(f"epoch,step,loss,dev\n1,8,0.5,{key_hash(key)}\n")
        write_json(folder / COST_FILE, {"seconds": 1.0, "steps": 8})
        write_json(folder / OUTCOME_FILE, {"dev": 0.5})
    return key


def describe(folder: Path, outcome: Outcome) -> None:
    """Stands for what the stage distill writes beside a student that it has taken from the store."""
    write_json(folder / LINEAGE_FILE, outcome)


def begin_training(store: StudentStore, student: str = "half", **changed: Any) -> Key:
    """The states that a training leaves that was killed."""
    key = student_key(student, **changed)
    with store.alone(key, Called(student, "tiny")):
        state = store.states_of(key) / "checkpoint-8"
        state.mkdir(parents=True)
        (state / "optimizer.pt").write_bytes(bytes(500))
    return key


def age_students(store: StudentStore, seconds: float, place: Path | None = None) -> None:
    """Everything in the store, or in one folder of it, was last touched so long ago."""
    then, folder = time.time() - seconds, place or store.folder
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (then, then))
