"""A model loaded from safetensors, complete or an error, and whether it fits its tokenizer and its task.

Loading runs no code that is shipped with a model. The checks of tokenizer and task read no weights.
"""

import json
import re
from collections.abc import Iterable
from typing import Any, cast

import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from pipeline.config.corpus import Kind, label_name
from pipeline.config.errors import PipelineError
from pipeline.corpus.task import Task
from pipeline.models.architectures import (
    IDENTITY,
    activation_of,
    forget_activation,
    head_settings,
    reject_maskless,
    reject_unsupported,
)
from pipeline.models.folder import CODE_ENTRIES, TOKEN_ROLES, ModelFolder, tokenizer_hash

HEAD = re.compile(r"(^|\.)(classifier|pre_classifier|pooler|head|score|sequence_summary|logits_proj)\.")
"""Names of the parameters behind the encoder, which a pretrained checkpoint may lack."""

IGNORABLE = re.compile(
    r"(^|\.)(pooler|cls|lm_head|lm_loss|lm_predictions|mask_predictions|predictions|sop_classifier|generator_predictions|"
    r"generator_lm_head|discriminator_predictions|vocab_transform|vocab_layer_norm|vocab_projector|decoder)\."
    r"|(^|\.)(position_ids|token_type_ids|inv_freq|masked_bias|attn\.bias)$"
)
"""Names of weights in a file that no classifier's logits depend on: unused poolers, heads of pretraining, recomputed tables."""

GENERIC = re.compile(r"LABEL_\d+")
"""The label names that transformers makes up."""


def load_classifier(folder: ModelFolder, task: Task | None = None) -> PreTrainedModel:
    """A sequence classifier in float32 and evaluation mode.

    With a ``task`` the head gets its labels, and random weights unless the checkpoint has a head of that size.
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


def load_masked_lm(folder: ModelFolder, new_head: bool = False, **settings: Any) -> tuple[PreTrainedModel, list[str]]:
    """A masked language model, and the names of its weights that are not in its file: of a ``new_head`` only, else none."""
    reject_maskless(folder.config, folder.source)
    model, fresh = load_pretrained(AutoModelForMaskedLM, folder, new_head=True, **settings)
    lacking = [name for name in fresh if not new_head or name.startswith(f"{model.base_model_prefix}.")]
    if lacking and new_head:
        raise _unfinished(folder, "encoder", lacking, "name a checkpoint of this architecture")
    if lacking:
        remedy = "name a checkpoint that was trained to fill masks, or train this one: masked_lm.fine_tune: true"
        raise _unfinished(folder, "masked language model", lacking, remedy)
    return model, fresh


def load_pretrained(
    auto_class: type[Any], folder: ModelFolder, new_head: bool, **settings: Any
) -> tuple[PreTrainedModel, list[str]]:
    """A model in float32, and the sorted names of its weights that its file lacks or has in another shape.

    Weights tied to a saved one are not among them. With ``new_head`` the file may hold another head. ``settings`` replace
    entries of the configuration, or are arguments of ``from_pretrained``.
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


def check_vocabulary(folder: ModelFolder) -> None:
    """Raise if the tokenizer gives ids for which the model has no embedding.

    Added special tokens without a role may have none, as Gemma's for images: ordinary text does not contain them, and
    ``prepare`` rejects rows that do.
    """
    tokenizer, source = folder.tokenizer, folder.source
    known = int(folder.config.get_text_config().vocab_size)
    if tokenizer.vocab_size > known:
        raise PipelineError(f"{source} knows {known} tokens, but its tokenizer gives {tokenizer.vocab_size}")
    if int(tokenizer.pad_token_id) >= known:
        raise PipelineError(
            f"{source} knows {known} tokens, but its tokenizer pads with the id {tokenizer.pad_token_id}; "
            "name one of its own as pad_token in its tokenizer_config.json"
        )
    roles = {getattr(tokenizer, f"{role}_token_id") for role in TOKEN_ROLES}
    outside = [(number, token) for number, token in sorted(tokenizer.added_tokens_decoder.items()) if number >= known]
    if lost := [token.content for number, token in outside if not token.special or number in roles]:
        raise PipelineError(
            f"{source} has embeddings for {known} tokens, but tokens were added to its tokenizer that have none "
            f"({', '.join(lost[:3])}); call resize_token_embeddings and fine-tune, or save the tokenizer without them"
        )


def check_token_types(folder: ModelFolder, pair: bool) -> None:
    """Raise if, for a text or a ``pair`` of texts, the tokenizer gives token types for which the model has no embedding."""
    known, tokenizer = getattr(folder.config, "type_vocab_size", None), folder.tokenizer
    if not known or "token_type_ids" not in tokenizer.model_input_names:
        return
    most = max(tokenizer("a", "b" if pair else None)["token_type_ids"], default=0)
    if most >= known:
        raise PipelineError(
            f"{folder.source} has type_vocab_size: {known}, but its tokenizer gives {'a pair' if pair else 'a text'} the token "
            f"type {most}; save the tokenizer that the model was trained with beside it, or one whose model_input_names are "
            '["input_ids", "attention_mask"]'
        )


def check_outputs(folder: ModelFolder, task: str, kind: Kind, labels: tuple[str, ...]) -> None:
    """Raise if a classifier's outputs are not those of the task with this name, kind and labels (empty for regression)."""
    source, config = folder.source, folder.config
    if kind == "regression":
        if config.num_labels != 1:
            raise PipelineError(f"{source} predicts {config.num_labels} classes, but {task} is a regression")
        return
    if config.problem_type == "multi_label_classification":
        raise PipelineError(
            f"{source} predicts each label independently (problem_type: multi_label_classification), but {task} has one label "
            "a row; set teacher.fine_tune: true, or name a classifier of one label a row"
        )
    check_label_names(folder)
    if (found := folder.labels) == labels:
        return
    generic = all(GENERIC.fullmatch(name) for name in found)
    unnamed = "if its head has as many, name them in its config.json (id2label, label2id); else " if generic else ""
    mapping = f"{{{', '.join(f'…: {_yaml(name)}' for name in found)}}}"
    if {*labels} < {*found}:
        remedy = f"a table may lack some of them: list all of the classifier's, in its order: corpus.labels: {_yaml(found)}"
    elif len(found) != len(labels):
        remedy = f"{unnamed}a classifier of as many labels is needed, or teacher.fine_tune: true"
    elif set(found) == set(labels):
        remedy = (
            f"list them in the checkpoint's order: corpus.labels: {_yaml(found)}; if the table has other names, {mapping} with "
            "its own names in place of …"
        )
    elif generic:
        remedy = (
            "write what these mean into id2label and label2id of the checkpoint's config.json; students and reports use these "
            "names"
        )
    else:
        remedy = f"if they mean the same, map the table's names to them: corpus.labels: {mapping}"
    raise PipelineError(f"{source} predicts {list(found)}, but the labels of {task} are {list(labels)}; {remedy}")


def _yaml(value: object) -> str:
    """A value as it can be written into params.yaml; JSON is YAML."""
    return json.dumps(value, ensure_ascii=False)


def check_label_names(folder: ModelFolder) -> None:
    """Raise unless the configuration names the label of each logit: names missing, not text, duplicate or contradictory."""
    config, source = folder.config, folder.source
    names, numbers = config.id2label or {}, config.label2id or {}
    shown = json.dumps(names)
    if sorted(names) != list(range(len(names))) or not all(map(_is_name, names.values())):
        raise PipelineError(
            f"{source} does not name its labels: id2label in its config.json is {shown}; it must map each number from 0 to a "
            'name in text, such as {"0": "negative", "1": "positive"}'
        )
    if len({*folder.labels}) < len(names):
        raise PipelineError(f"{source} gives two labels one name: id2label in its config.json is {shown}")
    inverse = {label_name(name): str(number) for number, name in names.items()}
    written = {label_name(str(name)): str(number) for name, number in numbers.items()}
    if written != inverse and not all(map(GENERIC.fullmatch, written)):
        raise PipelineError(
            f"{source} contradicts itself in its config.json: id2label is {shown}, but label2id is "
            f"{json.dumps(numbers)}; make one the inverse of the other"
        )


def _is_name(value: object) -> bool:
    """Whether a value is non-blank text that can be encoded, as half a surrogate pair cannot."""
    try:
        return isinstance(value, str) and bool(value.strip()) and bool(value.encode())
    except UnicodeEncodeError:
        return False


def check_values(folder: ModelFolder) -> None:
    """Raise if a regression's logit is not its prediction: an activation follows, or transformers would serve a sigmoid."""
    activation, says_so = activation_of(folder.config), folder.config.problem_type == "regression"
    if not activation and says_so:
        return
    if activation:
        reason = f"is a cross-encoder that applies a {activation} to its logit, and a student is trained on logits"
        missing = [f'"activation_fn": "{IDENTITY}"']
    else:
        reason = "has one output and does not say problem_type: regression, so transformers.pipeline serves its sigmoid"
        missing = []
    missing += [] if says_so else ['"problem_type": "regression"']
    raise PipelineError(
        f"{folder.source} {reason}; if the labels are logits, write {' and '.join(missing)} into its config.json, else set "
        "teacher.fine_tune: true, which fits the head to the labels"
    )


def check_tokenizer(folder: ModelFolder, teachers: PreTrainedTokenizerBase) -> None:
    """Raise if a masked language model's tokenizer is not the teacher's, or has no mask token."""
    hashes = [found[:12] for found in (folder.tokenizer_hash, tokenizer_hash(teachers))]
    if hashes[0] != hashes[1]:
        raise PipelineError(
            f"the masked language model {folder.source} has another tokenizer ({hashes[0]}) than the teacher "
            f"{teachers.name_or_path} ({hashes[1]}), so their tokens differ; name a model that shares it"
        )
    if teachers.mask_token_id is None:
        raise PipelineError(
            f"the tokenizer of {teachers.name_or_path} has no mask token, so no word can be masked; remove masked_lm from the "
            "recipes"
        )
