"""Exports a student as a folder for onnxruntime, after checking its logits against torch on the test split."""

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from pipeline.config.errors import PipelineError
from pipeline.config.params import Settings
from pipeline.config.settings import EvaluationSettings
from pipeline.corpus.encoding import MODEL_INPUTS, Batch, Integers
from pipeline.corpus.seeding import seed_of
from pipeline.corpus.task import Floats, Task, measure
from pipeline.evaluation.onnx_graph import OPSET, check_installed, open_graph, write_graph, write_int8
from pipeline.evaluation.quality import BATCH_SIZE, Predict, Speed, agreement, check_labelled, check_labels, logits_of, speeds
from pipeline.models.folder import ModelFolder
from pipeline.models.forward import logits_from_ids
from pipeline.models.loading import load_classifier
from pipeline.shards.batches import inputs_at
from pipeline.shards.manifest import Manifest, check_agreement, check_trained_from
from pipeline.shards.reader import Rows, Shards
from pipeline.store.files import check_replaceable, folder_written_whole, write_json

FLOAT_FILE = "model.onnx"
INT8_FILE = "model.int8.onnx"
FACTS_FILE = "export.json"

LARGEST_DIFFERENCE = 1e-4
"""Largest accepted difference between a logit of the float file and torch's, relative to the largest logit."""

CHECKED_ROWS = (1, 2, 3, 5, 8, 13, 21, 32)
"""Batch sizes of the check, in turn."""


class File(Settings):
    """Quality of one exported file on the test split."""

    file: str
    value: float
    """The task's metric."""
    agreement: float
    """Share of predictions equal to torch's; for regression the Pearson correlation with torch's outputs."""
    difference: float
    """The largest absolute difference of a logit from torch's."""
    bytes: int


class Facts(Settings):
    """``export.json``: what was exported and how it was checked; the same bytes on every run."""

    task: Task
    student: str
    """Hash of the student's weights and configuration."""
    inputs: tuple[str, ...]
    """Each is int64 [rows, tokens], padded on the right."""
    max_length: int
    opset: int
    rows: int
    value: float
    """The task's metric computed by torch."""
    bytes: int
    """Size of the student's torch weights."""
    allowed: float
    """The largest accepted difference of a logit of the float file."""
    files: tuple[File, ...]


def export(student: Path, soft_labels: Path, out: Path, settings: EvaluationSettings, int8: bool) -> tuple[Facts, list[Speed]]:
    """Write the folder ``out``; returns its facts and the speeds of torch and then each file.

    Raises:
        PipelineError: a package or product is missing or does not fit, torch's exporter does not support the model, or the
            float file's logits differ from torch's. Nothing is written then.
    """
    check_installed()
    if not student.is_dir():
        raise PipelineError(f"the student {student} does not exist; make it with dvc repro")
    check_replaceable(out, [FACTS_FILE])
    shards = Shards.holding("soft_labels", soft_labels)
    manifest, rows = shards.manifest, shards.rows("test", 0)
    check_labelled(manifest.task, rows)
    opened = ModelFolder(student)
    model, tokenizer = _load(opened, soft_labels, manifest), opened.tokenizer
    pad = manifest.pad_token_id
    wanted = logits_of(model, rows, pad, BATCH_SIZE)
    with folder_written_whole(out) as folder:
        paths = [folder / FLOAT_FILE, *([folder / INT8_FILE] if int8 else [])]
        write_graph(model, manifest.token_types, paths[0])
        if int8:
            write_int8(*paths)
        found = {path: logits_in_mixed_batches(open_graph(path), rows, pad, wanted.shape[1]) for path in paths}
        check_difference(student, found[paths[0]], wanted)
        answers: list[Predict] = [partial(logits_from_ids, model), *(open_graph(path, threads=1) for path in paths)]
        cost = speeds(answers, rows, pad, settings.timed_rows)
        facts = _facts(opened, manifest, rows.labels(), wanted, found)
        tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "right"  # as the graph expects it
        tokenizer.save_pretrained(folder)
        shutil.copyfile(student / "config.json", folder / "config.json")
        write_json(folder / FACTS_FILE, facts.model_dump(mode="json"))
        (folder / "README.md").write_text(_readme(student.name, facts), encoding="utf-8")
    return facts, cost


def logits_in_mixed_batches(answer: Callable[[Batch], Floats], rows: Rows, pad_token_id: int, outputs: int) -> Floats:
    """Logits [rows, outputs] in the order of ``rows``, computed in batches of mixed lengths and varying size."""
    found = np.empty((len(rows), outputs), dtype=np.float32)
    for group in mixed_groups(len(rows)):
        found[group] = answer(inputs_at(rows, group, pad_token_id))
    return found


def mixed_groups(rows: int) -> list[Integers]:
    """Shuffled positions 0..rows-1 in groups of ``CHECKED_ROWS`` in turn."""
    order = np.random.default_rng(seed_of("export", "order")).permutation(rows)
    ends = np.cumsum(np.resize(CHECKED_ROWS, rows))
    return np.split(order, ends[ends < rows])


def check_difference(student: Path, found: Floats, wanted: Floats) -> None:
    """Raise PipelineError for logits that are NaN or differ too much from torch's; both are [rows, outputs]."""
    difference, allowed = _largest_difference(found, wanted), allowed_difference(wanted)
    if not difference <= allowed:
        raise PipelineError(
            f"the ONNX file of {student} does not reproduce torch's logits: the largest difference is {difference:.1e}, "
            f"allowed are {allowed:.1e}; nothing was written. Try another version of torch or onnxruntime"
        )


def allowed_difference(wanted: Floats) -> float:
    """The largest accepted difference of a logit for these logits of torch."""
    return LARGEST_DIFFERENCE * float(np.abs(wanted).max())


def _largest_difference(found: Floats, wanted: Floats) -> float:
    return float(np.abs(found - wanted).max())


def _load(student: ModelFolder, soft_labels: Path, manifest: Manifest) -> PreTrainedModel:
    """A student, checked with its tokenizer against the shards."""
    model = load_classifier(student)
    check_labels(manifest.task, model, student.folder)
    own = {"tokenizer": student.tokenizer_hash}
    check_agreement(
        f"{student.source} and {soft_labels}", own, manifest.key, "Name the soft_labels that the student was distilled from"
    )
    check_trained_from(student.folder, soft_labels)
    return model


def _facts(student: ModelFolder, manifest: Manifest, labels: Floats, wanted: Floats, found: Mapping[Path, Floats]) -> Facts:
    task = manifest.task
    files = tuple(
        File(
            file=path.name,
            value=measure(task, labels, logits),
            agreement=agreement(task, logits, wanted),
            difference=_largest_difference(logits, wanted),
            bytes=_bytes(path.parent, f"{path.name}*"),
        )
        for path, logits in found.items()
    )
    return Facts(
        task=task,
        student=student.hash,
        inputs=MODEL_INPUTS if manifest.token_types else MODEL_INPUTS[:2],
        max_length=int(manifest.key["max_length"]),
        opset=OPSET,
        rows=len(labels),
        value=measure(task, labels, wanted),
        bytes=_bytes(student.folder, "*.safetensors"),
        allowed=allowed_difference(wanted),
        files=files,
    )


def _bytes(folder: Path, files: str) -> int:
    return sum(file.stat().st_size for file in folder.glob(files))


README = """# {name} for the task {facts.task.name}, in ONNX

```python
import onnxruntime
from transformers import AutoTokenizer

folder = "path/to/this/folder"
tokenizer = AutoTokenizer.from_pretrained(folder)
session = onnxruntime.InferenceSession(f"{{folder}}/{facts.files[0].file}")
rows = tokenizer({texts}, padding=True, truncation=True, max_length={facts.max_length}, return_tensors="np")
logits = session.run(["logits"], {{one.name: rows[one.name] for one in session.get_inputs()}})[0]
```

The logits are [rows, {facts.task.outputs}]{order}. A batch has any number of rows of any length, padded on the right.

Checked on {facts.rows:,} test rows in batches of 1 to 32. With torch the {facts.task.metric} is {facts.value:.4f}.

| file | {facts.task.metric} | agreement with torch | largest difference of a logit | MB |
|---|---|---|---|---|
{table}

An int8 file rounds activations to 8 bits on one scale for the whole batch, so its logits depend slightly on the other rows.
"""


def _readme(name: str, facts: Facts) -> str:
    table = [
        f"| `{one.file}` | {one.value:.4f} | {one.agreement:.4f} | {one.difference:.1e} | {one.bytes / 1e6:.1f} |"
        for one in facts.files
    ]
    texts = '["a text"], ["its second text"]' if facts.task.pair else '["a text", "another text"]'
    order = f" in the order {', '.join(facts.task.labels)}" if facts.task.labels else ""
    return README.format(name=name, facts=facts, texts=texts, order=order, table="\n".join(table))
