"""Model types and what their configurations say: supported or not, where a row is read, how long it may be, its labels.

Knows how transformers' architectures differ; must not load one.
"""

import math
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from pipeline.errors import PipelineError
from pipeline.tasks import Task

ENCODERS = (
    "albert", "bert", "deberta-v2", "distilbert", "electra", "mobilebert", "modernbert", "mpnet", "roberta", "xlm-roberta",
)  # fmt: skip
DECODERS = ("gemma", "gemma2", "gemma3_text", "gpt2", "llama", "qwen2", "qwen3")
READ_AT_THE_END = (*DECODERS, "xlnet")
"""Model types whose head reads the last position, padding or not: they are run with a row's tokens at its end."""

FIRST_LAYER_APART = ("modernbert",)
"""Model types whose first layer lacks a norm that all others have: no other layer can stand in its place."""

SUPPORTED = tuple(sorted((*ENCODERS, *READ_AT_THE_END)))
"""Model types for which a row is tested to get the logits that transformers gives it alone, from ids."""


def refuse_unsupported(config: PreTrainedConfig, source: str | Path) -> None:
    """Raise a ``PipelineError`` that names the type of a classifier that cannot be run from word embeddings."""
    kind = config.model_type
    if kind not in SUPPORTED:
        raise PipelineError(f"{source} is a {kind!r} model; perturbing word embeddings is supported for {', '.join(SUPPORTED)}")
    if kind == "xlnet" and config.summary_type != "last":
        raise PipelineError(f"{source} is an XLNet with summary_type {config.summary_type!r}; only 'last' is supported")


def refuse_maskless(config: PreTrainedConfig, source: str | Path) -> None:
    """Raise a ``PipelineError`` that names the type of a model that cannot fill masks here."""
    if config.model_type not in ENCODERS:
        raise PipelineError(
            f"{source} is a {config.model_type!r} model, which fills no masks here; supported are {', '.join(ENCODERS)}"
        )


def positions_of(config: Any) -> float:
    """The most tokens that a model of this configuration takes; infinite where its positions have no end, as XLNet's."""
    most = getattr(config, "max_position_embeddings", -1)
    # These count positions from behind the padding token's id.
    offset = config.pad_token_id + 1 if config.model_type in ("mpnet", "roberta", "xlm-roberta") else 0
    return math.inf if most < 0 else int(most) - offset


def head_settings(task: Task) -> dict[str, Any]:
    """What a configuration must say so that a model answers this task."""
    names = dict(enumerate(task.labels)) or {0: "value"}
    kind = "regression" if task.kind == "regression" else "single_label_classification"
    return {"id2label": names, "label2id": {name: i for i, name in names.items()}, "problem_type": kind}


def labels_of(model_or_config: Any) -> tuple[str, ...]:
    """Label names in the order of the logits."""
    names = getattr(model_or_config, "config", model_or_config).id2label
    return tuple(names[index] for index in sorted(names))
