"""Model types and what their configurations say: supported or not, where a row is read, how long it may be, its labels."""

import math
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from pipeline.config.corpus import label_name
from pipeline.config.errors import PipelineError
from pipeline.corpus.task import Task

ENCODERS = (
    "albert", "bert", "deberta-v2", "distilbert", "electra", "mobilebert", "modernbert", "mpnet", "roberta", "xlm-roberta",
)  # fmt: skip
DECODERS = ("gemma", "gemma2", "gemma3_text", "gpt2", "llama", "qwen2", "qwen3")
POSITIONS_FROM_IDS = ("mpnet", "roberta", "xlm-roberta")
"""Model types whose positions leave padding tokens out, also those within a text; see ``uncounted_id``."""

FIRST_LAYER_APART = ("modernbert",)
"""Model types whose first layer lacks a norm that all others have, so that no other layer can replace it."""

SUPPORTED = tuple(sorted((*ENCODERS, *DECODERS, "xlnet")))
"""Model types for which tests show that a row gets the logits that transformers gives it alone, from ids."""

IDENTITY = "torch.nn.modules.linear.Identity"


def reject_unsupported(config: PreTrainedConfig, source: str | Path) -> None:
    """Raise a ``PipelineError`` that names the type of a classifier that cannot be run from word embeddings."""
    kind = config.model_type
    if kind not in SUPPORTED:
        raise PipelineError(f"{source} is a {kind!r} model; perturbing word embeddings is supported for {', '.join(SUPPORTED)}")
    if kind in POSITIONS_FROM_IDS and config.pad_token_id is None:
        raise PipelineError(
            f"{source} is a {kind!r} model whose config.json names no pad_token_id, from which it counts positions"
        )
    if kind == "xlnet" and config.summary_type != "last":
        raise PipelineError(f"{source} is an XLNet with summary_type {config.summary_type!r}; only 'last' is supported")


def reject_maskless(config: PreTrainedConfig, source: str | Path) -> None:
    """Raise a ``PipelineError`` that names the type of a model that cannot fill masks here."""
    if config.model_type not in ENCODERS:
        raise PipelineError(
            f"{source} is a {config.model_type!r} model, which fills no masks here; supported are {', '.join(ENCODERS)}"
        )


def uncounted_id(config: Any) -> int:
    """The id that types of ``POSITIONS_FROM_IDS`` do not count; positions begin at the next number."""
    return 1 if config.model_type == "mpnet" else int(config.pad_token_id)  # MPNet ignores its configuration


def positions_of(config: Any) -> float:
    """The most tokens that a model of this configuration takes; infinite for unbounded positions, as XLNet's."""
    most = getattr(config, "max_position_embeddings", -1)
    offset = uncounted_id(config) + 1 if config.model_type in POSITIONS_FROM_IDS else 0
    return math.inf if most < 0 else int(most) - offset


def head_settings(task: Task) -> dict[str, Any]:
    """The entries of a configuration that describe the outputs of a task."""
    names = dict(enumerate(task.labels)) or {0: "value"}
    kind = "regression" if task.kind == "regression" else "single_label_classification"
    return {"id2label": names, "label2id": {name: i for i, name in names.items()}, "problem_type": kind}


def labels_of(model_or_config: Any) -> tuple[str, ...]:
    """Label names in the order of the logits."""
    names = getattr(model_or_config, "config", model_or_config).id2label
    return tuple(label_name(str(names[index])) for index in sorted(names))


def activation_of(config: Any) -> str:
    """The class of the activation that sentence-transformers applies to a cross-encoder's logits; empty if there is none.

    A cross-encoder with one output whose configuration names no activation has a sigmoid.
    """
    settings = getattr(config, "sentence_transformers", None)
    found = (
        (settings.get("activation_fn") if isinstance(settings, dict) else None)
        or getattr(config, "sbert_ce_default_activation_function", None)
        or ("" if settings is None or config.num_labels > 1 else "Sigmoid")
    )
    return "" if str(found) == IDENTITY else str(found).rpartition(".")[2]


def forget_activation(config: Any) -> None:
    """Remove the activation from a configuration: a head that is fine-tuned here outputs the prediction itself."""
    if isinstance(getattr(config, "sentence_transformers", None), dict):
        config.sentence_transformers = {**config.sentence_transformers, "activation_fn": IDENTITY}
    if getattr(config, "sbert_ce_default_activation_function", None) is not None:
        config.sbert_ce_default_activation_function = IDENTITY
