"""Models and tokenizers named by everything that decides what they answer, wherever they lie.

Knows which parts of a saved model decide its logits; must not know what is kept under the names.
"""

import inspect
import json
import tempfile
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE
from transformers.utils import CONFIG_NAME

from pipeline.config.errors import PipelineError
from pipeline.models.pretrained import check_folder, commit_of, load_tokenizer, on_hub
from pipeline.store.hashing import hash_of, sha256_of

ROLES = ("bos", "cls", "eos", "mask", "pad", "sep", "unk")
"""Of special tokens: an edit masks with one, a mixture is filled up with another."""


def model_hash(folder: Path) -> str:
    """Names a saved model by its weights and by what of its configuration decides the logits.

    Raises:
        PipelineError: the folder holds no model, or its configuration is no JSON.
    """
    check_folder(folder, "model")
    try:
        config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    except ValueError as cause:
        raise PipelineError(f"{folder / CONFIG_NAME} is no JSON: {cause}") from cause
    for passing in ("_name_or_path", "transformers_version", "dtype", "torch_dtype"):
        config.pop(passing, None)
    weights = {file.name: sha256_of(file) for file in sorted(folder.glob("*.safetensors"))}
    return hash_of({"config": config, "weights": weights})


def source_hash(source: str) -> str:
    """Names what a setting gives as a model: a folder by ``model_hash``, a hub's by its id and the commit that is fetched."""
    if Path(source).is_dir():
        return model_hash(Path(source))
    return f"{on_hub(source)[0]}@{commit_of(source)}"


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Names a tokenizer by everything that decides token ids, whatever folder it came from."""
    named: dict[str, Any] = {
        "inputs": tokenizer.model_input_names,
        "special": sorted(tokenizer.all_special_ids),
        "roles": {role: getattr(tokenizer, f"{role}_token_id") for role in ROLES},
        "truncation_side": tokenizer.truncation_side,
    }
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        named["rules"] = {name: value for name, value in rules.items() if name not in ("truncation", "padding")}
    else:
        named["rules"] = _rules_in_python(tokenizer)
    return hash_of(named)


def check_saving(source: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that is another one once it has been saved, as BERTweet's is, of whose merges the last symbol is lost.

    Raises:
        PipelineError: it is; every later stage would cut texts otherwise than the model was trained on.
    """
    if tokenizer.is_fast:  # saved as one file of rules, which is what names it
        return
    with tempfile.TemporaryDirectory(prefix="tokenizer-") as place:
        tokenizer.save_pretrained(place)
        if tokenizer_hash(load_tokenizer(place)) != tokenizer_hash(tokenizer):
            raise PipelineError(
                f"the tokenizer of {source}, a {type(tokenizer).__name__}, is another one once transformers has saved it; "
                "save the model with a fast tokenizer (tokenizer.json)"
            )


def _rules_in_python(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What decides the ids of a tokenizer that is a Python class: what it is made from, as it saves it."""
    with tempfile.TemporaryDirectory(prefix="tokenizer-") as place:
        tokenizer.save_pretrained(place)
        saved = json.loads((Path(place) / TOKENIZER_CONFIG_FILE).read_text(encoding="utf-8"))
        files = [Path(place) / name for name in tokenizer.vocab_files_names.values()]
        held = {file.name: sha256_of(file) for file in files if file.is_file()}
    made_from = {*inspect.signature(type(tokenizer).__init__).parameters, "added_tokens_decoder"} - {"model_max_length"}
    settings = {name: value for name, value in saved.items() if name in made_from}
    return {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab(), "settings": settings, "files": held}
