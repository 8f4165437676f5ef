"""A pretrained model as it is stored, in a folder or on a hub: configuration, tokenizer and hashes; loads no weights."""

import inspect
import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
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
    PreTrainedTokenizerBase,
)
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE
from transformers.utils import CONFIG_NAME

from pipeline.config.errors import PipelineError
from pipeline.corpus.task import Task
from pipeline.models.architectures import DECODERS, labels_of, positions_of, reject_unsupported
from pipeline.models.forward import word_embeddings
from pipeline.store.keys import hash_of, sha256_of

CACHED_PARTS = (("*.safetensors", "*.bin"), ("tokenizer.json", "tokenizer_config.json"))
"""A cached hub model counts as complete if it has one file of each group."""

CONFIG_FORMS: dict[str, tuple[type, str]] = {
    "id2label": (dict, 'a mapping such as {"0": "negative", "1": "positive"}'),
    "label2id": (dict, 'a mapping such as {"negative": 0, "positive": 1}'),
    "num_labels": (int, "a whole number"),
}
"""Types of the entries of config.json with which transformers crashes if they have another."""

CODE_ENTRIES = ("auto_map", "custom_pipelines")
"""Entries that name code shipped with a model; it is never run, and copies of the model omit them."""

TOKEN_ROLES = ("bos", "cls", "eos", "mask", "pad", "sep", "unk")

ADAPTER = "adapter_config.json"
MERGE = "it holds an adapter: merge that into its model (merge_and_unload) and save the whole"
SAVE = "save the model there (save_pretrained)"

LFS_POINTER, LFS_BYTES = b"version https://git-lfs.github.com/spec/", 1024
"""First bytes of a Git LFS pointer, and its greatest size."""


class ModelFolder:
    """A model and its tokenizer; each part is read once, when it is first used.

    All properties raise a ``PipelineError`` if the part is missing or damaged.
    """

    def __init__(self, source: str | Path) -> None:
        """``source`` is a folder, or a hub id such as ``org/name`` or ``org/name@revision``; error messages name it."""
        self.source = source
        self.path: Path | None = Path(source) if Path(source).is_dir() else None
        """The local folder that is read; None if transformers has to ask the hub."""

    @classmethod
    def at_hand(cls, source: str) -> "ModelFolder | None":
        """The model if it is on this machine, as a folder or complete in the hub's cache; contacts no hub."""
        found = cls(source)
        if found.path is None and _is_hub_id(source):
            name, revision = on_hub(source)
            cached = try_to_load_from_cache(name, CONFIG_NAME, revision=revision)
            folder = Path(cached).parent if isinstance(cached, str) else None
            if folder and all(any(any(folder.glob(name)) for name in group) for group in CACHED_PARTS):
                found.path = folder
        return found if found.path else None

    def error(self, reason: str, part: str = "model") -> PipelineError:
        """The error that this model, or its tokenizer, cannot be loaded."""
        return PipelineError(f"no {part} can be loaded from {self.source}: {reason}")

    @property
    def folder(self) -> Path:
        """The local folder, which may be missing."""
        return self.path or Path(self.source)

    @property
    def location(self) -> dict[str, Any]:
        """Arguments of ``from_pretrained`` that say where the model is."""
        if isinstance(self.source, Path) or self.folder.exists():
            return {"pretrained_model_name_or_path": self.folder}
        name, revision = on_hub(self.source)
        return {"pretrained_model_name_or_path": name, "revision": revision or "main"}

    def check_exists(self, part: str = "model") -> None:
        """Raise if the source is neither a folder nor, by its form, a hub id; contacts no hub."""
        place = Path(self.source)
        if place.is_file():
            raise self.error("it is a file, not a folder", part)
        has_parent = place.parent != Path() and place.parent.is_dir()
        if not place.exists() and (isinstance(self.source, Path) or has_parent or not _is_hub_id(self.source)):
            raise self.error("there is no such folder", part)

    def check_files(self, weights: bool = True) -> None:
        """Raise if a local folder lacks a configuration or, with ``weights``, complete safetensors; loads nothing."""
        self.check_exists()
        if (folder := self.path) is None:
            return
        adapter = (folder / ADAPTER).is_file()
        if not (folder / CONFIG_NAME).is_file():
            checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: (len(path.name), path.name))
            other = f"name one of its checkpoints, such as {checkpoints[-1]}" if checkpoints else SAVE
            raise self.error(f"it has no {CONFIG_NAME}; {MERGE if adapter else other}")
        self._check_pointers("model")
        if not weights:
            return
        if adapter:
            raise self.error(f"beside the model {MERGE}")
        if not any(folder.glob("*.safetensors")):
            pickled = any(folder.glob("*.bin"))
            why = " .bin files are not read, since they can run code; load them where you trust them and" if pickled else ""
            raise self.error(f"it has no weights as safetensors;{why} {SAVE}")
        for file in sorted(folder.glob("*.safetensors")):
            try:
                with safe_open(file, framework="pt"):  # reads the header only
                    pass
            except SafetensorError as cause:
                raise self.error(f"{file.name} is damaged ({cause}); copy it again") from cause

    def _check_pointers(self, part: str) -> None:
        """Raise if a file is a Git LFS pointer; some tokenizers would read it as a vocabulary."""
        for file in sorted(path for path in self.folder.glob("*") if path.is_file() and path.stat().st_size < LFS_BYTES):
            if file.read_bytes().startswith(LFS_POINTER):
                raise self.error(f"{file.name} is a Git LFS pointer, not the file: git lfs pull", part)

    @contextmanager
    def reading(self, part: str = "model") -> Iterator[None]:
        """Turn any exception of a library about a damaged model into one sentence."""
        try:
            yield
        except (PipelineError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as cause:
            first, *others = [line.strip() for line in str(cause).splitlines() if line.strip()] or [type(cause).__name__]
            said = f"{first} {others[0]}" if first.endswith(":") and others else first
            said += self._damaged_json() if isinstance(cause, ValueError) else ""
            raise self.error(said.replace(str(self.folder), str(self.source)), part) from cause

    def _damaged_json(self) -> str:
        """Names a file that is not valid JSON, if there is one."""
        for file in sorted(self.folder.glob("*.json")):
            try:
                json.loads(file.read_bytes())
            except ValueError:
                return f"; {file.name} is not valid JSON, copy it again"
        return ""

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The model's configuration."""
        self.check_files(weights=False)
        with self.reading():
            written, _ = PreTrainedConfig.get_config_dict(**self.location)
        for name, (form, wanted) in CONFIG_FORMS.items():
            value = written.get(name)
            numbered = name != "id2label" or not isinstance(value, dict) or all(str(i).strip().isdecimal() for i in value)
            if not isinstance(value, form | None) or not numbered:
                shown = json.dumps(value, ensure_ascii=False)
                raise self.error(f"{name} in its config.json must be {wanted}, not {shown}")
        with self.reading():
            return cast(PreTrainedConfig, AutoConfig.from_pretrained(**self.location, trust_remote_code=False))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, which always has a padding token.

        A decoder's pads with the token that its configuration names; another without one pads with its end-of-text token.
        """
        self.check_exists("tokenizer")
        self._check_pointers("tokenizer")
        with self.reading("tokenizer"):
            found = AutoTokenizer.from_pretrained(**self.location, trust_remote_code=False)
        tokenizer = cast(PreTrainedTokenizerBase, found)
        for name in CODE_ENTRIES:
            tokenizer.init_kwargs.pop(name, None)
        most = tokenizer.model_max_length
        if not isinstance(most, int | float) or not math.isfinite(most):
            raise PipelineError(f"the tokenizer of {self.source} has model_max_length: {most!r}; it must be a whole number")
        with suppress(PipelineError):  # a folder may hold a tokenizer only
            named = self.config.get_text_config().pad_token_id
            if self.config.model_type in DECODERS and named in tokenizer.added_tokens_decoder:
                tokenizer.pad_token = tokenizer.convert_ids_to_tokens(named)
        if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
            raise PipelineError(
                f"{self.source} holds no tokenizer: transformers finds only special tokens and no word; save the model's own "
                "tokenizer beside it (tokenizer.save_pretrained)"
            )
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise PipelineError(
                    f"the tokenizer of {self.source} has neither a padding nor an end-of-text token; name one as pad_token in "
                    "its tokenizer_config.json"
                )
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @cached_property
    def task(self) -> Task:
        """The task that is stored beside a teacher."""
        return Task.read(self.folder)

    @cached_property
    def hash(self) -> str:
        """Names the model in a local folder by its weights and the configuration entries that affect its logits."""
        self.check_files()
        try:
            config = json.loads((self.folder / CONFIG_NAME).read_text(encoding="utf-8"))
        except ValueError as cause:
            raise PipelineError(f"{self.folder / CONFIG_NAME} is not valid JSON: {cause}") from cause
        for name in ("_name_or_path", "transformers_version", "dtype", "torch_dtype"):
            config.pop(name, None)
        weights = {file.name: sha256_of(file) for file in sorted(self.folder.glob("*.safetensors"))}
        return hash_of({"config": config, "weights": weights})

    @cached_property
    def identity(self) -> str:
        """Names a folder by ``hash``, and a hub model by its id and the commit of its revision."""
        if self.path:
            return self.hash
        name, revision = on_hub(str(self.source))
        _ = self.config  # fetches it
        commit = Path(hf_hub_download(name, CONFIG_NAME, revision=revision)).parent.name
        return f"{name}@{commit}"

    @cached_property
    def tokenizer_hash(self) -> str:
        """Names the tokenizer by everything that decides token ids."""
        return tokenizer_hash(self.tokenizer)

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names in the order of the logits."""
        return labels_of(self.config)

    @cached_property
    def embedding_width(self) -> int:
        """Width of the word embeddings."""
        with torch.device("meta"):
            return int(word_embeddings(AutoModelForSequenceClassification.from_config(self.config)).shape[1])

    @property
    def longest_input(self) -> int:
        """The greatest number of tokens that both model and tokenizer accept, special tokens included."""
        reject_unsupported(self.config, self.source)
        return int(min(self.tokenizer.model_max_length, positions_of(self.config)))

    @property
    def has_regression_head(self) -> bool:
        """Whether it was saved as a classifier with one output."""
        kinds = self.config.architectures or []
        return self.config.num_labels == 1 and any(kind.endswith("ForSequenceClassification") for kind in kinds)

    def check_saving(self) -> None:
        """Raise if saving changes the tokenizer, as it does BERTweet's: later stages would cut texts differently."""
        if self.tokenizer.is_fast:  # saved as the one file of rules that names it
            return
        with tempfile.TemporaryDirectory(prefix="tokenizer-") as place:
            self.tokenizer.save_pretrained(place)
            if ModelFolder(place).tokenizer_hash != self.tokenizer_hash:
                raise PipelineError(
                    f"the tokenizer of {self.source}, a {type(self.tokenizer).__name__}, changes when transformers saves it; "
                    "save the model with a fast tokenizer (tokenizer.json)"
                )


def on_hub(source: str) -> tuple[str, str | None]:
    """Model and revision of ``org/name@revision``; the revision is None if none is named."""
    name, at, revision = source.partition("@")
    return name, revision if at else None


def _is_hub_id(source: str) -> bool:
    name, revision = on_hub(source)
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return revision != ""


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Names a tokenizer by everything that decides token ids, wherever it was loaded from."""
    named: dict[str, Any] = {
        "inputs": tokenizer.model_input_names,
        "special": sorted(tokenizer.all_special_ids),
        "roles": {role: getattr(tokenizer, f"{role}_token_id") for role in TOKEN_ROLES},
        "truncation_side": tokenizer.truncation_side,
    }
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        named["rules"] = {name: value for name, value in rules.items() if name not in ("truncation", "padding")}
    else:
        named["rules"] = _python_rules(tokenizer)
    return hash_of(named)


def _python_rules(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What decides the ids of a tokenizer written in Python: the arguments and files that it saves."""
    with tempfile.TemporaryDirectory(prefix="tokenizer-") as place:
        tokenizer.save_pretrained(place)
        saved = json.loads((Path(place) / TOKENIZER_CONFIG_FILE).read_text(encoding="utf-8"))
        files = [Path(place) / name for name in tokenizer.vocab_files_names.values()]
        hashes = {file.name: sha256_of(file) for file in files if file.is_file()}
    arguments = {*inspect.signature(type(tokenizer).__init__).parameters, "added_tokens_decoder"} - {"model_max_length"}
    settings = {name: value for name, value in saved.items() if name in arguments}
    return {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab(), "settings": settings, "files": hashes}
