"""soft_label: the teacher's logits on every clean input, as shards."""

from pathlib import Path

import click

from pipeline.augment.estimate import soft_label_estimate
from pipeline.augment.passes import soft_label
from pipeline.config import params as config
from pipeline.config.params import Settings
from pipeline.config.settings import InferenceSettings, RuntimeSettings
from pipeline.shards.manifest import MANIFEST_FILE
from stages.command import folder_option, out_option, params_option, plan_option, stage
from stages.precision import note_slow_precision


class Needs(Settings):
    inference: InferenceSettings
    runtime: RuntimeSettings


@stage
@folder_option("--prepared", "Output of `prepare`.")
@folder_option("--teacher", "Output of `teach`.")
@params_option
@out_option("Folder for the shards and their manifest; replaced as a whole.", MANIFEST_FILE)
@plan_option
def main(prepared: Path, teacher: Path, params: Path, out: Path, plan: bool) -> None:
    """Run the frozen teacher over the clean inputs of every split.

    Workers write one shard per partition to the store. Shards in the store are not computed again. The stages
    surrogate, augment and distill neither read the texts nor run the teacher on clean inputs.
    """
    needs = config.load(params, Needs, inference="inference", runtime="runtime")
    note_slow_precision(params)
    if plan:
        click.echo("\n".join(soft_label_estimate(prepared, teacher, needs.inference, needs.runtime).lines()))
    else:
        soft_label(prepared, teacher, needs.inference, needs.runtime, out)


if __name__ == "__main__":
    main()
