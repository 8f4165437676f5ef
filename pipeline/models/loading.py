"""Weights loaded into memory: from safetensors only, running no code of theirs, complete or an error."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging as transformers_logging

from pipeline.config.errors import PipelineError
from pipeline.corpus.task import Task
from pipeline.models.architectures import forget_activation, head_settings, reject_maskless, reject_unsupported
from pipeline.models.folder import CODE_ENTRIES, ModelFolder, opened

Source = str | Path | ModelFolder

HEAD = re.compile(r"(^|\.)(classifier|pre_classifier|pooler|head|score|sequence_summary|logits_proj)\.")
"""Names of the parameters behind the encoder, which a pretrained checkpoint may lack."""

IGNORABLE = re.compile(
    r"(^|\.)(pooler|cls|lm_head|lm_loss|lm_predictions|mask_predictions|predictions|sop_classifier|generator_predictions|"
    r"generator_lm_head|discriminator_predictions|vocab_transform|vocab_layer_norm|vocab_projector|decoder)\."
    r"|(^|\.)(position_ids|token_type_ids|inv_freq|masked_bias|attn\.bias)$"
)
"""Names of weights in a file that no classifier's logits depend on: unused poolers, heads of pretraining, recomputed tables."""


def load_classifier(source: Source, task: Task | None = None) -> PreTrainedModel:
    """A sequence classifier in float32 and evaluation mode.

    Args:
        source: model folder or hub id.
        task: if given, the head gets this task's labels, and random weights unless the checkpoint has one of that size.

    Raises:
        PipelineError: it cannot be loaded whole, or its type is unsupported.
    """
    folder = opened(source)
    reject_unsupported(folder.config, folder.source)
    settings = {} if task is None else head_settings(task)
    model, fresh = load_pretrained(AutoModelForSequenceClassification, folder, new_head=task is not None, **settings)
    _check_fresh(folder, fresh, new_head=task is not None)
    if task is not None and task.kind == "regression":
        forget_activation(model.config)
    return cast(PreTrainedModel, model.eval())


def check_classifier(source: Source, new_head: bool) -> None:
    """Raise unless a classifier is complete, judged by its configuration and the names and shapes of its weights.

    Args:
        source: model folder or hub id.
        new_head: whether it will be fine-tuned, so that it needs no head.
    """
    folder = opened(source)
    _, fresh = load_pretrained(AutoModelForSequenceClassification, folder, new_head, device_map="meta")
    _check_fresh(folder, fresh, new_head)


def load_masked_lm(source: Source, **settings: Any) -> PreTrainedModel:
    """A masked language model whose weights are all in its file; ``settings`` are passed to transformers."""
    folder = opened(source)
    reject_maskless(folder.config, folder.source)
    model, fresh = load_pretrained(AutoModelForMaskedLM, folder, new_head=True, **settings)
    if fresh:
        raise PipelineError(
            f"{folder.source} is not a finished masked language model: it lacks weights that its configuration asks for, or "
            f"has them in another shape ({', '.join(fresh[:3])}); name a checkpoint that was trained to fill masks, or fit "
            "this one: tasks.<task>.words.fit: true"
        )
    return model


def load_masked_encoder(source: Source, **settings: Any) -> tuple[PreTrainedModel, list[str]]:
    """An encoder as a masked language model to be fitted, and the names of its head's weights that are not in its file."""
    folder = opened(source)
    model, fresh = load_pretrained(AutoModelForMaskedLM, folder, new_head=True, **settings)
    if body := [name for name in fresh if name.startswith(f"{model.base_model_prefix}.")]:
        raise PipelineError(
            f"{folder.source} is not a finished encoder: it lacks weights that its configuration asks for, or has them in "
            f"another shape ({', '.join(body[:3])}); name a checkpoint of this architecture"
        )
    return model, fresh


def load_pretrained(
    auto_class: type[Any], folder: ModelFolder, new_head: bool, **settings: Any
) -> tuple[PreTrainedModel, list[str]]:
    """A model in float32, and the sorted names of its weights that its file lacks or has in another shape.

    Weights tied to a saved one are not among them.

    Args:
        auto_class: the class of transformers that picks the architecture.
        folder: the model.
        new_head: whether its head will be trained, so that the file may hold another one.
        settings: replace entries of its configuration, or are arguments of ``from_pretrained``.

    Raises:
        PipelineError: it cannot be loaded, is quantised, or its file holds weights that transformers would ignore.
    """
    transformers_logging.set_verbosity_error()  # what transformers would warn of is checked here
    transformers_logging.disable_progress_bar()
    folder.check_files()
    if quantised := getattr(folder.config, "quantization_config", None):
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else type(quantised).__name__
        raise PipelineError(
            f"{folder.source} is quantised ({method}); load it where that method's package is installed, then save it in "
            "float32: dequantize(), save_pretrained()"
        )
    with folder.reading():
        model, report = auto_class.from_pretrained(
            **folder.location,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **settings,
        )
    for name in CODE_ENTRIES:
        model.config.__dict__.pop(name, None)
    _check_ignored(folder, model, report["unexpected_keys"], new_head)
    return model, sorted({*report["missing_keys"], *(str(key[0]) for key in report["mismatched_keys"])})


def _check_ignored(folder: ModelFolder, model: PreTrainedModel, ignored: Iterable[str], new_head: bool) -> None:
    """Raise if a file holds more than transformers reads: it was another model's, with adapters or more layers."""
    lost = sorted(name for name in ignored if not IGNORABLE.search(name) and (not new_head or _in_body(name, model)))
    if lost:
        raise PipelineError(
            f"{folder.source} holds {_count(lost, 'weight')} that transformers does not load ({', '.join(lost[:3])}), so its "
            "logits would differ from those it was trained to give; name a checkpoint whose config.json was saved with these "
            "weights, of an architecture that this version of transformers still supports"
        )


def _count(things: Sequence[object], noun: str) -> str:
    return f"{len(things)} {noun}" + ("" if len(things) == 1 else "s")


def _in_body(name: str, model: PreTrainedModel) -> bool:
    """Whether a weight belongs to the model without its head; a body that was saved alone has names without a prefix."""
    parts = {part for part, _ in model.base_model.named_children()}
    return name.startswith(f"{model.base_model_prefix}.") or name.partition(".")[0] in parts


def _check_fresh(folder: ModelFolder, fresh: list[str], new_head: bool) -> None:
    """Raise if weights are missing, except in a head that is to be trained; they would be random."""
    body = [name for name in fresh if not HEAD.search(name)]
    if lacking := body if new_head else fresh:
        if body:
            remedy = "name a checkpoint of this architecture, whose config.json was saved with its weights"
        else:
            remedy = (
                "if it is fine-tuned, its config.json must name a label for each output of its head (id2label, label2id); "
                "else set teacher.fine_tune: true"
            )
        raise PipelineError(
            f"{folder.source} is not a finished {'encoder' if new_head else 'classifier'}: it lacks weights that its "
            f"configuration asks for, or has them in another shape ({', '.join(lacking[:3])}); {remedy}"
        )
