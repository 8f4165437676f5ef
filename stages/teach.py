"""teach: the task's teacher, fine-tuned on the prepared corpus or adopted as it is."""

from pathlib import Path

import click
from transformers.utils import CONFIG_NAME

from pipeline.config import params as config
from pipeline.config.params import Settings
from pipeline.config.sections import TEACH
from pipeline.config.settings import RuntimeSettings, TeacherSettings, TrainingSettings
from pipeline.corpus.task import TASK_FILE, Task
from pipeline.models.folder import ModelFolder
from pipeline.training.resuming import fetch_or_train, training_key
from pipeline.training.teacher import teach
from stages.command import check_apart, check_task, folder_option, out_option, params_option, stage
from stages.precision import note_slow_precision


class Needs(Settings):
    teacher: TeacherSettings
    teach: TrainingSettings
    runtime: RuntimeSettings


@stage
@click.option("--task", required=True, help="Name of the task in params.yaml.")
@folder_option("--prepared", "Output of `prepare`.")
@params_option
@out_option("Folder for the teacher, a Hugging Face model; replaced as a whole.", TASK_FILE, CONFIG_NAME)
def main(task: str, prepared: Path, params: Path, out: Path) -> None:
    """Fine-tune the teacher of a task, or adopt a checkpoint that is already fine-tuned.

    A finished fine-tuning is fetched from the store; a killed one
    resumes. With `fine_tune: false` the label names and the size of the head are checked and the weights kept.
    """
    config.task_in(params, task)
    check_task(task, prepared, "corpus", Task.read(prepared).name)
    needs = config.load(params, Needs, teacher=f"tasks.{task}.teacher", teach=TEACH, runtime="runtime")
    teacher = needs.teacher
    check_apart(out, "the model that it starts from", teacher.model)
    if teacher.fine_tune:
        note_slow_precision(params)
        files = [prepared / name for name in (TASK_FILE, "train.parquet", "dev.parquet")]
        settings = {"max_length": teacher.max_length, "teach": needs.teach.model_dump(mode="json")}
        value = fetch_or_train(
            training_key("teacher", "pipeline.training.teacher", files, ModelFolder(teacher.model), settings),
            f"teach {task}",
            out,
            needs.runtime,
            lambda folder, options: {"dev": teach(prepared, teacher, needs.teach, folder, options)},
        )["dev"]
    else:  # an adopted teacher is not stored
        value = teach(prepared, teacher, needs.teach, out)
    click.echo(f"{out}: teacher of {task}, dev metric {value:.4f}")


if __name__ == "__main__":
    main()
