"""Pretrained classifiers: loaded safely, named by hash, run from word embeddings as from token ids, padded as alone.

Knows transformers models and tokenizers; must not know teachers, students or shards.
"""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from pipeline.encoding import Batch
from pipeline.errors import PipelineError
from pipeline.files import hash_of, sha256_of
from pipeline.tasks import Task

ENCODERS = (
    "albert", "bert", "deberta-v2", "distilbert", "electra", "mobilebert", "modernbert", "mpnet", "roberta", "xlm-roberta",
)  # fmt: skip
DECODERS = ("gemma", "gemma2", "gemma3_text", "gpt2", "llama", "qwen2", "qwen3")
READ_AT_THE_END = (*DECODERS, "xlnet")
"""Model types whose head reads the last position, padding or not: they are run with a row's tokens at its end."""

SUPPORTED = tuple(sorted((*ENCODERS, *READ_AT_THE_END)))
"""Model types for which a row is tested to get the logits that transformers gives it alone, from ids."""

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")

HEAD = re.compile(r"(^|\.)(classifier|pre_classifier|pooler|head|score|sequence_summary|logits_proj)\.")
"""Names of the parameters behind the encoder, which a pretrained checkpoint may lack."""


def check_place(source: str | Path, what: str) -> None:
    """Refuse a folder that is not there before a hub is asked for it.

    A path is one, as is what cannot be a hub id, or lies in a folder that is there.

    Raises:
        PipelineError: there is none; ``what`` is what was looked for.
    """
    place = Path(source)
    beside = place.parent != Path() and place.parent.is_dir()
    if not place.exists() and (isinstance(source, Path) or beside or not HUB_ID.fullmatch(source)):
        raise PipelineError(f"no {what} can be loaded from {source}: there is no such folder")


def config_of(source: str | Path, what: str = "model") -> PreTrainedConfig:
    """The configuration of a hub id or folder.

    Raises:
        PipelineError: there is none; ``what`` is what was looked for.
    """
    check_place(source, what)
    try:
        return cast(PreTrainedConfig, AutoConfig.from_pretrained(source, trust_remote_code=False))
    except (OSError, ValueError) as cause:
        raise PipelineError(f"no {what} can be loaded from {source}: {_told(cause)}") from cause


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub id or folder; one without a padding token pads with its end-of-text token."""
    check_place(source, "tokenizer")
    try:
        tokenizer = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(source, trust_remote_code=False))
    except (OSError, ValueError) as cause:
        raise PipelineError(f"no tokenizer can be loaded from {source}: {_told(cause)}") from cause
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise PipelineError(
            f"{source} holds no tokenizer: only special tokens would be known, and no word; save the model's own beside it "
            "(tokenizer.save_pretrained)"
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise PipelineError(
                f"the tokenizer of {source} has neither a padding nor an end-of-text token; name one as pad_token in its "
                "tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_classifier(source: str | Path, task: Task | None = None) -> PreTrainedModel:
    """A sequence classifier from safetensors of a hub id or folder, in float32 and evaluation mode.

    Where its configuration names no padding token, as many decoders' do not, it gets its tokenizer's.

    Args:
        source: hub id or folder.
        task: where given, the head is made for its labels (new where the checkpoint has none of that size).
    """
    _quieten()
    _refuse_unsupported(source)
    settings = {} if task is None else head_settings(task)
    model, fresh = load_pretrained(AutoModelForSequenceClassification, source, "classifier", **settings)
    _refuse_fresh(source, fresh, new_head=task is not None)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = load_tokenizer(source).pad_token_id
    return cast(PreTrainedModel, model.eval())


def load_pretrained(auto_class: type[Any], source: str | Path, what: str, **settings: Any) -> tuple[PreTrainedModel, list[str]]:
    """A model from safetensors of a hub id or folder, in float32, and the sorted names of its weights that are made up here.

    Made up is what its configuration asks for and the file lacks or has in another shape; a weight tied to a saved one is not.

    Args:
        auto_class: the class of transformers that picks the architecture.
        source: hub id or folder.
        what: what such a model is called where it cannot be loaded.
        settings: what its configuration is to say instead.
    """
    _quieten()
    check_place(source, what)
    try:
        model, report = auto_class.from_pretrained(
            source,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **settings,
        )
    except (OSError, ValueError, SafetensorError) as cause:
        raise PipelineError(f"no {what} can be loaded from {source}: {_told(cause)}") from cause
    return model, sorted({*report["missing_keys"], *(str(key[0]) for key in report["mismatched_keys"])})


def _quieten() -> None:
    """Neither bars nor warnings of transformers: what they would warn of is looked at here."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _refuse_fresh(source: str | Path, fresh: list[str], new_head: bool) -> None:
    """Weights that are made up here answer at random; only a head that is to be trained may be."""
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
    return labels_of(config_of(folder))


def embedding_width(folder: Path) -> int:
    """Width of a saved model's word embeddings, without loading its weights."""
    with torch.device("meta"):
        config = config_of(folder)
        return int(word_embeddings(AutoModelForSequenceClassification.from_config(config)).shape[1])


def depth_of(folder: Path) -> int:
    """Number of layers of a saved model."""
    return int(config_of(folder).num_hidden_layers)


def longest_input(source: str | Path, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens that model and tokenizer take, special tokens included."""
    _refuse_unsupported(source)
    positions = positions_of(config_of(source))
    return int(min(tokenizer.model_max_length, positions))


def positions_of(config: Any) -> float:
    """The most tokens that a model of this configuration takes; infinite where its positions have no end, as XLNet's."""
    most = getattr(config, "max_position_embeddings", -1)
    # These count positions from behind the padding token's id.
    offset = config.pad_token_id + 1 if config.model_type in ("mpnet", "roberta", "xlm-roberta") else 0
    return math.inf if most < 0 else int(most) - offset


def model_hash(folder: Path) -> str:
    """Names a saved model by its weights and by what of its configuration decides the logits."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for passing in ("_name_or_path", "transformers_version", "dtype", "torch_dtype"):
        config.pop(passing, None)
    weights = {file.name: sha256_of(file) for file in sorted(folder.glob("*.safetensors"))}
    return hash_of({"config": config, "weights": weights})


def commit_of(source: str) -> str:
    """The commit of a model of a hub, as it lies in the local cache after it was fetched."""
    return str(getattr(config_of(source), "_commit_hash", None))


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


def bare(model: torch.nn.Module) -> PreTrainedModel:
    """A model without what data-parallel training wraps around it."""
    return cast(PreTrainedModel, getattr(model, "module", model))


def word_embeddings(model: PreTrainedModel) -> Tensor:
    """The word-embedding table [vocabulary, width] as the model reads it; its width need not be the model's hidden size.

    It is the weight itself, unless the model scales it on reading, as Gemma does.
    """
    words = model.get_input_embeddings()
    scale = getattr(words, "embed_scale", None)
    return cast(Tensor, words.weight if scale is None else words.weight * scale)


def embed(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """Word embeddings [rows, tokens, width] of token ids [rows, tokens], as the model reads them."""
    return cast(Tensor, bare(model).get_input_embeddings()(input_ids))


def logits_from_ids(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Logits [rows, outputs] of rows padded on the right: those that transformers gives each row alone."""
    return logits_from_embeddings(model, batch, embed(model, batch["input_ids"]))


def logits_from_embeddings(model: PreTrainedModel, batch: Batch, embeddings: Tensor) -> Tensor:
    """Logits [rows, outputs] from word embeddings [rows, tokens, width] in place of ``batch["input_ids"]``.

    Rows must be padded on the right; what counts as padding is told by ``attention_mask`` and never by ids. Embeddings on
    padding are not read: MobileBERT would see the first of them from the last token.
    """
    return cast(Tensor, _run(model, batch, embeddings).logits)


def logits_and_states(model: PreTrainedModel, batch: Batch, embeddings: Tensor, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The same logits, and what the head would read after some layers: states [rows, layers, width] of the first token.

    Of a model that reads a row at its end they are those of the last token. Layers are counted from 1.
    """
    answer = _run(model, batch, embeddings, output_hidden_states=True)
    place = -1 if bare(model).config.model_type in READ_AT_THE_END else 0
    return answer.logits, torch.stack([answer.hidden_states[layer][:, place] for layer in layers], dim=1)


def _run(model: PreTrainedModel, batch: Batch, embeddings: Tensor, **more: Any) -> Any:
    inputs = {name: value for name, value in batch.items() if name != "input_ids"}
    inputs["inputs_embeds"] = embeddings.masked_fill(batch["attention_mask"].unsqueeze(-1) == 0, 0.0)
    kind = bare(model).config.model_type
    if kind in READ_AT_THE_END:
        inputs = _with_padding_first(inputs)
    if kind in DECODERS:
        positions = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        return model(**inputs, position_ids=positions, use_cache=False, **more)
    return model(**inputs, **more)


def _with_padding_first(inputs: Batch) -> Batch:
    """Rows padded on the right, [rows, tokens] or [rows, tokens, width], as rows padded on the left."""
    mask = inputs["attention_mask"]
    tokens = mask.shape[1]
    source = torch.arange(tokens, device=mask.device) + mask.sum(dim=1, keepdim=True)
    source = torch.where(source >= tokens, source - tokens, source)
    return {
        name: torch.gather(value, 1, source if value.dim() == 2 else source.unsqueeze(-1).expand(value.shape))
        for name, value in inputs.items()
    }


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """Evaluation mode and no parameter gradients, so that a gradient flows to the input alone."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return cast(PreTrainedModel, model.eval())


def freeze_unused(model: PreTrainedModel, batch: Batch) -> None:
    """Take parameters that no logit depends on out of a training, for which several processes would wait in vain."""
    logits = logits_from_ids(model.eval(), batch)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(logits.sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)


def parameter_count(model: PreTrainedModel) -> int:
    """Number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def pick_device() -> torch.device:
    """The first GPU where there is one, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _refuse_unsupported(source: str | Path) -> None:
    config = config_of(source, "classifier")
    kind = config.model_type
    if kind not in SUPPORTED:
        raise PipelineError(f"{source} is a {kind!r} model; perturbing word embeddings is supported for {', '.join(SUPPORTED)}")
    if kind == "xlnet" and config.summary_type != "last":
        raise PipelineError(f"{source} is an XLNet with summary_type {config.summary_type!r}; only 'last' is supported")


def _told(error: BaseException) -> str:
    """The first line that an error says."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
