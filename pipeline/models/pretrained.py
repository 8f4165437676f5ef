"""Pretrained models and tokenizers loaded from a hub or a folder: safetensors only, no code of theirs run, no weight made up.

Knows how transformers loads; must not know what a model is used for.
"""

import re
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError, StrictDataclassError
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

from pipeline.errors import PipelineError
from pipeline.models.architectures import head_settings, labels_of, positions_of, refuse_unsupported
from pipeline.models.forward import word_embeddings
from pipeline.tasks import Task

LOADING_ERRORS = (OSError, ValueError, TypeError, KeyError, SafetensorError, StrictDataclassError)
"""What transformers raises over a folder that is not as it should be."""

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


def _instead(folder: Path) -> str:
    """What to do about a folder without a configuration."""
    if (folder / "adapter_config.json").is_file():
        return "it holds an adapter: merge that into its model (merge_and_unload) and save the whole"
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


def check_vocabulary(source: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that gives ids of which its model has no embedding; tokens that were added and are not used may be.

    Raises:
        PipelineError: its vocabulary is larger than the model's, or its padding token lies outside.
    """
    known = int(config_of(source).get_text_config().vocab_size)
    if tokenizer.vocab_size > known:
        raise PipelineError(f"{source} knows {known} tokens, but its tokenizer gives {tokenizer.vocab_size}")
    if int(tokenizer.pad_token_id) >= known:
        raise PipelineError(
            f"{source} knows {known} tokens, but its tokenizer pads with the id {tokenizer.pad_token_id}; "
            "name one of its own as pad_token in its tokenizer_config.json"
        )


def config_of(source: str | Path, what: str = "model") -> PreTrainedConfig:
    """The configuration of a hub id or folder.

    Raises:
        PipelineError: there is none; ``what`` is what was looked for.
    """
    check_place(source, what)
    if Path(source).is_dir():
        check_folder(Path(source), what, weights=False)
    try:
        return cast(PreTrainedConfig, AutoConfig.from_pretrained(**_place(source), trust_remote_code=False))
    except LOADING_ERRORS as cause:
        raise PipelineError(f"no {what} can be loaded from {source}: {_told(cause)}") from cause


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub id or folder; one without a padding token pads with its end-of-text token."""
    check_place(source, "tokenizer")
    try:
        tokenizer = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(**_place(source), trust_remote_code=False))
    except LOADING_ERRORS as cause:
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
    refuse_unsupported(config_of(source, "classifier"), source)
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
    if Path(source).is_dir():
        check_folder(Path(source), what)
    try:
        model, report = auto_class.from_pretrained(
            **_place(source),
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **settings,
        )
    except LOADING_ERRORS as cause:
        raise PipelineError(f"no {what} can be loaded from {source}: {_told(cause)}") from cause
    return model, sorted({*report["missing_keys"], *(str(key[0]) for key in report["mismatched_keys"])})


def _quieten() -> None:
    """Neither bars nor warnings of transformers: what they would warn of is looked at here."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


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
    first, *others = str(error).strip().splitlines() or [type(error).__name__]
    return f"{first} {others[0].strip()}" if first.endswith(":") and others else first


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


def depth_of(folder: Path) -> int:
    """Number of layers of a saved model."""
    return int(config_of(folder).num_hidden_layers)


def longest_input(source: str | Path, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens that model and tokenizer take, special tokens included."""
    config = config_of(source, "classifier")
    refuse_unsupported(config, source)
    return int(min(tokenizer.model_max_length, positions_of(config)))
