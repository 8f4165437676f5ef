"""A classifier as an ONNX file: written for batches of any rows and tokens, rounded to int8, run by onnxruntime.

Alone knows onnx and onnxruntime, which are installed only where they are wanted; must not know tasks, shards or folders.
"""

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
    """Refuse to go on without the packages of the optional extra ``onnx``."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise PipelineError(
            f"an export needs {', '.join(missing)}; install: pip install --constraint constraints.txt '.[onnx]'"
        )


class _Graph(torch.nn.Module):
    """A row as this project reads it, as one computation from ids to logits."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            batch["token_type_ids"] = token_type_ids
        with _Spelled():
            return logits_from_ids(self.model, batch)


class _Spelled(TorchFunctionMode):
    """What torch 2.13 cannot export, in other words with the same result: XLNet's mask."""

    def __torch_function__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.__rsub__ and isinstance(args[1], float):  # has no translation from whole numbers
            return function(args[0].to(torch.promote_types(args[0].dtype, torch.float32)), args[1])
        return function(*args, **(kwargs or {}))


def write_graph(model: PreTrainedModel, token_types: bool, path: Path) -> None:
    """Write a model as one ONNX file; weights above 1.5 GiB, which no such file holds, lie beside it.

    Inputs are int64 [rows, tokens], padded on the right: input_ids, attention_mask and, where ``token_types``,
    token_type_ids. The output ``logits`` is float32 [rows, outputs].
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
        raise PipelineError(f"a {kind!r} model cannot be exported to ONNX; torch's exporter said: {cause}") from error
    assert program is not None
    described: list[Any] = [program.model, program.model.graph, *program.model.graph.all_nodes()]
    for one in described:
        one.metadata_props.clear()  # where in the sources of this machine each operator comes from
    program.save(path)


def write_int8(graph: Path, path: Path) -> None:
    """Write a file with the weights of another as int8, a scale for each column.

    What passes through it is rounded to 8 bits while it runs, on one scale for a whole batch, so that an answer depends a
    little on the rows beside it.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet(), _sentence(f"onnxruntime cannot write {path.name}"):
        quantize_dynamic(graph, path, per_channel=True, weight_type=QuantType.QInt8)


def open_graph(path: Path, threads: int = 0) -> Callable[[Batch], Floats]:
    """What gives the logits [rows, outputs] by a file, on the processor and so many threads; 0 is one for each core."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    fault = f"onnxruntime cannot run {path.name}"
    with _sentence(fault):
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def answer(batch: Batch) -> Floats:
        with _sentence(fault):
            logits: Floats = session.run([LOGITS], {name: tensor.numpy() for name, tensor in batch.items()})[0]
        return logits

    return answer


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither notes nor warnings of exporter and quantiser: what they would warn of is measured by whoever uses the file."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _sentence(fault: str) -> Iterator[None]:
    """A sentence instead of an error of onnxruntime; these have no class in common."""
    try:
        yield
    except Exception as error:
        raise PipelineError(f"{fault}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    """What an error says first, without the colours of a terminal."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__
