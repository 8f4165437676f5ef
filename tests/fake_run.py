"""Products of every stage before the report, small and made up, in the form in which the stages write them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.task import Floats, Split, Task, measure
from pipeline.evaluation.quality import PREDICTIONS_FILE, QUALITY_FILE, SPEED_FILE, Qualities, Quality, Speed, Speeds, agreement
from pipeline.shards.manifest import Coding, Key, Manifest, ShardEntry, manifest_hash
from pipeline.shards.schema import FORMAT_VERSION, Content, shard_schema
from pipeline.shards.writer import write_shard
from pipeline.store.files import write_json

MOVIES = Task(name="movies", kind="classification", metric="accuracy", labels=("negative", "positive"), pair=False)
SCORES = Task(name="movie_scores", kind="regression", metric="pearson", labels=(), pair=False)

NOBODY, SHARDS = {"shards": 0.0, "student": 0.0}, {"shards": 1.0, "student": 0.0}
OWN, BOTH = {"shards": 0.0, "student": 1.0}, {"shards": 0.5, "student": 0.5}
OWN_PERTURBATION = {
    "objective": "gap",
    "norm": "l2",
    "radius": {"divergence": 0.1},
    "steps": 1,
    "step_size": 1.0,
    "start": 0.0,
    "special_tokens": False,
}
STUDENT: dict[str, Any] = {
    "start": "teacher",
    "layers": 3,
    "adversary": SHARDS,
    "variants": "rotate",
    "perturbation": OWN_PERTURBATION,
    "residual": False,
    "objective": {"hard": 0.0, "soft": 1.0, "perturbed": 1.0, "hidden": 0.0, "form": "kl", "temperature": 1.0},
    "optimiser": {"num_train_epochs": 4, "batch_size": 32, "learning_rate": 1e-4, "seed": 1},
}
"""As a lineage has them: without what is left as in the teacher."""

STUDENTS: dict[str, dict[str, Any]] = {
    "half": STUDENT,
    "half-plain": STUDENT | {"adversary": NOBODY},
    "narrow": STUDENT | {"layers": 6, "hidden": 192},
    "tiny": STUDENT | {"layers": 2, "hidden": 128, "optimiser": STUDENT["optimiser"] | {"num_train_epochs": 6}},
}
OTHERS: dict[str, dict[str, Any]] = {
    "own": STUDENT | {"adversary": OWN},
    "both": STUDENT | {"adversary": BOTH, "variants": {"worst_of": 2}, "residual": True},
    "elsewhere": STUDENT
    | {
        "start": {"checkpoint": "data/raw/small"},
        "objective": STUDENT["objective"] | {"temperature": {"first": 4.0, "last": 1.0}},
    },
}
"""Students whose settings have other forms."""

NOISE = {"half": 0.9, "half-plain": 1.2, "narrow": 1.6, "tiny": 2.4, "own": 0.8, "both": 0.85, "elsewhere": 1.3}
"""How far the students' answers stray from the label."""

LATENCY = {"half": 2.9, "half-plain": 2.95, "narrow": 3.6, "tiny": 0.7}
PARAMETERS = {"half": 17_400_000, "half-plain": 17_400_000, "narrow": 8_500_000, "tiny": 4_300_000}
SECONDS = {"half": 204.3, "half-plain": 101.0, "narrow": 4000.0, "tiny": 3.2}
PERTURBATION = {
    "objective": "divergence",
    "norm": "l2",
    "radius": 0.104,
    "steps": 3,
    "step_size": 0.5,
    "start": 0.3,
    "special_tokens": False,
}
AUGMENT = {
    "perturbation": PERTURBATION,
    "keep_label": False,
    "text_edits": {"mask": 0.12, "delete": 0.1, "swap": 0.1, "ngram": 5, "span": 0.3},
    "masked_lm": None,
    "mixing": {"alpha": 0.4},
    "codec": "sign",
    "seed": 13,
}
Recipes = Sequence[Sequence[str]]


def params(*tasks: str, students: Mapping[str, Any] = STUDENTS) -> dict[str, Any]:
    """What params.yaml says, as far as evaluate and report read it."""
    evaluate = {"batch_rows": 8, "bootstrap_resamples": 200, "timed_rows": 20, "timed_rounds": 3}
    return {"tasks": {task: {} for task in tasks}, "students": dict(students), "evaluate": evaluate}


def labels_of(task: Task, rows: int) -> Floats:
    """Labels that the task admits, [rows]."""
    random = np.random.default_rng(1)
    return random.integers(0, 2, rows).astype(float) if task.kind == "classification" else random.normal(size=rows)


def answers(task: Task, labels: Floats, noise: float, seed: int) -> Floats:
    """Logits [rows, outputs] that stray from the labels by ``noise``."""
    strayed = np.random.default_rng(seed).normal(scale=noise, size=len(labels))
    if task.kind == "regression":
        return np.asarray(labels + strayed, dtype=np.float32)[:, None]
    margin = labels * 2 - 1 + strayed
    return np.stack([-margin, margin], axis=1).astype(np.float32)


def write_shards(
    folder: Path, content: Content, task: Task, parts: Mapping[tuple[Split, int], dict[str, Any]], key: Key, **more: Any
) -> Manifest:
    """Write one shard a (split, variant) with the given columns, and the manifest."""
    entries = []
    for (split, variant), columns in parts.items():
        file = f"{split}-variant-{variant}-00000.arrow"
        own = key | {"variant": variant, "examples": f"{split} {variant}"}
        receipt = write_shard(folder / file, shard_schema(content, task.kind, True), columns, own, {}, {})
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


def score_columns(task: Task, split: Split, labels: Floats, logits: Floats, variant: int = 0) -> dict[str, Any]:
    """Columns of rows with random ids below 50 and lengths from 3 to 20."""
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


def write_scores(data: Path, task: Task, rows: int, made_with: Key | None = None) -> None:
    """The scores of all splits, ``rows`` each, of the teacher with this lineage or of none."""
    labels = labels_of(task, rows)
    splits: tuple[Split, ...] = ("train", "dev", "test")
    parts = {(split, 0): score_columns(task, split, labels, answers(task, labels, 0.7, 0)) for split in splits}
    write_shards(
        data / "scores" / task.name, "scores", task, parts, _key(task, "scores") | (made_with or {}), details={"truncated": 3}
    )


def write_perturbations(data: Path, task: Task, rows: int, variants: int, recipes: Recipes = (("perturb",),)) -> None:
    """Variants of the train split, with δ where their recipe says so, whose divergences are log-normal."""
    labels = labels_of(task, rows)
    logits = answers(task, labels, 0.7, 0)
    parts: dict[tuple[Split, int], dict[str, Any]] = {}
    for variant in range(1, variants + 1):
        random, perturbed = np.random.default_rng(variant), "perturb" in recipes[(variant - 1) % len(recipes)]
        columns = score_columns(task, "train", labels, logits, variant)
        parts["train", variant] = columns | {
            "partner_id": [None] * rows,
            "partner_ids": [None] * rows,
            "own_weight": [None] * rows,
            "delta": [b"" if perturbed else None] * rows,
            "delta_scale": [np.ones(len(row), dtype=np.float32) if perturbed else None for row in columns["input_ids"]],
            "perturbed_logits": list(logits),
            "divergence": random.lognormal(-2.5, 1.4, rows).astype(np.float32),
            "flipped": random.random(rows) < (0.15 + 0.02 * variant if task.kind == "classification" else 0),
        }
    key = _key(task, "perturbations")
    radius = 0.104 if any("perturb" in recipe for recipe in recipes) else 0.0
    found = {"radius": radius, "flips": 0.187, "divergence": 0.142, "rows": 256}
    details = {
        "scores": manifest_hash(data / "scores" / task.name),
        "recipes": [list(recipe) for recipe in recipes],
        "radius": radius,
        "calibration": found,
        "snapshots": 0,
        "settings": AUGMENT,
    }
    more = {"coding": Coding(codec="sign", width=384), "variants": variants, "details": details}
    write_shards(data / "shards" / task.name, "perturbations", task, parts, key, **more)


def write_student(
    data: Path, task: Task, name: str, settings: Mapping[str, Any], logits: Floats, labels: Floats, teacher: Floats
) -> None:
    """A student's history, lineage, evaluation and what its training took."""
    folder, epochs = data / "student" / task.name / name, int(settings["optimiser"]["num_train_epochs"])
    _write_history(folder, measure(task, labels, logits), epochs)
    start = settings["start"]["checkpoint"] if isinstance(settings["start"], Mapping) else settings["start"]
    lineage = {
        "task": task.name,
        "student": name,
        "settings": dict(settings),
        "teacher": "7d" * 32,
        "scores": manifest_hash(data / "scores" / task.name),
        "shards": None if not settings["adversary"]["shards"] else manifest_hash(data / "shards" / task.name),
        "dev": measure(task, labels, logits) + 0.004,
        "teacher_dev": measure(task, labels, teacher) + 0.004,
        "best_epoch": epochs - 1,
        "start": {"start": start, "layers": [0, 2, 4], "parameters_copied": PARAMETERS.get(name, 0), "embedding_error": 0.0131},
    }
    write_json(folder / "lineage.json", lineage)
    cost = {"seconds": SECONDS.get(name, 77.7), "steps": 80 * epochs}
    write_json(data / "training" / task.name / f"{name}.json", cost)
    latency = LATENCY.get(name, 2.0)
    write_evaluation(data / "evaluation" / task.name / name, task, logits, labels, teacher, name, latency)


def write_evaluation(
    folder: Path, task: Task, logits: Floats, labels: Floats, teacher: Floats, name: str, latency: float
) -> None:
    """What the evaluate stage writes."""
    value, best = measure(task, labels, logits), measure(task, labels, teacher)
    size = PARAMETERS.get(name, 1_000_000)
    student = Quality(
        value=value,
        retained=value / best if best > 0 else None,
        agreement=agreement(task, logits, teacher),
        parameters=size,
        bytes=4 * size,
    )
    retained = 1.0 if best > 0 else None
    own = Quality(value=best, retained=retained, agreement=1.0, parameters=22_700_000, bytes=90_900_000)
    speeds = Speeds(
        teacher=Speed(latency_ms=5.8, rows_per_s=302.0), student=Speed(latency_ms=latency, rows_per_s=1750 / latency)
    )
    write_json(folder / QUALITY_FILE, Qualities(rows=len(labels), teacher=own, student=student).model_dump())
    write_json(folder / SPEED_FILE, speeds.model_dump())
    columns = {
        "id": [f"test-{number}" for number in range(len(labels))],
        "label": labels,
        "teacher_logits": pa.array(list(teacher), pa.list_(pa.float32())),
        "student_logits": pa.array(list(logits), pa.list_(pa.float32())),
    }
    pq.write_table(pa.table(columns), folder / PREDICTIONS_FILE)


def write_run(
    data: Path,
    task: Task = MOVIES,
    rows: int = 60,
    variants: int = 2,
    students: Mapping[str, Mapping[str, Any]] = STUDENTS,
    noise: Mapping[str, float] = NOISE,
    recipes: Recipes = (("perturb",),),
) -> None:
    """All products of one task."""
    write_scores(data, task, rows)
    write_perturbations(data, task, rows, variants, recipes)
    labels = labels_of(task, rows)
    teacher = answers(task, labels, 0.7, 0)
    _write_history(data / "teacher" / task.name, measure(task, labels, teacher), 3)
    for number, (name, settings) in enumerate(students.items()):
        write_student(data, task, name, settings, answers(task, labels, noise[name], number + 2), labels, teacher)


def _key(task: Task, content: Content) -> Key:
    return {
        "format_version": FORMAT_VERSION,
        "teacher": "7d" * 32,
        "tokenizer": "c4" * 32,
        "kind": task.kind,
        "labels": list(task.labels),
        "max_length": 128,
        "content": content,
        "batch_rows": 64,
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
