"""surrogate: small students trained on the soft labels only, whose checkpoints give the gradient of perturbations."""

from functools import partial
from pathlib import Path

import click

from pipeline.config import params as config
from pipeline.config.params import Settings
from pipeline.config.sections import SURROGATE, augment_places
from pipeline.config.settings import AugmentSettings, Checkpoint, RuntimeSettings, SurrogateSettings
from pipeline.distill.jobs import surrogate_key
from pipeline.distill.surrogate import train_surrogate
from pipeline.models.folder import ModelFolder
from pipeline.perturbation.surrogate import SURROGATE_FILE
from pipeline.shards.manifest import Manifest
from pipeline.store.files import folder_written_whole, write_json
from pipeline.store.store import open_store
from pipeline.training.resuming import fetch_or_train
from stages.command import check_apart, check_task, folder_option, out_option, params_option, stage
from stages.precision import note_slow_precision


class Needs(Settings):
    surrogate: SurrogateSettings
    augment: AugmentSettings
    runtime: RuntimeSettings


@stage
@click.option("--task", required=True, help="Name of the task in params.yaml.")
@folder_option("--soft-labels", "Output of `soft_label`.")
@folder_option("--teacher", "Output of `teach`: tokenizer, configuration and initial weights; the teacher never runs.")
@params_option
@out_option("Folder for the checkpoints, or the note that none are needed; replaced as a whole.", SURROGATE_FILE)
def main(task: str, soft_labels: Path, teacher: Path, params: Path, out: Path) -> None:
    """Train the surrogates of one task, if its variants follow their gradients.

    A perturbation that moves the teacher need not move a student. With `gradient_from: surrogate` the perturbed variants
    follow the gradients of their checkpoints in turn, and the teacher labels them. A finished training is fetched from the
    store; a killed one resumes.
    """
    config.task_in(params, task)
    check_task(task, soft_labels, "soft labels", Manifest.read(soft_labels).task.name)
    places = augment_places(config.read_params(params), task)
    needs = config.load(params, Needs, surrogate=SURROGATE, augment=places, runtime="runtime")
    if not needs.augment.needs_surrogate():
        with folder_written_whole(out) as folder:
            write_json(folder / SURROGATE_FILE, {"checkpoints": 0})
        click.echo(f"{out}: no surrogate, since no variant of this task follows one")
        return
    note_slow_precision(params)
    if isinstance(start := needs.surrogate.initial_weights, Checkpoint):
        check_apart(out, "the model that it starts from", start.checkpoint)
    opened, store = ModelFolder(teacher), open_store(needs.runtime)
    with folder_written_whole(out) as folder:
        for number, settings in enumerate(needs.surrogate.each(), start=1):
            facts = fetch_or_train(
                surrogate_key(soft_labels, opened, settings),
                f"surrogate {task}",
                folder / str(number),
                needs.runtime,
                partial(train_surrogate, soft_labels, opened, settings, store=store),
            )
            click.echo(f"{out / str(number)}: {facts['checkpoints']} checkpoints, dev {facts['dev']:.4f} at the end")
        write_json(folder / SURROGATE_FILE, {"checkpoints": needs.surrogate.checkpoints})


if __name__ == "__main__":
    main()
