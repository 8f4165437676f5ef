"""prepare: a raw corpus becomes three checked tables of examples and the description of the task."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from pipeline.config import params as config
from pipeline.config.errors import PipelineError
from pipeline.corpus.faults import FoundFaults
from pipeline.corpus.preparation import Prepared, prepare
from pipeline.corpus.settings import CorpusSettings
from pipeline.corpus.task import TASK_FILE, Kind, Metric, Split, Task
from pipeline.corpus.tokens import Reader, check_tokens
from pipeline.models.folder import config_of, folder_at_hand, load_tokenizer
from pipeline.store.files import canonical_json, folder_written_whole, sha256_of, write_json
from stages.command import note_unseen, out_option, params_option, stage

START_FILE = "start.json"
"""What the teacher begins with; `teach` depends on it."""

LABELS_SHOWN = 12
MODEL_SUFFIXES = {".json", ".model", ".safetensors", ".txt"}
"""Of the files of weights, settings and tokenizers; no reading matter that lies beside them."""

ROWS_HASHED = 10_000
"""At once, so that memory does not grow with the texts."""


class PrepareSettings(config.Settings):
    """What this stage reads of a task's settings."""

    kind: Kind
    metric: Metric
    corpus: CorpusSettings
    teacher: dict[str, Any]
    words: dict[str, Any] | None = None


@stage
@click.option("--task", required=True, help="Name of the task, as in params.yaml.")
@params_option
@out_option("Folder for the tables, task.json and what models begin with; replaced as a whole.", TASK_FILE, START_FILE)
def main(task: str, params: Path, out: Path) -> None:
    """Read, check and split the raw data of one task.

    The corpus is what tasks.<task>.corpus names: files (csv, tsv, jsonl, parquet) or a set of the hub. Every fault in
    it is listed with file and row before anything is written; last those that show in the tokens of the teacher, where
    it can be loaded. Splits that the corpus lacks are taken from its train rows by a hash of the text: equal texts stay
    together, and rows added later move no other row.
    """
    config.task_in(params, task)
    settings = config.load(params, PrepareSettings, **{name: f"tasks.{task}.{name}" for name in PrepareSettings.model_fields})
    checkpoint = checkpoint_of_scout(config.read_params(params), task)
    prepared = prepare(task, settings.kind, settings.metric, settings.corpus)
    notes = prepared.notes | notes_on_tokens(prepared, settings.teacher)
    with folder_written_whole(out) as folder:
        prepared.save(folder)
        write_json(folder / START_FILE, start_of(settings.teacher))
        write_json(folder / "words_start.json", start_of(settings.words or {}) | {"texts": texts_hash(prepared.tables)})
        write_json(folder / "scout_start.json", start_of({"model": checkpoint}))
    for split, table in prepared.tables.items():
        click.echo(f"{split:<5} {table.num_rows:>7} rows: {labels_of(table, prepared.task)}")
    for reason, count in notes.items():
        click.echo(f"note: {count} {reason}")
    models = [settings.teacher.get("model"), (settings.words or {}).get("model"), checkpoint]
    note_unseen(*(settings.corpus.files or {}).values(), settings.corpus.hub, *models)


def notes_on_tokens(prepared: Prepared, teacher: Mapping[str, Any]) -> dict[str, int]:
    """What looks like a mistake once the texts are the teacher's tokens; nothing where it cannot be loaded.

    Raises:
        Faults: rows that the teacher cannot read.
        PipelineError: its ``max_length`` is too small.
    """
    model, max_length = str(teacher.get("model")), teacher.get("max_length")
    folder = folder_at_hand(model)
    if folder is None or not isinstance(max_length, int):
        return {}
    try:
        reader = Reader(model, load_tokenizer(folder), max_length, int(config_of(folder).get_text_config().vocab_size))
    except PipelineError:  # `check` and `teach` say what is wrong with a model
        return {}
    found = FoundFaults()
    notes = check_tokens(prepared.examples, reader, found)
    found.raise_any(f"task {prepared.task.name}")
    return notes


def checkpoint_of_scout(params: dict[str, Any], task: str) -> str | None:
    """The model that the task's scout starts from, where that is another than its teacher."""
    if config.lookup(params, f"tasks.{task}.aim") != "scout":
        return None
    start = (config.lookup(params, "distill") or {}) | (config.lookup(params, "scout") or {})
    found = config.lookup(start, "start.checkpoint")
    return None if found is None else str(found)


def start_of(settings: dict[str, Any]) -> dict[str, Any]:
    """The model that `teach`, `words` or `scout` begins with, so that DVC sees when the files of a local one change."""
    model = settings.get("model")
    files = sorted(file for file in Path(str(model)).glob("*") if file.is_file() and file.suffix in MODEL_SUFFIXES)
    return {"model": model, "files": {file.name: sha256_of(file) for file in files}}


def texts_hash(tables: Mapping[Split, pa.Table]) -> str:
    """Names the texts that `words` reads, whose labels are nothing to it."""
    digest = hashlib.sha256()
    for split in ("train", "dev"):
        for batch in tables[split].drop_columns(["label"]).combine_chunks().to_batches(ROWS_HASHED):
            digest.update(canonical_json(batch.to_pylist()))
    return digest.hexdigest()


def labels_of(table: pa.Table, task: Task) -> str:
    """The labels of a split in a few words: counts of names, or the range of values."""
    labels = table["label"].drop_null()
    if not len(labels):
        return "no labels"
    if task.kind == "regression":
        ends = pa.compute.min_max(labels)
        words = [f"values from {ends['min'].as_py():g} to {ends['max'].as_py():g}"]
    else:
        counts = np.bincount(labels.to_numpy(), minlength=task.outputs)
        words = [f"{name} {count}" for name, count in zip(task.labels, counts, strict=True)]
        if len(words) > LABELS_SHOWN:
            words = [f"{len(words)} labels with {counts.min()} to {counts.max()} rows each"]
    return ", ".join(words + ([f"without label {table['label'].null_count}"] if table["label"].null_count else []))


if __name__ == "__main__":
    main()
