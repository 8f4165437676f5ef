"""prepare: validated tables of examples and the description of the task, from the raw corpus."""

from pathlib import Path
from typing import Any

import click

from pipeline.config import params as config
from pipeline.config.corpus import TaskSettings
from pipeline.config.errors import PipelineError
from pipeline.config.settings import TeacherSettings
from pipeline.corpus.files import ErrorList
from pipeline.corpus.preparation import Prepared, Reader, check_tokens, prepare
from pipeline.corpus.task import TASK_FILE
from pipeline.models.folder import ModelFolder
from pipeline.store.files import folder_written_whole, write_json
from pipeline.store.keys import sha256_of
from stages.command import note_unseen, out_option, params_option, stage

START_FILE = "start.json"
"""The model that the teacher starts from; a dependency of `teach`."""

MODEL_SUFFIXES = {".json", ".model", ".safetensors", ".txt"}
"""Suffixes of weights, settings and tokenizers."""


class Needs(config.Settings):
    task: TaskSettings


@stage
@click.option("--task", required=True, help="Name of the task, as in params.yaml.")
@params_option
@out_option("Folder for the tables, task.json and the initial models; replaced as a whole.", TASK_FILE, START_FILE)
def main(task: str, params: Path, out: Path) -> None:
    """Read, check and split the raw data of one task.

    tasks.<task>.corpus names files (csv, tsv, jsonl, parquet) or a Hub dataset. All errors are listed with file and
    row before anything is written, including those in the teacher's tokens if it can be loaded. Missing splits are taken
    from the train rows by a hash of the text: equal texts stay together, and rows added later move no other row.
    """
    config.task_in(params, task)
    settings = config.load(params, Needs, task=f"tasks.{task}").task
    content = config.read_params(params)
    masked_lm = config.lookup(content, "masked_lm.model")
    surrogate = config.lookup(config.merged(content, ("distill", "surrogate")), "initial_weights.checkpoint")
    prepared = prepare(task, settings.kind, settings.metric, settings.corpus)
    notes = prepared.notes | _notes_on_tokens(prepared, settings.teacher)
    with folder_written_whole(out) as folder:
        prepared.save(folder)
        write_json(folder / START_FILE, _start_of(settings.teacher.model))
        start = _start_of(masked_lm or settings.teacher.model)
        write_json(folder / "masked_lm_start.json", start | {"texts": prepared.texts_hash()})
        write_json(folder / "surrogate_start.json", _start_of(surrogate))
    for split, table in prepared.tables.items():
        click.echo(f"{split:<5} {table.num_rows:>7} rows: {prepared.label_summary(split)}")
    for reason, count in notes.items():
        click.echo(f"note: {count} {reason}")
    note_unseen(*(settings.corpus.files or {}).values(), settings.corpus.hub, settings.teacher.model, masked_lm, surrogate)


def _notes_on_tokens(prepared: Prepared, teacher: TeacherSettings) -> dict[str, int]:
    """Check the texts with the teacher's tokenizer; a teacher that cannot be loaded is skipped.

    Raises:
        PipelineError: rows that the teacher cannot read, or its ``max_length`` is too small.
    """
    try:
        if (folder := ModelFolder.at_hand(teacher.model)) is None:
            return {}
        vocabulary = int(folder.config.get_text_config().vocab_size)
        reader = Reader(teacher.model, folder.tokenizer, teacher.max_length, vocabulary)
    except PipelineError:  # `check` and `teach` report it
        return {}
    errors = ErrorList()
    notes = check_tokens(prepared.examples, reader, errors)
    errors.raise_if_any(f"task {prepared.task.name}")
    return notes


def _start_of(model: str | None) -> dict[str, Any]:
    """A model and the hashes of its local files, so that DVC notices changes."""
    files = sorted(file for file in Path(str(model)).glob("*") if file.is_file() and file.suffix in MODEL_SUFFIXES)
    return {"model": model, "files": {file.name: sha256_of(file) for file in files}}


if __name__ == "__main__":
    main()
