"""Models and tokenizers named by everything that decides what they answer, wherever they lie.

Knows which parts of a saved model decide its logits; must not know what is kept under the names.
"""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME

from pipeline.errors import PipelineError
from pipeline.files import hash_of, sha256_of
from pipeline.models.pretrained import check_folder, config_of


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
    """Names what a setting gives as a model: a folder by ``model_hash``, a hub id by itself and the commit that was fetched."""
    if Path(source).is_dir():
        return model_hash(Path(source))
    return f"{source}@{getattr(config_of(source), '_commit_hash', None)}"


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
