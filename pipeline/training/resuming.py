"""States of a training beside the folder that it makes, for when it is killed. Knows what decides one, not what it trains."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from pipeline.config.params import Settings
from pipeline.config.runtime import RuntimeSettings
from pipeline.models.folder import load_tokenizer, source_hash, tokenizer_hash
from pipeline.store.files import hash_of, sha256_of, write_json
from pipeline.store.sources import BUILD
from pipeline.training.callbacks import RunOptions

KEY_FILE = "key.json"


@contextmanager
def resumable(out: Path, decided_by: Mapping[str, Any], runtime: RuntimeSettings) -> Iterator[RunOptions]:
    """How to run the training that makes ``out``, so that the next run of the same goes on where this one is killed.

    The states lie beside ``out`` until the block ends without an error, or with one before the first of them. Those of a
    training that was decided by anything else, or ran other sources or libraries, are deleted.

    Args:
        out: the folder that is to be made.
        decided_by: plain values, all that decides the training but the code.
        runtime: how often states are kept.
    """
    states = out.with_name(f".{out.name}-training")
    key = hash_of({"decided_by": decided_by, "sources": BUILD.sources, "libraries": BUILD.libraries})
    if _key_of(states) != key:
        shutil.rmtree(states, ignore_errors=True)
        states.mkdir(parents=True)
        write_json(states / KEY_FILE, {"key": key})
    goes_on = True
    try:
        yield RunOptions(states, runtime.save_steps, runtime.dataloader_num_workers, tuple(runtime.report_to))
        goes_on = False
    finally:
        if not goes_on or not any(states.glob(f"{PREFIX_CHECKPOINT_DIR}-*")):
            shutil.rmtree(states, ignore_errors=True)


def deciding(files: Iterable[Path], model: str, settings: Settings) -> dict[str, Any]:
    """What decides a training but the code.

    Args:
        files: those that it reads.
        model: what it begins with.
        settings: those of its stage; a section ``runtime`` among them decides nothing.
    """
    return {
        "files": {file.name: sha256_of(file) for file in files},
        "model": source_hash(model),
        "tokenizer": tokenizer_hash(load_tokenizer(model)),
        "settings": settings.model_dump(mode="json", exclude={"runtime"}),
    }


def _key_of(states: Path) -> str | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((states / KEY_FILE).read_text(encoding="utf-8"))["key"])
    return None
