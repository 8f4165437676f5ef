"""prepare: validated tables of examples and the description of the task, from the raw corpus."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from pipeline.config import params as config
from pipeline.config.corpus import CorpusSettings, Kind, Metric
from pipeline.config.errors import PipelineError
from pipeline.corpus.files import ErrorList
from pipeline.corpus.preparation import Prepared, Reader, check_tokens, prepare
from pipeline.corpus.task import TASK_FILE
from pipeline.models.folder import config_of, folder_at_hand, load_tokenizer
from pipeline.store.files import folder_written_whole, write_json
from pipeline.store.keys import sha256_of
from stages.command import note_unseen, out_option, params_option, stage

START_FILE = "start.json"
"""The model that the teacher starts from; a dependency of `teach`."""

MODEL_SUFFIXES = {".json", ".model", ".safetensors", ".txt"}
"""Suffixes of weights, settings and tokenizers."""


class PrepareSettings(config.Settings):
    """The settings of a task that this stage reads."""

    kind: Kind
    metric: Metric
    corpus: CorpusSettings
    teacher: dict[str, Any]


@stage
@click.option("--task", required=True, help="Name of the task, as in params.yaml.")
@params_option
@out_option("Folder for the tables, task.json and what models begin with; replaced as a whole.", TASK_FILE, START_FILE)
def main(task: str, params: Path, out: Path) -> None:
    """Read, check and split the raw data of one task.

    tasks.<task>.corpus names files (csv, tsv, jsonl, parquet) or a set of the hub. All errors are listed with file and
    row before anything is written, including those in the teacher's tokens if it can be loaded. Missing splits are taken
    from the train rows by a hash of the text: equal texts stay together, and rows added later move no other row.
    """
    config.task_in(params, task)
    settings = config.load(params, PrepareSettings, **{name: f"tasks.{task}.{name}" for name in PrepareSettings.model_fields})
    content = config.read_params(params)
    masked_lm, checkpoint = config.lookup(content, "masked_lm.model"), surrogate_checkpoint(content)
    prepared = prepare(task, settings.kind, settings.metric, settings.corpus)
    notes = prepared.notes | notes_on_tokens(prepared, settings.teacher)
    with folder_written_whole(out) as folder:
        prepared.save(folder)
        write_json(folder / START_FILE, start_of(settings.teacher))
        start = start_of({"model": masked_lm or settings.teacher.get("model")})
        write_json(folder / "masked_lm_start.json", start | {"texts": prepared.texts_hash()})
        write_json(folder / "surrogate_start.json", start_of({"model": checkpoint}))
    for split, table in prepared.tables.items():
        click.echo(f"{split:<5} {table.num_rows:>7} rows: {prepared.label_summary(split)}")
    for reason, count in notes.items():
        click.echo(f"note: {count} {reason}")
    models = [settings.teacher.get("model"), masked_lm, checkpoint]
    note_unseen(*(settings.corpus.files or {}).values(), settings.corpus.hub, *models)


def notes_on_tokens(prepared: Prepared, teacher: Mapping[str, Any]) -> dict[str, int]:
    """Check the texts with the teacher's tokenizer; a teacher that cannot be loaded is skipped.

    Raises:
        PipelineError: rows that the teacher cannot read, or its ``max_length`` is too small.
    """
    model, max_length = str(teacher.get("model")), teacher.get("max_length")
    folder = folder_at_hand(model)
    if folder is None or not isinstance(max_length, int):
        return {}
    try:
        reader = Reader(model, load_tokenizer(folder), max_length, int(config_of(folder).get_text_config().vocab_size))
    except PipelineError:  # `check` and `teach` report it
        return {}
    errors = ErrorList()
    notes = check_tokens(prepared.examples, reader, errors)
    errors.raise_if_any(f"task {prepared.task.name}")
    return notes


def surrogate_checkpoint(params: dict[str, Any]) -> str | None:
    """The model that surrogates start from, if it is not the teacher."""
    start = config.merged(params, ("distill", "surrogate")) or {}
    found = config.lookup(start, "initial_weights.checkpoint")
    return None if found is None else str(found)


def start_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A model and the hashes of its local files, so that DVC notices when they change."""
    model = settings.get("model")
    files = sorted(file for file in Path(str(model)).glob("*") if file.is_file() and file.suffix in MODEL_SUFFIXES)
    return {"model": model, "files": {file.name: sha256_of(file) for file in files}}


if __name__ == "__main__":
    main()
