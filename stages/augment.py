"""augment: variants of the train split, perturbed, edited or mixed, labelled by the teacher, as shards."""

from pathlib import Path

import click

from pipeline.augment.estimate import augment_estimate
from pipeline.augment.passes import augment
from pipeline.augment.recipes import AugmentSettings
from pipeline.config import params as config
from pipeline.config.params import Settings
from pipeline.config.runtime import RuntimeSettings
from pipeline.models.precision import note_slow_precision
from pipeline.shards.manifest import MANIFEST_FILE, Manifest
from stages.command import check_task, folder_option, out_option, params_option, plan_option, stage


class Needs(Settings):
    augment: AugmentSettings
    runtime: RuntimeSettings


@stage
@click.option("--task", required=True, help="Name of the task in params.yaml, whose entry `augment` stands over the section.")
@folder_option("--scores", "Folder that `score` wrote.")
@folder_option("--teacher", "Folder that `teach` wrote.")
@folder_option("--aim", "Folder of the model whose gradient is followed: the teacher's again, or that of a scout.")
@folder_option("--words", "Folder that `words` wrote, for recipes with masked_lm.", required=False)
@params_option
@out_option("Where to write the shards and their manifest; replaced as a whole.", MANIFEST_FILE)
@plan_option
def main(task: str, scores: Path, teacher: Path, aim: Path, words: Path | None, params: Path, out: Path, plan: bool) -> None:
    """Make variants of every training example and store them with the teacher's answer to each.

    Workers write one shard a partition and variant to the shard store; what the store already has is not computed again,
    so an interrupted run goes on where it was.
    """
    _check_task(task, scores, params)
    places = config.existing(params, "augment", f"tasks.{task}.augment")
    needs = config.load(params, Needs, augment=places, runtime="runtime")
    note_slow_precision(params, places)
    scout = None if aim.resolve() == teacher.resolve() else aim
    if plan:
        click.echo("\n".join(augment_estimate(scores, teacher, scout, needs.augment, needs.runtime, words).lines()))
    else:
        augment(scores, teacher, scout, needs.augment, needs.runtime, out, words)


def _check_task(task: str, scores: Path, params: Path) -> None:
    """A task that is not there, or not that of the scores, would silently leave its own settings out."""
    config.task_in(params, task)
    check_task(task, scores, "scores", Manifest.read(scores).task.name)


if __name__ == "__main__":
    main()
