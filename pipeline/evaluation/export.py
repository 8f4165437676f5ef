"""Exports a student as a folder for onnxruntime (optional extra ``onnx``), after comparing its logits with torch's."""

import importlib.util
import logging
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from pipeline.config.errors import PipelineError
from pipeline.config.settings import EvaluationSettings
from pipeline.corpus.encoding import MODEL_INPUTS, Batch, Integers, collate
from pipeline.corpus.seeding import seed_of
from pipeline.corpus.task import Floats, measure
from pipeline.evaluation.quality import Predict, Speed, agreement, bytes_of, check_labelled, check_labels, logits_of, speeds
from pipeline.models.folder import ModelFolder
from pipeline.models.forward import logits_from_ids
from pipeline.models.loading import load_classifier
from pipeline.shards.batches import inputs_at
from pipeline.shards.manifest import check_agreement, check_trained_from
from pipeline.shards.reader import Rows, Shards
from pipeline.store.files import check_replaceable, folder_written_whole, write_json
from pipeline.store.store import Store

FLOAT_FILE = "model.onnx"
INT8_FILE = "model.int8.onnx"
FACTS_FILE = "export.json"
README = Path(__file__).with_suffix(".md.j2")

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
OPSET = 20
LOGITS = "logits"

LARGEST_DIFFERENCE = 1e-4
"""Largest accepted difference between a logit of the float file and torch's, relative to the largest logit."""

CHECKED_ROWS = (1, 2, 3, 5, 8, 13, 21, 32)
"""Batch sizes of the check, in turn."""

Facts = dict[str, Any]
"""``export.json``: what was exported and how it was checked; the same bytes on every run."""


def export(
    student: Path, soft_labels: Path, out: Path, settings: EvaluationSettings, int8: bool, store: Store | None = None
) -> tuple[Facts, list[Speed]]:
    """Write the folder ``out``; returns the content of ``export.json`` and the speeds of torch and then each file.

    ``store`` has the soft labels if it is remote.

    Raises:
        PipelineError: a package or product is missing or does not fit, torch's exporter does not support the model, or the
            float file's logits differ from torch's. Nothing is written then.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise PipelineError(f"export needs {', '.join(missing)}; install: pip install --constraint constraints.txt '.[onnx]'")
    if not student.is_dir():
        raise PipelineError(f"the student {student} does not exist; make it with dvc repro")
    check_replaceable(out, [FACTS_FILE])
    shards = Shards.holding("soft_labels", soft_labels, store)
    manifest, rows, source = shards.manifest, shards.rows("test", 0), ModelFolder(student)
    task, labels, pad = manifest.task, rows.labels(), manifest.pad_token_id
    check_labelled(task, rows)
    model, tokenizer = load_classifier(source), source.tokenizer
    check_labels(task, model, student)
    hint = "Name the soft labels that the student was distilled from"
    check_agreement(f"{student} and {soft_labels}", {"tokenizer": source.tokenizer_hash}, manifest.key, hint)
    check_trained_from(student, soft_labels)
    wanted = logits_of(model, rows, pad)
    with folder_written_whole(out) as folder:
        paths = [folder / FLOAT_FILE, *([folder / INT8_FILE] if int8 else [])]
        write_graph(model, manifest.token_types, paths[0])
        if int8:
            write_int8(*paths)
        found = [logits_in_mixed_batches(open_graph(path), rows, pad, wanted.shape[1]) for path in paths]
        allowed = check_difference(student, found[0], wanted)
        predictors: list[Predict] = [partial(logits_from_ids, model), *(open_graph(path, threads=1) for path in paths)]
        timed = speeds(predictors, rows, pad, settings.timed_rows)
        facts: Facts = {
            "task": task.model_dump(mode="json"),
            "student": source.hash,
            "inputs": MODEL_INPUTS if manifest.token_types else MODEL_INPUTS[:2],
            "max_length": manifest.key["max_length"],
            "opset": OPSET,
            "rows": len(rows),
            "value": measure(task, labels, wanted),
            "bytes": bytes_of(student, "*.safetensors"),
            "allowed": allowed,
            "files": [
                {
                    "file": path.name,
                    "value": measure(task, labels, logits),
                    "agreement": agreement(task, logits, wanted),
                    "difference": largest_difference(logits, wanted),
                    "bytes": bytes_of(folder, f"{path.name}*"),
                }
                for path, logits in zip(paths, found, strict=True)
            ],
        }
        tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "right"  # as the graph expects it
        tokenizer.save_pretrained(folder)
        shutil.copyfile(student / "config.json", folder / "config.json")
        write_json(folder / FACTS_FILE, facts)
        readme = jinja2.Template(README.read_text(encoding="utf-8"), trim_blocks=True, keep_trailing_newline=True)
        (folder / "README.md").write_text(readme.render(name=student.name, outputs=task.outputs, **facts), encoding="utf-8")
    return facts, timed


def logits_in_mixed_batches(predict: Callable[[Batch], Floats], rows: Rows, pad_token_id: int, outputs: int) -> Floats:
    """Logits [rows, outputs] in the order of ``rows``, computed in batches of mixed lengths and varying size."""
    found = np.empty((len(rows), outputs), dtype=np.float32)
    for group in mixed_groups(len(rows)):
        found[group] = predict(inputs_at(rows, group, pad_token_id))
    return found


def mixed_groups(rows: int) -> list[Integers]:
    """Shuffled positions 0..rows-1 in groups of ``CHECKED_ROWS`` in turn."""
    order = np.random.default_rng(seed_of("export", "order")).permutation(rows)
    ends = np.cumsum(np.resize(CHECKED_ROWS, rows))
    return np.split(order, ends[ends < rows])


def check_difference(student: Path, found: Floats, wanted: Floats) -> float:
    """The largest accepted difference; raises PipelineError for logits [rows, outputs] that are NaN or differ more."""
    difference, allowed = largest_difference(found, wanted), LARGEST_DIFFERENCE * float(np.abs(wanted).max())
    if not difference <= allowed:
        raise PipelineError(
            f"the ONNX file of {student} does not reproduce torch's logits: the largest difference is {difference:.1e}, "
            f"allowed are {allowed:.1e}; nothing was written. Try another version of torch or onnxruntime"
        )
    return allowed


def largest_difference(found: Floats, wanted: Floats) -> float:
    """The largest absolute difference of two arrays of logits."""
    return float(np.abs(found - wanted).max())


class _Graph(torch.nn.Module):
    """The forward pass from ids to logits, as the pipeline runs it."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            batch["token_type_ids"] = token_type_ids
        with _FloatMask():
            return logits_from_ids(self.model, batch)


class _FloatMask(TorchFunctionMode):
    """Replaces ``1.0 - mask`` of an integer mask in XLNet, which torch 2.13 cannot export, by its floating-point equivalent."""

    def __torch_function__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.__rsub__ and isinstance(args[1], float):
            return function(args[0].to(torch.promote_types(args[0].dtype, torch.float32)), args[1])
        return function(*args, **(kwargs or {}))


def write_graph(model: PreTrainedModel, token_types: bool, path: Path) -> None:
    """Write a model as an ONNX file; weights above 1.5 GiB are written to a second file beside it.

    Inputs are int64 [rows, tokens], padded on the right: input_ids, attention_mask and, if ``token_types``,
    token_type_ids. The output ``logits`` is float32 [rows, outputs].

    Raises:
        PipelineError: torch's exporter does not support the model.
    """
    example = [np.zeros(length, dtype=np.int64) for length in (7, 5, 3)]
    batch = collate(example, example if token_types else None, 0)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                _Graph(model).eval(),
                kwargs=batch,
                input_names=list(batch),
                output_names=[LOGITS],
                dynamic_shapes={name: {0: "rows", 1: "tokens"} for name in batch},
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        kind, cause = model.config.model_type, _first_line(error.__cause__ or error)
        raise PipelineError(f"torch cannot export a {kind!r} model to ONNX: {cause}") from error
    assert program is not None
    described: list[Any] = [program.model, program.model.graph, *program.model.graph.all_nodes()]
    for one in described:
        one.metadata_props.clear()  # source paths on this machine
    program.save(path)


def write_int8(graph: Path, path: Path) -> None:
    """Write a copy of ``graph`` with int8 weights, one scale per column, and activations quantized at run time per batch."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet(), _reported(f"onnxruntime cannot write {path.name}"):
        quantize_dynamic(graph, path, per_channel=True, weight_type=QuantType.QInt8)


def open_graph(path: Path, threads: int = 0) -> Callable[[Batch], Floats]:
    """A function that runs the file on a batch and returns logits [rows, outputs]; 0 threads means one per core."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    problem = f"onnxruntime cannot run {path.name}"
    with _reported(problem):
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def predict(batch: Batch) -> Floats:
        with _reported(problem):
            logits: Floats = session.run([LOGITS], {name: tensor.numpy() for name, tensor in batch.items()})[0]
        return logits

    return predict


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress log messages and warnings of exporter and quantizer; the export is checked afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


@contextmanager
def _reported(problem: str) -> Iterator[None]:
    """Raise any error of onnxruntime, whose errors have no common class, as a PipelineError."""
    try:
        yield
    except Exception as error:
        raise PipelineError(f"{problem}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    """The first line of an error's text without terminal colours."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__
