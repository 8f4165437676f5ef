"""A student as a folder that onnxruntime serves, checked on real rows against torch before anybody gets it.

Knows students, rows of shards and what lies in the folder; must not know how a graph is made or run, or a student trained.
"""

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.config.errors import PipelineError
from pipeline.config.params import Settings
from pipeline.corpus.encoding import MODEL_INPUTS
from pipeline.corpus.task import Floats, Task, measure
from pipeline.evaluation.export_check import (
    CHECKED_ROWS,
    allowed_difference,
    check_difference,
    largest_difference,
    logits_in_mixed_batches,
)
from pipeline.evaluation.onnx_graph import OPSET, check_installed, open_graph, write_graph, write_int8
from pipeline.evaluation.quality import (
    Answer,
    EvaluationSettings,
    Speed,
    agreement,
    check_answers,
    check_labelled,
    logits_of,
    speeds,
)
from pipeline.models.folder import load_tokenizer, model_hash, tokenizer_hash
from pipeline.models.forward import logits_from_ids
from pipeline.models.loading import load_classifier
from pipeline.shards.lineage import check_trained_from
from pipeline.shards.manifest import Manifest, check_agreement
from pipeline.shards.reader import Shards
from pipeline.store.files import check_replaceable, folder_written_whole, write_json

FLOAT_FILE = "model.onnx"
INT8_FILE = "model.int8.onnx"
FACTS_FILE = "export.json"


class File(Settings):
    """What one exported file is worth on the test split."""

    file: str
    value: float
    """The task's metric."""
    agreement: float
    """Share of the answers that the student gives by torch; for regression the Pearson correlation with them."""
    difference: float
    """The largest difference of a logit from torch's."""
    bytes: int


class Facts(Settings):
    """``export.json``: what was exported and how it was checked; the same bytes on every run."""

    task: Task
    student: str
    """Hash of the student's weights and configuration."""
    inputs: tuple[str, ...]
    """Each int64 [rows, tokens], padded on the right."""
    max_length: int
    opset: int
    rows: int
    value: float
    """The task's metric by torch."""
    bytes: int
    """Size of the student's weights for torch."""
    allowed: float
    """The largest difference of a logit that the float file was allowed."""
    files: tuple[File, ...]


def export(student: Path, scores: Path, out: Path, settings: EvaluationSettings, int8: bool) -> tuple[Facts, list[Speed]]:
    """Write the folder ``out``; returns what it is worth, and how fast torch and then each file is.

    Raises:
        PipelineError: something is missing or does not fit, the exporter cannot take the model, or its file answers otherwise
            than torch. Nothing is written then.
    """
    _check_places(student, out)
    shards = Shards.holding("scores", scores)
    manifest, rows = shards.manifest, shards.rows("test", 0)
    check_labelled(manifest.task, rows)
    model, tokenizer = _load_fitting(student, scores, manifest)
    check_trained_from(student, scores)
    pad = manifest.pad_token_id
    wanted = logits_of(model, rows, pad, settings.batch_rows)
    with folder_written_whole(out) as folder:
        paths = [folder / FLOAT_FILE, *([folder / INT8_FILE] if int8 else [])]
        write_graph(model, manifest.token_types, paths[0])
        if int8:
            write_int8(*paths)
        found = {path: logits_in_mixed_batches(open_graph(path), rows, pad, wanted.shape[1]) for path in paths}
        check_difference(student, found[paths[0]], wanted)
        answers: list[Answer] = [partial(logits_from_ids, model), *(open_graph(path, threads=1) for path in paths)]
        cost = speeds(answers, rows, pad, settings.timed_rows, settings.timed_rounds)
        facts = _facts(student, manifest, rows.labels(), wanted, found)
        _write_companions(folder, student, tokenizer, facts)
    return facts, cost


def _check_places(student: Path, out: Path) -> None:
    """Refuse what would end badly before anything is loaded: ``out`` is replaced, whatever lies there."""
    check_installed()
    if not student.is_dir():
        raise PipelineError(f"the student {student} does not exist; make it: dvc repro")
    check_replaceable(out, [FACTS_FILE])


def _load_fitting(student: Path, scores: Path, manifest: Manifest) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A student and its tokenizer, which must be those of the rows it is checked on."""
    model, tokenizer = load_classifier(student), load_tokenizer(student)
    check_answers(manifest.task, model, student)
    own = {"tokenizer": tokenizer_hash(tokenizer)}
    check_agreement(f"{student} and {scores}", own, manifest.key, "Name the scores that the student was distilled from")
    return model, tokenizer


def _facts(student: Path, manifest: Manifest, labels: Floats, wanted: Floats, found: Mapping[Path, Floats]) -> Facts:
    task = manifest.task
    return Facts(
        task=task,
        student=model_hash(student),
        inputs=MODEL_INPUTS if manifest.token_types else MODEL_INPUTS[:2],
        max_length=int(manifest.key["max_length"]),
        opset=OPSET,
        rows=len(labels),
        value=measure(task, labels, wanted),
        bytes=_bytes(student, "*.safetensors"),
        allowed=allowed_difference(wanted),
        files=tuple(
            File(
                file=path.name,
                value=measure(task, labels, logits),
                agreement=agreement(task, logits, wanted),
                difference=largest_difference(logits, wanted),
                bytes=_bytes(path.parent, f"{path.name}*"),
            )
            for path, logits in found.items()
        ),
    )


def _bytes(folder: Path, files: str) -> int:
    return sum(file.stat().st_size for file in folder.glob(files))


README = """# {name} as ONNX: it answers the task {task.name}

```python
import onnxruntime
from transformers import AutoTokenizer

folder = "path/to/this/folder"
tokenizer = AutoTokenizer.from_pretrained(folder)
session = onnxruntime.InferenceSession(f"{{folder}}/{file}")
rows = tokenizer({texts}, padding=True, truncation=True, max_length={length}, return_tensors="np")
logits = session.run(["logits"], {{one.name: rows[one.name] for one in session.get_inputs()}})[0]
```

The logits are [rows, {outputs}]{order}. A batch may have any number of rows, of any lengths, padded on the right.

Checked on {rows:,} test rows in batches of {least} to {most}. By torch the {task.metric} is {value:.4f}.

| file | {task.metric} | agreement with torch | largest difference of a logit | MB |
|---|---|---|---|---|
{table}
{note}"""

INT8_NOTE = """
What passes through `{file}` is rounded to 8 bits on one scale for a whole batch, so an answer depends a little on the rows
beside it.
"""


def _write_companions(folder: Path, student: Path, tokenizer: PreTrainedTokenizerBase, facts: Facts) -> None:
    """All but the graphs: the tokenizer, which pads on the right as the graph wants it, configuration, facts, how to use it."""
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "right"
    tokenizer.save_pretrained(folder)
    shutil.copyfile(student / "config.json", folder / "config.json")
    write_json(folder / FACTS_FILE, facts.model_dump(mode="json"))
    (folder / "README.md").write_text(_readme(student.name, facts), encoding="utf-8")


def _readme(name: str, facts: Facts) -> str:
    rows = [
        f"| `{one.file}` | {one.value:.4f} | {one.agreement:.4f} | {one.difference:.1e} | {one.bytes / 1e6:.1f} |"
        for one in facts.files
    ]
    return README.format(
        name=name,
        task=facts.task,
        file=FLOAT_FILE,
        texts='["a text"], ["its second text"]' if facts.task.pair else '["a text", "another text"]',
        length=facts.max_length,
        outputs=facts.task.outputs,
        order=f" in the order {', '.join(facts.task.labels)}" if facts.task.labels else "",
        rows=facts.rows,
        least=min(CHECKED_ROWS),
        most=max(CHECKED_ROWS),
        value=facts.value,
        table="\n".join(rows),
        note=INT8_NOTE.format(file=INT8_FILE) if len(rows) > 1 else "",
    )
