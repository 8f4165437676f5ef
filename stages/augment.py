"""augment: variants of the train split, perturbed or edited, labelled by the teacher, as shards."""

from pathlib import Path

import click

from pipeline.augment.estimate import augment_estimate
from pipeline.augment.passes import augment
from pipeline.augment.plans import Augmentation
from pipeline.config import params as config
from pipeline.config.params import Settings
from pipeline.config.sections import augment_places
from pipeline.config.settings import AugmentSettings, RuntimeSettings
from pipeline.shards.manifest import MANIFEST_FILE, Manifest
from pipeline.store.store import open_store
from stages.command import check_task, folder_option, out_option, params_option, plan_option, stage
from stages.precision import note_slow_precision


class Needs(Settings):
    augment: AugmentSettings
    runtime: RuntimeSettings


@stage
@click.option("--task", required=True, help="Name of the task in params.yaml; its `augment` and `perturbation` override.")
@folder_option("--soft-labels", "Output of `soft_label`.")
@folder_option("--teacher", "Output of `teach`.")
@folder_option("--surrogate", "Output of `surrogate`; needed if gradient_from is surrogate.", required=False)
@folder_option("--masked-lm", "Output of `masked_lm`; needed if a recipe contains masked_lm.", required=False)
@params_option
@out_option("Folder for the shards and their manifest; replaced as a whole.", MANIFEST_FILE)
@plan_option
def main(
    task: str,
    soft_labels: Path,
    teacher: Path,
    surrogate: Path | None,
    masked_lm: Path | None,
    params: Path,
    out: Path,
    plan: bool,
) -> None:
    """Make variants of every training example and store them with the teacher's logits on each.

    Workers write one shard per partition and variant to the store. Shards in the store are not computed again, so an
    interrupted run resumes.
    """
    config.task_in(params, task)
    check_task(task, soft_labels, "soft labels", Manifest.read(soft_labels).task.name)
    needs = config.load(params, Needs, augment=augment_places(config.read_params(params), task), runtime="runtime")
    note_slow_precision(params)
    augmentation = Augmentation.of(soft_labels, teacher, needs.augment, surrogate, masked_lm, open_store(needs.runtime))
    if plan:
        click.echo("\n".join(augment_estimate(augmentation, needs.runtime).lines()))
    else:
        augment(augmentation, needs.runtime, out)


if __name__ == "__main__":
    main()
