"""Writes a classifier as an ONNX file, quantizes it to int8 and runs it with onnxruntime (optional extra ``onnx``)."""

import importlib.util
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from pipeline.config.errors import PipelineError
from pipeline.corpus.encoding import Batch, collate
from pipeline.corpus.task import Floats
from pipeline.models.forward import logits_from_ids

OPSET = 20
LOGITS = "logits"
PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def check_installed() -> None:
    """Raise PipelineError if a package of the optional extra ``onnx`` is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise PipelineError(f"export needs {', '.join(missing)}; install: pip install --constraint constraints.txt '.[onnx]'")


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

    def answer(batch: Batch) -> Floats:
        with _reported(problem):
            logits: Floats = session.run([LOGITS], {name: tensor.numpy() for name, tensor in batch.items()})[0]
        return logits

    return answer


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress log messages and warnings of exporter and quantizer; the export is checked afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
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
