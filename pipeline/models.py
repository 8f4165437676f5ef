"""Pretrained classifiers: loaded safely, named by hash, run from word embeddings as from token ids.

Knows transformers models and tokenizers; must not know teachers, students or shards.
"""

import json
import re
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from pipeline.encoding import Batch
from pipeline.errors import PipelineError
from pipeline.files import hash_of, sha256_of
from pipeline.tasks import Task

SUPPORTED = ("albert", "bert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta", "xlm-roberta")
"""Model types for which ids and embeddings are tested to give equal logits."""


HEAD = re.compile(r"(^|\.)(classifier|pre_classifier|pooler|head)\.")
"""Names of the parameters behind the encoder, which a pretrained checkpoint may lack."""


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub id or folder."""
    try:
        return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(source, trust_remote_code=False))
    except (OSError, ValueError) as cause:
        raise PipelineError(f"no tokenizer can be loaded from {source}: {_first_line(cause)}") from cause


def load_classifier(source: str | Path, task: Task | None = None) -> PreTrainedModel:
    """A sequence classifier from safetensors of a hub id or folder, in float32 and evaluation mode.

    Args:
        source: hub id or folder.
        task: where given, the head is made for its labels (new where the checkpoint has none of that size).
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    _refuse_unsupported(source)
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            source,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **({} if task is None else head_settings(task)),
        )
    except (OSError, ValueError, SafetensorError) as cause:
        raise PipelineError(f"no classifier can be loaded from {source}: {_first_line(cause)}") from cause
    _refuse_fresh(source, report, new_head=task is not None)
    return cast(PreTrainedModel, model.eval())


def _refuse_fresh(source: str | Path, report: dict[str, Any], new_head: bool) -> None:
    """Weights that are made up here answer at random; only a head that is to be trained may be."""
    fresh = sorted({*report["missing_keys"], *(str(key[0]) for key in report["mismatched_keys"])})
    if new_head:
        fresh = [name for name in fresh if not HEAD.search(name)]
    if fresh:
        way_out = "name a checkpoint of this architecture" if new_head else "fine-tune it first, or set teacher.fine_tune: true"
        raise PipelineError(
            f"{source} is not a finished {'encoder' if new_head else 'classifier'}: it lacks weights that its configuration "
            f"asks for, or has them in another shape ({', '.join(fresh[:3])}); {way_out}"
        )


def head_settings(task: Task) -> dict[str, Any]:
    """What a configuration must say so that a model answers this task."""
    names = dict(enumerate(task.labels)) or {0: "value"}
    kind = "regression" if task.kind == "regression" else "single_label_classification"
    return {"id2label": names, "label2id": {name: i for i, name in names.items()}, "problem_type": kind}


def labels_of(model_or_config: Any) -> tuple[str, ...]:
    """Label names in the order of the logits."""
    names = getattr(model_or_config, "config", model_or_config).id2label
    return tuple(names[index] for index in sorted(names))


def saved_labels(folder: str | Path) -> tuple[str, ...]:
    """Label names of a saved classifier, in the order of its logits."""
    return labels_of(AutoConfig.from_pretrained(folder, trust_remote_code=False))


def embedding_width(folder: Path) -> int:
    """Width of a saved model's word embeddings, without loading its weights."""
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        return int(word_embeddings(AutoModelForSequenceClassification.from_config(config)).shape[1])


def longest_input(source: str | Path, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens that model and tokenizer take, special tokens included."""
    _refuse_unsupported(source)
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    # These count positions from behind the padding token's id.
    offset = config.pad_token_id + 1 if config.model_type in ("mpnet", "roberta", "xlm-roberta") else 0
    return min(int(tokenizer.model_max_length), int(config.max_position_embeddings) - offset)


def model_hash(folder: Path) -> str:
    """Names a saved model by its weights and by what of its configuration decides the logits."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for passing in ("_name_or_path", "transformers_version", "dtype", "torch_dtype"):
        config.pop(passing, None)
    weights = {file.name: sha256_of(file) for file in sorted(folder.glob("*.safetensors"))}
    return hash_of({"config": config, "weights": weights})


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Names a tokenizer by everything that decides token ids, whatever folder it came from."""
    named: dict[str, Any] = {
        "inputs": tokenizer.model_input_names,
        "special": sorted(tokenizer.all_special_ids),
        "unknown": tokenizer.unk_token_id,
        "truncation_side": tokenizer.truncation_side,
    }
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        named["rules"] = {name: value for name, value in rules.items() if name not in ("truncation", "padding")}
    else:
        named["rules"] = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    return hash_of(named)


def word_embeddings(model: PreTrainedModel) -> Tensor:
    """The word-embedding table [vocabulary, width]; its width need not be the model's hidden size."""
    return cast(Tensor, model.get_input_embeddings().weight)


def logits_from_embeddings(model: PreTrainedModel, batch: Batch, embeddings: Tensor) -> Tensor:
    """Logits [rows, outputs] from word embeddings [rows, tokens, width] in place of ``batch["input_ids"]``.

    Rows must be padded on the right: models that count positions from the ids of unpadded tokens (RoBERTa, MPNet) count
    the same way from embeddings only then.
    """
    others = {name: value for name, value in batch.items() if name != "input_ids"}
    return cast(Tensor, model(inputs_embeds=embeddings, **others).logits)


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """Evaluation mode and no parameter gradients, so that a gradient flows to the input alone."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return cast(PreTrainedModel, model.eval())


def parameter_count(model: PreTrainedModel) -> int:
    """Number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def pick_device() -> torch.device:
    """The first GPU where there is one, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _refuse_unsupported(source: str | Path) -> None:
    try:
        kind = AutoConfig.from_pretrained(source, trust_remote_code=False).model_type
    except (OSError, ValueError) as cause:
        raise PipelineError(f"no classifier can be loaded from {source}: {_first_line(cause)}") from cause
    if kind not in SUPPORTED:
        raise PipelineError(f"{source} is a {kind!r} model; perturbing word embeddings is supported for {', '.join(SUPPORTED)}")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
