"""masked_lm: the masked language model that replaces words, trained on the task's texts or used as it is."""

from pathlib import Path

import click

from pipeline.config import params as config
from pipeline.config.params import Settings
from pipeline.config.sections import MASKED_LM, augment_places
from pipeline.config.settings import AugmentSettings, MaskedLMSettings, RuntimeSettings, TeacherSettings
from pipeline.corpus.task import Task
from pipeline.models.folder import ModelFolder
from pipeline.training.masked_lm import MASKED_LM_FILE, check_masked_lm, masked_lm_in, prepare_masked_lm
from pipeline.training.resuming import fetch_or_train, training_key
from stages.command import check_apart, check_task, folder_option, out_option, params_option, stage
from stages.precision import note_slow_precision


class Needs(Settings):
    teacher: TeacherSettings
    masked_lm: MaskedLMSettings
    augment: AugmentSettings
    runtime: RuntimeSettings


@stage
@click.option("--task", required=True, help="Name of the task in params.yaml.")
@folder_option("--prepared", "Output of `prepare`.")
@params_option
@out_option("Folder for the model, or the note that none is needed; replaced as a whole.", MASKED_LM_FILE)
def main(task: str, prepared: Path, params: Path, out: Path) -> None:
    """Train a masked language model on the train texts of a task, if one of its recipes contains masked_lm.

    Labels are not read. A finished training is fetched from the store; a killed
    one resumes. With `fine_tune: false` a finished model is used as it is.
    """
    config.task_in(params, task)
    check_task(task, prepared, "corpus", Task.read(prepared).name)
    places = augment_places(config.read_params(params), task)
    needs = config.load(params, Needs, teacher=f"tasks.{task}.teacher", masked_lm=MASKED_LM, augment=places, runtime="runtime")
    settings, teacher = needs.masked_lm if needs.augment.uses("masked_lm") else None, needs.teacher
    if settings is not None:
        check_apart(out, "the model that it starts from", settings.model or teacher.model)
    if settings is None or not settings.fine_tune:  # a model that is used as it is is not stored
        facts = prepare_masked_lm(prepared, teacher, settings, out)
    else:
        note_slow_precision(params)
        model = ModelFolder(settings.model or teacher.model)
        check_masked_lm(model, ModelFolder(teacher.model), settings.fine_tune, teacher.max_length)
        files = [prepared / name for name in ("train.parquet", "dev.parquet")]
        deciding = settings.model_dump(mode="json", exclude={"model"}) | {"max_length": teacher.max_length}
        fetch_or_train(
            training_key("masked_lm", "pipeline.training.masked_lm", files, model, deciding),
            f"masked_lm {task}",
            out,
            needs.runtime,
            lambda folder, options: prepare_masked_lm(prepared, teacher, settings, folder, options).model_dump(),
        )
        facts = masked_lm_in(out)
    click.echo(f"{out}: {facts.summary()}")


if __name__ == "__main__":
    main()
