"""augment: adversarial perturbations of the train split, labelled by the teacher, as shards."""

from pathlib import Path

import click

from pipeline import config
from pipeline.augment.cluster import RuntimeSettings
from pipeline.augment.passes import AugmentSettings, augment
from pipeline.config import Settings
from stages.command import folder_option, params_option, stage


class Needs(Settings):
    augment: AugmentSettings
    runtime: RuntimeSettings


@stage
@click.option("--task", required=True, help="Name of the task in params.yaml, whose entry `augment` stands over the section.")
@folder_option("--scores", "Folder that `score` wrote.")
@folder_option("--teacher", "Folder that `teach` wrote.")
@params_option
@folder_option("--out", "Where to write the shards and their manifest.")
def main(task: str, scores: Path, teacher: Path, params: Path, out: Path) -> None:
    """Perturb the word embeddings of every training example and store the teacher's answer to each perturbed variant.

    Ray workers write one shard a partition and variant to the shard store; what the store already has is not computed again,
    so an interrupted run goes on where it was.
    """
    places = config.existing(params, "augment", f"tasks.{task}.augment")
    needs = config.load(params, Needs, augment=places, runtime="runtime")
    augment(scores, teacher, needs.augment, needs.runtime, out)


if __name__ == "__main__":
    main()
