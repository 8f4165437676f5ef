"""score: the teacher's logits on every untouched input, as shards."""

from pathlib import Path

from pipeline import config
from pipeline.augment.cluster import RuntimeSettings
from pipeline.augment.passes import ScoreSettings, score
from pipeline.config import Settings
from stages.command import folder_option, params_option, stage


class Needs(Settings):
    score: ScoreSettings
    runtime: RuntimeSettings


@stage
@folder_option("--prepared", "Folder that `prepare` wrote.")
@folder_option("--teacher", "Folder that `teach` wrote.")
@params_option
@folder_option("--out", "Where to write the shards and their manifest.")
def main(prepared: Path, teacher: Path, params: Path, out: Path) -> None:
    """Run the frozen teacher over the untouched inputs of every split.

    Ray workers write one shard a partition to the shard store; what the store already has is not computed again. Afterwards
    no stage needs the texts any more, and none needs the teacher to label an untouched input.
    """
    needs = config.load(params, Needs, score="score", runtime="runtime")
    score(prepared, teacher, needs.score, needs.runtime, out)


if __name__ == "__main__":
    main()
