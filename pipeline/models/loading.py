"""Weights loaded into memory: from safetensors only, running no code of theirs, complete or an error."""

import re
from collections.abc import Iterable
from typing import Any, cast

import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging as transformers_logging

from pipeline.config.errors import PipelineError
from pipeline.corpus.task import Task
from pipeline.models.architectures import forget_activation, head_settings, reject_maskless, reject_unsupported
from pipeline.models.folder import CODE_ENTRIES, ModelFolder

HEAD = re.compile(r"(^|\.)(classifier|pre_classifier|pooler|head|score|sequence_summary|logits_proj)\.")
"""Names of the parameters behind the encoder, which a pretrained checkpoint may lack."""

IGNORABLE = re.compile(
    r"(^|\.)(pooler|cls|lm_head|lm_loss|lm_predictions|mask_predictions|predictions|sop_classifier|generator_predictions|"
    r"generator_lm_head|discriminator_predictions|vocab_transform|vocab_layer_norm|vocab_projector|decoder)\."
    r"|(^|\.)(position_ids|token_type_ids|inv_freq|masked_bias|attn\.bias)$"
)
"""Names of weights in a file that no classifier's logits depend on: unused poolers, heads of pretraining, recomputed tables."""


def load_classifier(folder: ModelFolder, task: Task | None = None) -> PreTrainedModel:
    """A sequence classifier in float32 and evaluation mode.

    With a ``task`` the head gets its labels, and random weights unless the checkpoint has a head of that size.

    Raises:
        PipelineError: it cannot be loaded whole, or its type is unsupported.
    """
    reject_unsupported(folder.config, folder.source)
    settings = {} if task is None else head_settings(task)
    model, fresh = load_pretrained(AutoModelForSequenceClassification, folder, new_head=task is not None, **settings)
    _check_fresh(folder, fresh, new_head=task is not None)
    if task is not None and task.kind == "regression":
        forget_activation(model.config)
    return cast(PreTrainedModel, model.eval())


def check_classifier(folder: ModelFolder, new_head: bool) -> None:
    """Raise if the names and shapes of a classifier's weights are not complete; with ``new_head`` the head may be missing."""
    _, fresh = load_pretrained(AutoModelForSequenceClassification, folder, new_head, device_map="meta")
    _check_fresh(folder, fresh, new_head)


def load_masked_lm(folder: ModelFolder, **settings: Any) -> PreTrainedModel:
    """A masked language model whose weights are all in its file; ``settings`` are passed to transformers."""
    reject_maskless(folder.config, folder.source)
    model, fresh = load_pretrained(AutoModelForMaskedLM, folder, new_head=True, **settings)
    if fresh:
        raise _unfinished(
            folder,
            "masked language model",
            fresh,
            "name a checkpoint that was trained to fill masks, or train this one: masked_lm.fine_tune: true",
        )
    return model


def load_masked_encoder(folder: ModelFolder, **settings: Any) -> tuple[PreTrainedModel, list[str]]:
    """An encoder as a masked language model to be fine-tuned, and the names of its head's weights that are not in its file."""
    model, fresh = load_pretrained(AutoModelForMaskedLM, folder, new_head=True, **settings)
    if body := [name for name in fresh if name.startswith(f"{model.base_model_prefix}.")]:
        raise _unfinished(folder, "encoder", body, "name a checkpoint of this architecture")
    return model, fresh


def load_pretrained(
    auto_class: type[Any], folder: ModelFolder, new_head: bool, **settings: Any
) -> tuple[PreTrainedModel, list[str]]:
    """A model in float32, and the sorted names of its weights that its file lacks or has in another shape.

    Weights tied to a saved one are not among them. With ``new_head`` the file may hold another head. ``settings`` replace
    entries of the configuration, or are arguments of ``from_pretrained``.

    Raises:
        PipelineError: it cannot be loaded, is quantised, or its file holds weights that transformers would ignore.
    """
    transformers_logging.set_verbosity_error()  # the checks here replace its warnings
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
    """Raise if transformers ignores weights of a file: it has adapters or more layers, or is another model's.

    The weights of a head that will be replaced do not count. A body that was saved alone has names without a prefix.
    """
    parts = {part for part, _ in model.base_model.named_children()}
    body = f"{model.base_model_prefix}."
    lost = [name for name in ignored if not new_head or name.startswith(body) or name.partition(".")[0] in parts]
    if lost := sorted(name for name in lost if not IGNORABLE.search(name)):
        raise PipelineError(
            f"{folder.source} holds {len(lost)} weight{'s' if len(lost) > 1 else ''} that transformers does not load "
            f"({', '.join(lost[:3])}), so its logits would differ from those it was trained to give; name a checkpoint whose "
            "config.json was saved with these weights, of an architecture that this version of transformers still supports"
        )


def _check_fresh(folder: ModelFolder, fresh: list[str], new_head: bool) -> None:
    """Raise if weights are missing, except in a head that will be trained; they would be random."""
    body = [name for name in fresh if not HEAD.search(name)]
    if body:
        remedy = "name a checkpoint of this architecture, whose config.json was saved with its weights"
    else:
        remedy = (
            "if it is fine-tuned, its config.json must name a label for each output of its head (id2label, label2id); else set "
            "teacher.fine_tune: true"
        )
    if lacking := body if new_head else fresh:
        raise _unfinished(folder, "encoder" if new_head else "classifier", lacking, remedy)


def _unfinished(folder: ModelFolder, what: str, lacking: list[str], remedy: str) -> PipelineError:
    return PipelineError(
        f"{folder.source} is not a finished {what}: it lacks weights that its configuration asks for, or has them in another "
        f"shape ({', '.join(lacking[:3])}); {remedy}"
    )
