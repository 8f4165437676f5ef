"""score: the teacher's logits on every untouched input, as shards."""

from pathlib import Path

import click

from pipeline.augment.estimate import score_estimate
from pipeline.augment.passes import score
from pipeline.augment.recipes import ScoreSettings
from pipeline.config import params as config
from pipeline.config.params import Settings
from pipeline.config.runtime import RuntimeSettings
from pipeline.models.precision import note_slow_precision
from pipeline.shards.manifest import MANIFEST_FILE
from stages.command import folder_option, out_option, params_option, plan_option, stage


class Needs(Settings):
    score: ScoreSettings
    runtime: RuntimeSettings


@stage
@folder_option("--prepared", "Folder that `prepare` wrote.")
@folder_option("--teacher", "Folder that `teach` wrote.")
@params_option
@out_option("Where to write the shards and their manifest; replaced as a whole.", MANIFEST_FILE)
@plan_option
def main(prepared: Path, teacher: Path, params: Path, out: Path, plan: bool) -> None:
    """Run the frozen teacher over the untouched inputs of every split.

    Workers write one shard a partition to the shard store; what the store already has is not computed again. Afterwards
    no stage needs the texts any more, and none needs the teacher to label an untouched input.
    """
    needs = config.load(params, Needs, score="score", runtime="runtime")
    note_slow_precision(params, "score")
    if plan:
        click.echo("\n".join(score_estimate(prepared, teacher, needs.score, needs.runtime).lines()))
    else:
        score(prepared, teacher, needs.score, needs.runtime, out)


if __name__ == "__main__":
    main()
