"""scout: a small student from the scores alone, at whose mistakes perturbations are aimed, where a task asks for one."""

from pathlib import Path

import click

from pipeline.config import params as config
from pipeline.config.params import Settings
from pipeline.config.runtime import RuntimeSettings
from pipeline.distill.scout import train_scout
from pipeline.distill.settings import ScoutSettings, effective
from pipeline.distill.student import Checkpoint
from pipeline.models.folder import source_hash
from pipeline.models.precision import note_slow_precision
from pipeline.perturbation.surrogate import SCOUT_FILE
from pipeline.shards.manifest import Manifest, lineage, training_hash
from pipeline.store.files import folder_written_whole, write_json
from pipeline.training.resuming import fetch_or_train, training_key
from stages.command import check_apart, check_task, folder_option, out_option, params_option, stage


class Needs(Settings):
    scout: ScoutSettings
    runtime: RuntimeSettings


@stage
@click.option("--task", required=True, help="Name of the task in params.yaml; only with aim: scout is anything trained.")
@folder_option("--scores", "Folder that `score` wrote.")
@folder_option("--teacher", "Folder that `teach` wrote: tokenizer, configuration and first weights; the teacher never runs.")
@params_option
@out_option("Where to write the snapshots of the scout, or the note that there is none; replaced as a whole.", SCOUT_FILE)
def main(task: str, scores: Path, teacher: Path, params: Path, out: Path) -> None:
    """Train a scout for one task and keep snapshots along its training.

    A perturbation that moves the teacher need not move a student. With `aim: scout` variant i is searched by the gradient of
    snapshot i, and labelled by the teacher. A training that was finished before is taken from the store; one that was killed
    resumes.
    """
    check_task(task, scores, "scores", Manifest.read(scores).task.name)
    if config.task_in(params, task).get("aim") != "scout":
        with folder_written_whole(out) as folder:
            write_json(folder / SCOUT_FILE, {"snapshots": 0})
        click.echo(f"{out}: no scout, since the task has aim: teacher")
        return
    needs = config.load(params, Needs, scout=("distill", "scout"), runtime="runtime")
    note_slow_precision(params, ("distill", "scout"))
    start = needs.scout.start
    if isinstance(start, Checkpoint):
        check_apart(out, "the model that it begins with", start.checkpoint)
    own = effective(needs.scout.model_dump(mode="json"))
    settings = own | ({"start": "checkpoint"} if isinstance(start, Checkpoint) else {})
    key = training_key("surrogate", "pipeline.distill.scout", [], str(teacher), settings) | {
        "lineage": lineage(teacher),
        "scores": training_hash(scores),
        "checkpoint": source_hash(start.checkpoint) if isinstance(start, Checkpoint) else None,
    }
    facts = fetch_or_train(
        key,
        f"scout {task}",
        out,
        needs.runtime,
        lambda folder, conduct: train_scout(scores, teacher, needs.scout, folder, conduct).model_dump(
            include={"snapshots", "dev"}
        ),
    )
    click.echo(f"{out}: {facts['snapshots']} snapshots, dev {facts['dev']:.4f} at the end")


if __name__ == "__main__":
    main()
