"""words: the masked language model that proposes words for a task, fitted to its texts or adopted."""

from pathlib import Path

import click

from pipeline.config import params as config
from pipeline.config.errors import PipelineError
from pipeline.config.params import Settings
from pipeline.config.runtime import RuntimeSettings
from pipeline.corpus.task import Task
from pipeline.models.folder import ModelFolder
from pipeline.models.precision import note_slow_precision
from pipeline.training.masked_lm import WORDS_FILE, FitSettings, WordsSettings, check_words, prepare_words, words_in
from pipeline.training.resuming import fetch_or_train, training_key
from pipeline.training.teacher import TeacherSettings
from stages.command import check_apart, check_task, folder_option, out_option, params_option, stage


class Needs(Settings):
    teacher: TeacherSettings
    words: FitSettings
    runtime: RuntimeSettings


class Chosen(Settings):
    words: WordsSettings


@stage
@click.option("--task", required=True, help="Name of the task in params.yaml.")
@folder_option("--prepared", "Folder that `prepare` wrote.")
@params_option
@out_option("Where to write the model, a Hugging Face folder, or the note that there is none; replaced as a whole.", WORDS_FILE)
def main(task: str, prepared: Path, params: Path, out: Path) -> None:
    """Fit a masked language model to the train texts of a task, or adopt a finished one.

    tasks.<task>.words names the model; with null there is none, and no recipe of the task may ask for masked_lm. Labels are not
    read. The epoch in which masked words of dev are guessed best is kept. A fit that was finished before is taken from the
    store; one that was killed resumes.
    """
    place = f"tasks.{task}"
    settings = config.task_in(params, task)
    check_task(task, prepared, "corpus", Task.read(prepared).name)
    if "words" not in settings:
        raise PipelineError(f"{params}: {place}.words is missing; null says that the task needs no masked language model")
    needs = config.load(params, Needs, teacher=f"{place}.teacher", words="words", runtime="runtime")
    chosen = None if settings["words"] is None else config.load(params, Chosen, words=f"{place}.words").words
    if chosen is not None:
        check_apart(out, "the model that it begins with", chosen.model)
        if chosen.fit:
            note_slow_precision(params, "words")
    teacher = needs.teacher
    if chosen is None or not chosen.fit:  # an adopted model is not stored
        facts = prepare_words(prepared, teacher, chosen, needs.words, out)
    else:
        check_words(ModelFolder(chosen.model), ModelFolder(teacher.model), chosen.fit, teacher.max_length)
        files = [prepared / name for name in ("train.parquet", "dev.parquet")]
        fit = {"max_length": teacher.max_length, "words": needs.words.model_dump(mode="json")}
        fetch_or_train(
            training_key("masked_lm", "pipeline.training.masked_lm", files, chosen.model, fit),
            f"words {task}",
            out,
            needs.runtime,
            lambda folder, options: prepare_words(prepared, teacher, chosen, needs.words, folder, options).model_dump(),
        )
        facts = words_in(out)
    click.echo(f"{out}: {facts.told()}")


if __name__ == "__main__":
    main()
