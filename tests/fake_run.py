"""Small made-up products of every stage before the report, in the stages' own formats."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.corpus import Split
from pipeline.corpus.task import Floats, Task, measure
from pipeline.evaluation.quality import PREDICTIONS_FILE, QUALITY_FILE, SPEED_FILE, Qualities, Quality, Speed, Speeds, agreement
from pipeline.shards.manifest import Coding, Manifest, ShardEntry, manifest_hash
from pipeline.shards.schema import FORMAT_VERSION, Content, shard_schema
from pipeline.shards.writer import write_shard
from pipeline.store.files import write_json
from pipeline.store.keys import Key
from tests.world import RUNTIME

MOVIES = Task(name="movies", kind="classification", metric="accuracy", labels=("negative", "positive"), pair=False)
RATINGS = Task(name="movie_ratings", kind="regression", metric="pearson", labels=(), pair=False)

STUDENT: dict[str, Any] = {
    "initial_weights": "teacher",
    "num_hidden_layers": 3,
    "variant_policy": "rotate",
    "loss": {"labels": 0.0, "soft_labels": 1.0, "variants": 1.0, "form": "kl", "temperature": 1.0},
    "training": {"num_train_epochs": 4, "batch_size": 32, "learning_rate": 1e-4, "seed": 1},
}
"""Settings as in a lineage."""

STUDENTS: dict[str, dict[str, Any]] = {
    "half": STUDENT,
    "half-plain": STUDENT | {"variant_policy": "none"},
    "narrow": STUDENT | {"num_hidden_layers": 6, "hidden_size": 192},
    "tiny": STUDENT | {"num_hidden_layers": 2, "hidden_size": 128, "training": STUDENT["training"] | {"num_train_epochs": 6}},
}

NOISE = {"half": 0.9, "half-plain": 1.2, "narrow": 1.6, "tiny": 2.4}
"""Standard deviation of the noise in each student's logits."""

LATENCY = {"half": 2.9, "half-plain": 2.95, "narrow": 3.6, "tiny": 0.7}
PARAMETERS = {"half": 17_400_000, "half-plain": 17_400_000, "narrow": 8_500_000, "tiny": 4_300_000}
SECONDS = {"half": 204.3, "half-plain": 101.0, "narrow": 4000.0, "tiny": 3.2}
AUGMENT = {"perturbation": {"gradient_from": "teacher", "norm": "l2", "epsilon": 0.104}, "seed": 13}
Recipes = Sequence[Sequence[str]]


def params(*tasks: str, students: Mapping[str, Any] = STUDENTS) -> dict[str, Any]:
    """The sections of params.yaml that evaluate, export and report read."""
    evaluate = {"bootstrap_resamples": 200, "timed_rows": 20}
    return {"tasks": {task: {} for task in tasks}, "students": dict(students), "evaluate": evaluate, "runtime": RUNTIME}


def labels_of(task: Task, rows: int) -> Floats:
    """Random labels of the task, [rows]."""
    random = np.random.default_rng(1)
    return random.integers(0, 2, rows).astype(float) if task.kind == "classification" else random.normal(size=rows)


def noisy_logits(task: Task, labels: Floats, noise: float, seed: int) -> Floats:
    """Logits [rows, outputs]: the labels with Gaussian noise."""
    strayed = np.random.default_rng(seed).normal(scale=noise, size=len(labels))
    if task.kind == "regression":
        return np.asarray(labels + strayed, dtype=np.float32)[:, None]
    margin = labels * 2 - 1 + strayed
    return np.stack([-margin, margin], axis=1).astype(np.float32)


def write_shards(
    folder: Path, content: Content, task: Task, parts: Mapping[tuple[Split, int], dict[str, Any]], key: Key, **more: Any
) -> Manifest:
    """Write one shard for each (split, variant), and the manifest."""
    entries = []
    for (split, variant), columns in parts.items():
        file = f"{split}-variant-{variant}-00000.arrow"
        own = key | {"variant": variant, "examples": f"{split} {variant}"}
        statistics = {"divergence": 0.14, "flipped": 9.0}
        receipt = write_shard(folder / file, shard_schema(content, task.kind, True), columns, own, {}, statistics)
        entries.append(ShardEntry(file=file, split=split, variant=variant, partition=0, receipt=receipt))
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        content=content,
        task=task,
        key=key,
        token_types=True,
        pad_token_id=0,
        shards=tuple(entries),
        **({"coding": None, "variants": 0, "details": {}} | more),
    )
    manifest.save(folder)
    return manifest


def labelled_columns(task: Task, split: Split, labels: Floats, logits: Floats, variant: int = 0) -> dict[str, Any]:
    """Rows with random ids below 50 and 3 to 20 tokens."""
    random = np.random.default_rng(len(labels))
    ids = [random.integers(5, 50, length).astype(np.int32) for length in random.integers(3, 21, len(labels))]
    return {
        "example_id": [f"{split}-{number}" for number in range(len(labels))],
        "variant": [variant] * len(labels),
        "input_ids": ids,
        "token_type_ids": [np.zeros(len(row), dtype=np.int8) for row in ids],
        "label": labels.astype(int).tolist() if task.kind == "classification" else labels.tolist(),
        "teacher_logits": list(logits),
    }


def write_soft_labels(data: Path, task: Task, rows: int, made_with: Key | None = None) -> None:
    """The soft labels of all splits, ``rows`` each; ``made_with`` is the teacher's lineage."""
    labels = labels_of(task, rows)
    splits: tuple[Split, ...] = ("train", "dev", "test")
    parts = {(split, 0): labelled_columns(task, split, labels, noisy_logits(task, labels, 0.7, 0)) for split in splits}
    key = _key(task, "soft_labels") | (made_with or {})
    write_shards(data / "soft_labels" / task.name, "soft_labels", task, parts, key, details={"truncated": 3})


def write_perturbations(data: Path, task: Task, rows: int, variants: int, recipes: Recipes = (("perturb",),)) -> None:
    """Variants of the train split with log-normal divergences."""
    labels = labels_of(task, rows)
    logits = noisy_logits(task, labels, 0.7, 0)
    parts: dict[tuple[Split, int], dict[str, Any]] = {}
    for variant in range(1, variants + 1):
        random, perturbed = np.random.default_rng(variant), "perturb" in recipes[(variant - 1) % len(recipes)]
        columns = labelled_columns(task, "train", labels, logits, variant)
        parts["train", variant] = columns | {
            "delta": [b"" if perturbed else None] * rows,
            "delta_scale": [np.ones(len(row), dtype=np.float32) if perturbed else None for row in columns["input_ids"]],
            "perturbed_logits": list(logits),
            "divergence": random.lognormal(-2.5, 1.4, rows).astype(np.float32),
            "flipped": random.random(rows) < (0.15 + 0.02 * variant if task.kind == "classification" else 0),
        }
    key = _key(task, "variants")
    epsilon = 0.104 if any("perturb" in recipe for recipe in recipes) else 0.0
    found = {"epsilon": epsilon, "divergence": 0.142, "rows": 256}
    details = {
        "soft_labels": manifest_hash(data / "soft_labels" / task.name),
        "recipes": [list(recipe) for recipe in recipes],
        "epsilon": epsilon,
        "calibration": found,
        "checkpoints": 0,
        "settings": AUGMENT,
    }
    more = {"coding": Coding(codec="sign", width=384), "variants": variants, "details": details}
    write_shards(data / "shards" / task.name, "variants", task, parts, key, **more)


def write_student(data: Path, task: Task, name: str, logits: Floats, labels: Floats, teacher: Floats) -> None:
    """A student's history, lineage, cost and evaluation."""
    settings, size, latency = STUDENTS.get(name, STUDENT), PARAMETERS.get(name, 1_000_000), LATENCY.get(name, 2.0)
    folder, epochs = data / "student" / task.name / name, int(settings["training"]["num_train_epochs"])
    value, best = measure(task, labels, logits), measure(task, labels, teacher)
    _write_history(folder, value, epochs)
    lineage = {
        "settings": dict(settings),
        "soft_labels": manifest_hash(data / "soft_labels" / task.name),
        "shards": None if settings["variant_policy"] == "none" else manifest_hash(data / "shards" / task.name),
        "dev": value + 0.004,
        "start": {"initial_weights": "teacher", "layers": [0, 2, 4], "parameters_copied": size},
    }
    write_json(folder / "lineage.json", lineage)
    write_json(data / "training" / task.name / f"{name}.json", {"seconds": SECONDS.get(name, 77.7), "steps": 80 * epochs})
    alike = agreement(task, logits, teacher)
    own = Quality(value=value, retained=value / best, agreement=alike, parameters=size, bytes=4 * size)
    other = Quality(value=best, retained=1.0, agreement=1.0, parameters=22_700_000, bytes=90_900_000)
    speeds = Speeds(
        teacher=Speed(latency_ms=5.8, rows_per_s=302.0), student=Speed(latency_ms=latency, rows_per_s=1750 / latency)
    )
    evaluation = data / "evaluation" / task.name / name
    write_json(evaluation / QUALITY_FILE, Qualities(rows=len(labels), teacher=other, student=own).model_dump())
    write_json(evaluation / SPEED_FILE, speeds.model_dump())
    columns = {
        "id": [f"test-{number}" for number in range(len(labels))],
        "label": labels,
        "teacher_logits": pa.array(list(teacher), pa.list_(pa.float32())),
        "student_logits": pa.array(list(logits), pa.list_(pa.float32())),
    }
    pq.write_table(pa.table(columns), evaluation / PREDICTIONS_FILE)


def write_run(
    data: Path,
    task: Task = MOVIES,
    rows: int = 60,
    variants: int = 2,
    students: Sequence[str] = tuple(STUDENTS),
    recipes: Recipes = (("perturb",),),
) -> None:
    """All products of one task; a student with another name has the settings of ``half``."""
    write_soft_labels(data, task, rows)
    write_perturbations(data, task, rows, variants, recipes)
    labels = labels_of(task, rows)
    teacher = noisy_logits(task, labels, 0.7, 0)
    _write_history(data / "teacher" / task.name, measure(task, labels, teacher), 3)
    for number, name in enumerate(students):
        write_student(data, task, name, noisy_logits(task, labels, NOISE.get(name, 1.0), number + 2), labels, teacher)


def _key(task: Task, content: Content) -> Key:
    return {
        "format_version": FORMAT_VERSION,
        "teacher": "7d" * 32,
        "tokenizer": "c4" * 32,
        "kind": task.kind,
        "labels": list(task.labels),
        "max_length": 128,
        "content": content,
        "batch_size": 64,
    }


def _write_history(folder: Path, final: float, epochs: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shape = 1 - np.exp(-1.3 * np.arange(1, epochs + 1))
    table = {
        "epoch": range(1, epochs + 1),
        "step": [80 * (number + 1) for number in range(epochs)],
        "loss": (1.2 - final) * (0.4 + (1 - shape)),
        "dev": final * (0.85 + 0.15 * shape),
    }
    pd.DataFrame(table).to_csv(folder / "history.csv", index=False)


def read(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
