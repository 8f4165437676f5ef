"""Trainings kept in the store: fetched if finished before, resumed if killed."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.config.settings import RuntimeSettings
from pipeline.models.folder import ModelFolder
from pipeline.store.collect import write_stored_as
from pipeline.store.files import folder_written_whole
from pipeline.store.keys import TRAINING_LIBRARIES, Key, computed_by, sha256_of
from pipeline.store.store import Facts, Store, open_store
from pipeline.training.callbacks import RunOptions


def training_key(content: str, module: str, files: Iterable[Path], model: ModelFolder, settings: Mapping[str, Any]) -> Key:
    """Everything that decides a training: ``content`` names its kind of result, ``module`` trains, ``model`` is its start."""
    return {
        "content": content,
        "files": {file.name: sha256_of(file) for file in files},
        "model": model.identity,
        "tokenizer": model.tokenizer_hash,
        "settings": dict(settings),
        "computed_by": computed_by(module, TRAINING_LIBRARIES),
    }


def run_options(store: Store, key: Key, runtime: RuntimeSettings) -> RunOptions:
    """How to run the training of an entry, with checkpoints in the store until it is put."""
    return RunOptions(store.unfinished(key), runtime.save_steps, runtime.dataloader_num_workers, tuple(runtime.report_to))


def fetch_or_train(
    key: Key, title: str, out: Path, runtime: RuntimeSettings, train: Callable[[Path, RunOptions], Facts]
) -> dict[str, Any]:
    """Place a finished training at the folder ``out``, from the store or trained now; returns its facts.

    ``title`` is its name in progress lines. ``train`` writes into the folder it gets and returns plain facts.
    """
    store = open_store(runtime)

    def make() -> None:
        facts: Facts = {"title": title}
        with store.put(key, facts) as folder:
            facts |= train(folder, run_options(store, key, runtime))

    entry = store.obtain(key, title, make)
    with folder_written_whole(out) as folder:
        store.place(entry, folder)
        write_stored_as(folder, entry)
    return entry.facts
