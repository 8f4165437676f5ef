"""What benchmarks.peers compares: the work of all ways, as files; and ours, which does what the stages do.

python -m benchmarks.peer_work FOLDER trains the students of FOLDER/ours.json from shards that it makes first.
"""

import json
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForSequenceClassification

from benchmarks.peer_loops import EPSILON, peak_mb
from benchmarks.worlds import runtime_of
from pipeline.augment.passes import augment, soft_label
from pipeline.augment.plans import Augmentation
from pipeline.config.errors import PipelineError, PipelineErrors
from pipeline.config.params import Settings
from pipeline.config.sections import read_sections
from pipeline.config.settings import AugmentSettings, StudentSettings, SurrogateSettings
from pipeline.corpus.encoding import Batch, Encoded, Integers, collate, encode
from pipeline.corpus.task import Task
from pipeline.distill.jobs import StudentJob, surrogate_key
from pipeline.distill.launch import obtain
from pipeline.distill.student import make_student
from pipeline.distill.surrogate import train_surrogate
from pipeline.models.folder import ModelFolder
from pipeline.models.forward import logits_of_rows, word_embeddings
from pipeline.models.loading import load_classifier
from pipeline.perturbation.search import scaled_epsilon
from pipeline.shards.manifest import Manifest
from pipeline.training.order import Lengths, steps_of
from pipeline.training.resuming import fetch_or_train

OURS = "ours"
TEST_BATCH = 32


def spread(table: pa.Table, most: int | None) -> pa.Table:
    """So many rows at equal distances, since a corpus may be sorted by its labels."""
    rows = table.num_rows if most is None else min(most, table.num_rows)
    return table.take(np.arange(rows) * table.num_rows // rows)


def cut(prepared: Path, out: Path, rows: int) -> Path:
    """A corpus of so many train rows, as large a share of dev, and little of test, which the ways do not need."""
    out.mkdir(parents=True)
    tables = {split: pq.read_table(prepared / f"{split}.parquet") for split in ("train", "dev", "test")}
    dev = max(round(tables["dev"].num_rows * rows / tables["train"].num_rows), 1)
    for split, most in (("train", rows), ("dev", dev), ("test", 8)):
        pq.write_table(spread(tables[split], most), out / f"{split}.parquet")
    Task.read(prepared).save(out)
    return out


@dataclass(frozen=True)
class Texts:
    """Rows of a split, as they are and as token ids."""

    columns: list[list[str]]
    labels: npt.NDArray[np.int64]
    encoded: Encoded
    pad_token_id: int

    @classmethod
    def of(cls, file: Path, teacher: ModelFolder, most: int | None = None) -> "Texts":
        """All rows of a file, or so many."""
        table, tokenizer = spread(pq.read_table(file), most), teacher.tokenizer
        columns = [table.column(name).to_pylist() for name in ("text_a", "text_b") if name in table.column_names]
        encoded = encode(tokenizer, columns[0], columns[1] if columns[1:] else None, tokenizer.model_max_length)
        return cls(columns, table.column("label").to_numpy().astype(np.int64), encoded, int(tokenizer.pad_token_id))

    def lengths(self) -> Lengths:
        """Number of tokens of each row."""
        return np.array([len(ids) for ids in self.encoded.input_ids], dtype=np.int64)

    def predictions(self, model: Path) -> Integers:
        """Classes [rows] by a saved model."""

        def batch(rows: Integers) -> Batch:
            ids, types = self.encoded.input_ids, self.encoded.token_type_ids
            return collate([ids[row] for row in rows], types and [types[row] for row in rows], self.pad_token_id)

        loaded = AutoModelForSequenceClassification.from_pretrained(model).eval()
        found: Integers = logits_of_rows(loaded, self.lengths(), batch, TEST_BATCH).argmax(1)
        return found


class Work(Settings):
    """What all ways train, as ours reads it."""

    adversarial: bool
    prepared: Path
    teacher: Path
    augment: AugmentSettings
    surrogate: SurrogateSettings
    students: dict[str, StudentSettings]

    @classmethod
    def of(cls, params: Path, prepared: Path, teacher: Path, share: float, epochs: int) -> "Work":
        """The settings of params.yaml for a ``share`` of the rows, in float32 and whole steps, with δ on every text.

        Raises:
            PipelineError: the peers have no counterpart to a setting.
        """
        sections, errors = read_sections(params)
        task = Task.read(prepared)
        if errors or sections.surrogate is None or task.name not in sections.variants:
            raise PipelineErrors(str(params), errors or [f"tasks has no {task.name}, the task of {prepared}"])
        students = {name: found for name, found in sections.students.items() if found.variant_policy != "none"}
        usual = sections.variants[task.name]
        losses = [student.loss for student in students.values()]
        if not losses or any(loss.labels or loss.form != "kl" or loss.soft_labels != loss.variants for loss in losses):
            raise PipelineError("the peers take students with variants, loss.form: kl, labels: 0 and equal other weights")
        if task.metric != "accuracy":
            raise PipelineError(f"the peers measure accuracy on dev, but the metric of {task.name} is {task.metric}")
        sample = max(round(share * usual.calibration_rows), 1)
        fixed = {"num_train_epochs": epochs, "precision": "float32", "gradient_accumulation_steps": 1}
        return cls(
            adversarial=True, prepared=prepared, teacher=teacher.resolve(),
            augment=usual.model_copy(update={"calibration_rows": sample, "recipes": [["perturb"]]}),
            surrogate=with_training(sections.surrogate, **fixed),
            students={name: with_training(student, **fixed) for name, student in students.items()},
        )  # fmt: skip

    def turn(self, adversarial: bool, number: int) -> "Work":
        """The work of a kind in a round, counted from 0, which other seeds belong to."""
        policy = {} if adversarial else {"variant_policy": "none"}
        students = {
            name: with_training(student, seed=student.training.seed + number).model_copy(update=policy)
            for name, student in self.students.items()
        }
        surrogate = with_training(self.surrogate, seed=self.surrogate.training.seed + number)
        return self.model_copy(update={"adversarial": adversarial, "students": students, "surrogate": surrogate})


def with_training(settings: Any, **changed: Any) -> Any:
    """Settings of a student or surrogate with some settings of its training changed."""
    return settings.model_copy(update={"training": settings.training.model_copy(update=changed)})


def ours(folder: Path) -> None:
    """What the stages from soft_label to distill do for FOLDER/ours.json, in this process; prints what it took."""
    torch.set_num_threads(1)
    start_mb, began, worked = peak_mb(), time.perf_counter(), time.process_time()
    work = Work.model_validate_json((folder / "ours.json").read_text(encoding="utf-8"))
    runtime, teacher, settings = runtime_of(folder / "store"), ModelFolder(work.teacher), work.augment
    soft_labels, shards, surrogate = folder / "soft_labels", folder / "shards", folder / "surrogate"
    soft_label(work.prepared, work.teacher, settings.inference, runtime, soft_labels)
    if work.adversarial:
        if settings.needs_surrogate():
            for number, one in enumerate(work.surrogate.each(), start=1):
                fetch_or_train(
                    surrogate_key(soft_labels, teacher, one), "surrogate", surrogate / str(number), runtime,
                    partial(train_surrogate, soft_labels, teacher, one),
                )  # fmt: skip
        augment(Augmentation.of(soft_labels, work.teacher, settings, surrogate), runtime, shards)
        epsilon = scaled_epsilon(
            float(Manifest.read(shards).details["epsilon"]),
            settings.perturbation.norm,
            word_embeddings(load_classifier(teacher)).detach(),
        )
        (folder / EPSILON).write_text(str(epsilon), encoding="utf-8")
    stage_one, steps = time.perf_counter() - began, {}
    for name, student in work.students.items():
        job, cost = StudentJob(name, soft_labels, shards, work.teacher, student), folder / f"{name}.json"
        obtain(job, runtime, folder / OURS / name, cost)
        steps[name] = json.loads(cost.read_text(encoding="utf-8"))["steps"]
    taken = {"seconds": time.perf_counter() - began, "processor": time.process_time() - worked, "stage_one": stage_one}
    print(json.dumps(taken | {"start_mb": start_mb, "peak_mb": peak_mb(), "steps": steps}))


def write_job(folder: Path, work: Work, gradient: str) -> None:
    """Write what the ways read, which is not timed: settings, rows, their order, and the students' initial weights."""
    folder.mkdir()
    (folder / "ours.json").write_text(work.model_dump_json(), encoding="utf-8")
    teacher, search = ModelFolder(work.teacher), work.augment.perturbation
    train, dev = (Texts.of(work.prepared / f"{split}.parquet", teacher) for split in ("train", "dev"))
    job = {"teacher": str(work.teacher), "train": train.columns, "dev": dev.columns, "labels": dev.labels.tolist()}
    if work.adversarial:
        job["search"] = search.model_dump(include={"norm", "init", "num_steps", "step_size"}) | {"gradient_from": gradient}
    students = {name: _initial(folder / "initial" / name, work, name, train.lengths()) for name in work.students}
    (folder / "job.json").write_text(json.dumps(job | {"students": students}), encoding="utf-8")


def _initial(folder: Path, work: Work, name: str, lengths: Lengths) -> dict[str, Any]:
    """Write a student's initial weights; returns how a peer trains it, step by step."""
    settings = work.students[name]
    training, loss = settings.training, settings.loss
    student = make_student(ModelFolder(work.teacher), settings, training.seed)
    student.model.save_pretrained(folder)
    torch.save(student.map, folder / "map.pt")
    epochs = [steps_of(lengths, training.batch_size, training.seed, epoch) for epoch in range(training.num_train_epochs)]
    passes = 2 if work.adversarial else 1  # a mean over clean and perturbed rows is half of the sum of their means
    return {
        "initial": str(folder),
        "training": training.model_dump(),
        "loss": {"temperature": loss.temperature, "weight": passes * loss.soft_labels * loss.temperature**2},
        "steps": sum(map(len, epochs)),
        "batches": [[rows.tolist() for rows in steps] for steps in epochs],
    }


if __name__ == "__main__":
    ours(Path(sys.argv[1]))
