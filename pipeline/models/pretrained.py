"""Pretrained models and tokenizers loaded from a hub or a folder: safetensors only, no code of theirs run, whole or refused.

Knows how transformers loads; must not know what a model is used for.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import CONFIG_NAME
from transformers.utils import logging as transformers_logging

from pipeline.config.errors import PipelineError
from pipeline.corpus.task import Task
from pipeline.models.architectures import (
    DECODERS,
    forget_activation,
    head_settings,
    labels_of,
    positions_of,
    refuse_unsupported,
)
from pipeline.models.forward import word_embeddings

PARTS = (("*.safetensors", "*.bin"), ("tokenizer.json", "tokenizer_config.json"))
"""Of each of these a model of the hub must have one in the cache to be asked: weights, though .bin is refused; a tokenizer."""

FORMS: Mapping[str, tuple[type, str]] = {
    "id2label": (dict, 'a mapping such as {"0": "negative", "1": "positive"}'),
    "label2id": (dict, 'a mapping such as {"negative": 0, "positive": 1}'),
    "num_labels": (int, "a whole number"),
}
"""What of a configuration transformers stumbles over where it has another form than this."""

FORGOTTEN = ("auto_map", "custom_pipelines")
"""What of a configuration names code beside a model; it is never run, and copies of the model do not carry it."""

HEAD = re.compile(r"(^|\.)(classifier|pre_classifier|pooler|head|score|sequence_summary|logits_proj)\.")
"""Names of the parameters behind the encoder, which a pretrained checkpoint may lack."""

UNREAD = re.compile(
    r"(^|\.)(pooler|cls|lm_head|lm_loss|lm_predictions|mask_predictions|predictions|sop_classifier|generator_predictions|"
    r"generator_lm_head|discriminator_predictions|vocab_transform|vocab_layer_norm|vocab_projector|decoder)\."
    r"|(^|\.)(position_ids|token_type_ids|inv_freq|masked_bias|attn\.bias)$"
)
"""Names of what a file may hold beside a classifier without changing its answers: poolers that its type does not read, heads of
pre-training, and tables that are computed anew."""

ADAPTER = "adapter_config.json"
MERGED = "it holds an adapter: merge that into its model (merge_and_unload) and save the whole"

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
LFS_BYTES = 1024
"""A pointer is smaller."""


def check_place(source: str | Path, what: str) -> None:
    """Refuse a folder that is not there before a hub is asked for it.

    A path is one, as is what cannot be a hub id, or lies in a folder that is there.

    Raises:
        PipelineError: there is none; ``what`` is what was looked for.
    """
    place = Path(source)
    beside = place.parent != Path() and place.parent.is_dir()
    if not place.exists() and (isinstance(source, Path) or beside or not is_hub_id(source)):
        raise PipelineError(f"no {what} can be loaded from {source}: there is no such folder")


def is_hub_id(source: str) -> bool:
    """Whether the hub may have a model of this name; behind an @ stands a revision of it."""
    name, revision = on_hub(source)
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return revision != ""


def on_hub(source: str) -> tuple[str, str | None]:
    """Of ``org/name@revision`` the model and the branch, tag or commit of it; the hub's newest where none is named."""
    name, at, revision = source.partition("@")
    return name, revision if at else None


def folder_at_hand(model: str) -> Path | None:
    """The folder of a model on this machine: its own, or that of a hub's model that is whole in the cache; no hub is asked."""
    if Path(model).is_dir():
        return Path(model)
    if not is_hub_id(model):
        return None
    name, revision = on_hub(model)
    cached = try_to_load_from_cache(name, CONFIG_NAME, revision=revision)
    folder = Path(cached).parent if isinstance(cached, str) else None
    return folder if folder and all(any(any(folder.glob(name)) for name in part) for part in PARTS) else None


def _place(source: str | Path) -> dict[str, Any]:
    """Where transformers finds a model: in a folder, or on a hub, in the revision that is named."""
    if isinstance(source, Path) or Path(source).exists():
        return {"pretrained_model_name_or_path": source}
    name, revision = on_hub(source)
    return {"pretrained_model_name_or_path": name, "revision": revision or "main"}


def check_folder(folder: Path, what: str, weights: bool = True) -> None:
    """Refuse a folder that holds no model; nothing is loaded.

    Raises:
        PipelineError: it has no configuration, or no whole weights as safetensors where they are asked for; ``what`` is what
            was looked for.
    """
    if not (folder / CONFIG_NAME).is_file():
        raise PipelineError(f"no {what} can be loaded from {folder}: it has no {CONFIG_NAME}; {_instead(folder)}")
    _refuse_pointers(folder, what)
    if weights and (folder / ADAPTER).is_file():
        raise PipelineError(f"no {what} can be loaded from {folder}: beside the model {MERGED}")
    if weights and not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin"))
        why = " .bin files are not read, since they can run code; load them where you trust them and" if pickled else ""
        way_out = f"{why} save the model there (save_pretrained)"
        raise PipelineError(f"no {what} can be loaded from {folder}: it has no weights as safetensors;{way_out}")
    for file in sorted(folder.glob("*.safetensors")) if weights else ():
        try:
            with safe_open(file, framework="pt"):  # reads what lies where, no weight
                pass
        except SafetensorError as cause:
            damage = f"{file.name} is damaged ({cause}); copy it again"
            raise PipelineError(f"no {what} can be loaded from {folder}: {damage}") from cause


def _refuse_pointers(folder: Path, what: str) -> None:
    """Refuse a folder in which Git LFS left a note in a file's place: some tokenizers would take it for a vocabulary."""
    for file in sorted(path for path in folder.glob("*") if path.is_file() and path.stat().st_size < LFS_BYTES):
        if file.read_bytes().startswith(LFS_POINTER):
            raise PipelineError(
                f"no {what} can be loaded from {folder}: {file.name} is a Git LFS pointer, not the file: git lfs pull"
            )


def _instead(folder: Path) -> str:
    """What to do about a folder without a configuration."""
    if (folder / ADAPTER).is_file():
        return MERGED
    states = sorted(folder.glob("checkpoint-*"), key=lambda path: (len(path.name), path.name))
    return f"name one of its checkpoints, such as {states[-1]}" if states else "save a model there (save_pretrained)"


def commit_of(source: str) -> str:
    """The commit that a hub id means now; its configuration is fetched.

    Raises:
        PipelineError: the hub has no such model or revision.
    """
    config_of(source)
    name, revision = on_hub(source)
    return Path(hf_hub_download(name, CONFIG_NAME, revision=revision)).parent.name


def config_of(source: str | Path, what: str = "model") -> PreTrainedConfig:
    """The configuration of a hub id or folder.

    Raises:
        PipelineError: there is none; ``what`` is what was looked for.
    """
    check_place(source, what)
    if Path(source).is_dir():
        check_folder(Path(source), what, weights=False)
    with _sentence(source, what):
        written, _ = PreTrainedConfig.get_config_dict(**_place(source))
    if odd := _odd_form(written):
        raise PipelineError(f"no {what} can be loaded from {source}: {odd}")
    with _sentence(source, what):
        return cast(PreTrainedConfig, AutoConfig.from_pretrained(**_place(source), trust_remote_code=False))


def _odd_form(written: Mapping[str, Any]) -> str | None:
    """What of a configuration has a form that transformers stumbles over, in a sentence; None where nothing has."""
    for name, (form, wanted) in FORMS.items():
        if not isinstance(written.get(name), form | None):
            return f"{name} in its config.json must be {wanted}, not {json.dumps(written[name], ensure_ascii=False)}"
    names = written.get("id2label") or {}
    if not all(str(number).strip().isdecimal() for number in names):
        return f"id2label in its config.json must be {FORMS['id2label'][1]}, not {json.dumps(names, ensure_ascii=False)}"
    return None


@contextmanager
def _sentence(source: str | Path, what: str) -> Iterator[None]:
    """Whatever a library raises over a foreign folder, as one sentence."""
    try:
        yield
    except (PipelineError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as cause:
        raise PipelineError(f"no {what} can be loaded from {source}: {_told(cause)}{_damaged(source, cause)}") from cause


def _damaged(source: str | Path, error: Exception) -> str:
    """Which file of a folder is no JSON, where that is what a library complains of without its name."""
    for file in sorted(Path(source).glob("*.json")) if isinstance(error, ValueError) else ():
        try:
            json.loads(file.read_bytes())
        except ValueError:
            return f"; {file.name} is no JSON, copy it again"
    return ""


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub id or folder.

    That of a decoder pads with the token that its configuration names, which the head does not read; any other without a
    padding token pads with its end-of-text token.
    """
    check_place(source, "tokenizer")
    if Path(source).is_dir():
        _refuse_pointers(Path(source), "tokenizer")
    with _sentence(source, "tokenizer"):
        tokenizer = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(**_place(source), trust_remote_code=False))
    for name in FORGOTTEN:
        tokenizer.init_kwargs.pop(name, None)
    most = tokenizer.model_max_length
    if not isinstance(most, int | float) or not math.isfinite(most):
        raise PipelineError(f"the tokenizer of {source} has model_max_length: {most!r}; it must be a whole number")
    if (named := _padding_of_decoder(source)) is not None and named in tokenizer.added_tokens_decoder:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(named)
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


def _padding_of_decoder(source: str | Path) -> int | None:
    """The padding token that the configuration of a decoder names; None where a tokenizer lies without a model."""
    try:
        config = config_of(source)
    except PipelineError:
        return None
    return config.get_text_config().pad_token_id if config.model_type in DECODERS else None


def load_classifier(source: str | Path, task: Task | None = None) -> PreTrainedModel:
    """A sequence classifier from safetensors of a hub id or folder, in float32 and evaluation mode.

    Args:
        source: hub id or folder.
        task: where given, the head is made for its labels (new where the checkpoint has none of that size).
    """
    check_classifier_type(source)
    settings = {} if task is None else head_settings(task)
    model, fresh = load_pretrained(AutoModelForSequenceClassification, source, "classifier", task is not None, **settings)
    _refuse_fresh(source, fresh, new_head=task is not None)
    if task is not None and task.kind == "regression":
        forget_activation(model.config)
    return cast(PreTrainedModel, model.eval())


def check_classifier(source: str | Path, new_head: bool) -> None:
    """Refuse a classifier that is not whole, by its configuration and the names and shapes of its weights alone.

    Args:
        source: hub id or folder.
        new_head: whether it will be fine-tuned, so that it need not have a head.

    Raises:
        PipelineError: it lacks weights, or has some that its type does not read.
    """
    _, fresh = load_pretrained(AutoModelForSequenceClassification, source, "classifier", new_head, device_map="meta")
    _refuse_fresh(source, fresh, new_head)


def check_classifier_type(source: str | Path) -> None:
    """Refuse a model of another type than those that can be run from word embeddings."""
    refuse_unsupported(config_of(source, "classifier"), source)


def load_pretrained(
    auto_class: type[Any], source: str | Path, what: str, new_head: bool, **settings: Any
) -> tuple[PreTrainedModel, list[str]]:
    """A model from safetensors of a hub id or folder, in float32, and the sorted names of its weights that are made up here.

    Made up is what its configuration asks for and the file lacks or has in another shape; a weight tied to a saved one is not.

    Args:
        auto_class: the class of transformers that picks the architecture.
        source: hub id or folder.
        what: what such a model is called where it cannot be loaded.
        new_head: whether its head will be trained, so that another one may be in the file.
        settings: what its configuration is to say instead.

    Raises:
        PipelineError: it cannot be loaded, is quantised, or its file holds weights that would be left out.
    """
    _quieten()
    check_place(source, what)
    if Path(source).is_dir():
        check_folder(Path(source), what)
    if quantised := getattr(config_of(source, what), "quantization_config", None):
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else type(quantised).__name__
        raise PipelineError(
            f"{source} is quantised ({method}); load it where the package of that is installed, then save it in float32: "
            "dequantize(), save_pretrained()"
        )
    with _sentence(source, what):
        model, report = auto_class.from_pretrained(
            **_place(source),
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **settings,
        )
    for name in FORGOTTEN:
        model.config.__dict__.pop(name, None)
    _refuse_left_out(source, model, report["unexpected_keys"], new_head)
    return model, sorted({*report["missing_keys"], *(str(key[0]) for key in report["mismatched_keys"])})


def _quieten() -> None:
    """Neither bars nor warnings of transformers: what they would warn of is looked at here."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _refuse_left_out(source: str | Path, model: PreTrainedModel, unread: Iterable[str], new_head: bool) -> None:
    """A file that holds more than transformers reads was another model's: adapters, relative positions, more layers."""
    lost = sorted(name for name in unread if not UNREAD.search(name) and (not new_head or _of_body(name, model)))
    if lost:
        raise PipelineError(
            f"{source} holds {_count(lost, 'weight')} that transformers does not load ({', '.join(lost[:3])}), so it would not "
            "answer as it was trained to; name a checkpoint whose config.json was saved with these weights, of an architecture "
            "that this version of transformers still supports"
        )


def _count(things: Sequence[object], noun: str) -> str:
    return f"{len(things)} {noun}" + ("" if len(things) == 1 else "s")


def _of_body(name: str, model: PreTrainedModel) -> bool:
    """Whether a weight of a file belongs to the model without its head; of a body that was saved alone no name has a prefix."""
    parts = {part for part, _ in model.base_model.named_children()}
    return name.startswith(f"{model.base_model_prefix}.") or name.partition(".")[0] in parts


def _refuse_fresh(source: str | Path, fresh: list[str], new_head: bool) -> None:
    """Weights that are made up here answer at random; only a head that is to be trained may be."""
    body = [name for name in fresh if not HEAD.search(name)]
    if lacking := body if new_head else fresh:
        if body:
            way_out = "name a checkpoint of this architecture, whose config.json was saved with its weights"
        else:
            way_out = (
                "if it is fine-tuned, its config.json must name a label for each answer of its head (id2label, label2id); "
                "else set teacher.fine_tune: true"
            )
        raise PipelineError(
            f"{source} is not a finished {'encoder' if new_head else 'classifier'}: it lacks weights that its configuration "
            f"asks for, or has them in another shape ({', '.join(lacking[:3])}); {way_out}"
        )


def _told(error: BaseException) -> str:
    """The first line that an error says, and the next where the first only names the place."""
    first, *others = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"{first} {others[0]}" if first.endswith(":") and others else first


def saved_labels(folder: str | Path) -> tuple[str, ...]:
    """Label names of a saved classifier, in the order of its logits."""
    return labels_of(config_of(folder))


def answers_values(source: str | Path) -> bool:
    """Whether a saved model has the head of a regression."""
    config = config_of(source, "classifier")
    return config.num_labels == 1 and any(kind.endswith("ForSequenceClassification") for kind in config.architectures or [])


def embedding_width(folder: Path) -> int:
    """Width of a saved model's word embeddings, without loading its weights."""
    with torch.device("meta"):
        config = config_of(folder)
        return int(word_embeddings(AutoModelForSequenceClassification.from_config(config)).shape[1])


def longest_input(source: str | Path, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens that model and tokenizer take, special tokens included."""
    config = config_of(source, "classifier")
    refuse_unsupported(config, source)
    return int(min(tokenizer.model_max_length, positions_of(config)))
