"""Trainings kept in the store: fetched if finished before, resumed if killed. Knows keys and folders, not what is trained."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.config.settings import RuntimeSettings
from pipeline.models.folder import load_tokenizer, source_hash, tokenizer_hash
from pipeline.store.files import folder_written_whole
from pipeline.store.keys import TRAINING_LIBRARIES, Key, computed_by, sha256_of
from pipeline.store.store import Facts, Store, write_stored_as
from pipeline.training.callbacks import RunOptions


def training_key(content: str, module: str, files: Iterable[Path], model: str, settings: Mapping[str, Any]) -> Key:
    """Everything that decides a training.

    Args:
        content: what it makes.
        module: that trains; its code stands in the key.
        files: those that it reads.
        model: what it begins with.
        settings: plain values.
    """
    return {
        "content": content,
        "files": {file.name: sha256_of(file) for file in files},
        "model": source_hash(model),
        "tokenizer": tokenizer_hash(load_tokenizer(model)),
        "settings": dict(settings),
        "computed_by": computed_by(module, TRAINING_LIBRARIES),
    }


def run_options(store: Store, key: Key, runtime: RuntimeSettings) -> RunOptions:
    """How to run the training of an entry, with checkpoints in the store until it is put."""
    return RunOptions(store.unfinished(key), runtime.save_steps, runtime.dataloader_num_workers, tuple(runtime.report_to))


def fetch_or_train(
    key: Key, title: str, out: Path, runtime: RuntimeSettings, train: Callable[[Path, RunOptions], Facts]
) -> dict[str, Any]:
    """Place a finished training at ``out``, from the store or trained now; returns its facts.

    Args:
        key: decides the training.
        title: what progress lines call it.
        out: the folder; replaced as a whole.
        runtime: where the store is, and how a training is run.
        train: trains and writes into the folder it is given; returns plain facts.
    """
    store = Store(runtime.store_folder)

    def make() -> None:
        facts: Facts = {"title": title}
        with store.put(key, facts) as folder:
            facts |= train(folder, run_options(store, key, runtime))

    entry = store.obtain(key, title, make)
    with folder_written_whole(out) as folder:
        store.place(entry, folder)
        write_stored_as(folder, entry)
    return entry.facts
