"""Evaluates one student: data/soft_labels, teacher, student → data/evaluation/<task>/<student>."""

from functools import partial
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.params import Settings, load
from pipeline.config.settings import EvaluationSettings
from pipeline.evaluation.quality import (
    BATCH_SIZE,
    PREDICTIONS_FILE,
    QUALITY_FILE,
    SPEED_FILE,
    Qualities,
    Speeds,
    check_labelled,
    check_labels,
    logits_of,
    quality,
    speeds,
)
from pipeline.models.folder import ModelFolder
from pipeline.models.forward import logits_from_ids, pick_device
from pipeline.models.loading import load_classifier
from pipeline.shards.manifest import SKIPPED_FILE, check_agreement, check_trained_from, lineage
from pipeline.shards.reader import Shards
from pipeline.store.files import folder_written_whole, write_json
from stages.command import folder_option, out_option, params_option, stage


class Sections(Settings):
    """The sections of params.yaml that this stage reads."""

    evaluate: EvaluationSettings


@stage
@folder_option("--soft-labels", "Shards with the clean inputs and the teacher's logits.")
@folder_option("--teacher", "The fine-tuned teacher; only its speed is measured here.")
@folder_option("--student", "The student to evaluate.")
@out_option("Folder for predictions, quality and speed; replaced as a whole.")
@params_option
def main(soft_labels: Path, teacher: Path, student: Path, out: Path, params: Path) -> None:
    """Measure a student on the test split: quality, agreement with the teacher, size and speed."""
    if (student / SKIPPED_FILE).exists():
        with folder_written_whole(out) as folder:
            write_json(folder / SKIPPED_FILE, {})
        click.echo(f"{out}: not evaluated, since the student was not trained for this task")
        return
    settings = load(params, Sections, evaluate="evaluate").evaluate
    shards = Shards.holding("soft_labels", soft_labels)
    opened = {folder: ModelFolder(folder) for folder in (teacher, student)}
    check_agreement(
        f"the soft_labels in {soft_labels}", lineage(opened[teacher]), shards.manifest.key, "Name the teacher that made them"
    )
    check_trained_from(student, soft_labels)
    task, pad = shards.manifest.task, shards.manifest.pad_token_id
    rows = shards.rows("test", 0)
    check_labelled(task, rows)
    models = {folder: load_classifier(model) for folder, model in opened.items()}
    for folder, model in models.items():
        check_labels(task, model, folder)

    wanted = rows.matrix("teacher_logits")
    found = logits_of(models[student].to(pick_device()), rows, pad, BATCH_SIZE)  # type: ignore[arg-type]
    answers = {teacher: wanted, student: found}
    worth = [quality(models[folder], folder, task, rows.labels(), answers[folder], wanted) for folder in answers]
    timed = [partial(logits_from_ids, model.cpu()) for model in models.values()]
    cost = speeds(timed, rows, pad, settings.timed_rows)

    table = pa.table(
        {
            "id": rows.column("example_id"),
            "label": rows.column("label"),
            "teacher_logits": rows.column("teacher_logits"),
            "student_logits": pa.array(list(found), pa.list_(pa.float32())),
        }
    )
    with folder_written_whole(out) as folder:
        pq.write_table(table, folder / PREDICTIONS_FILE)
        write_json(folder / QUALITY_FILE, Qualities(rows=len(rows), teacher=worth[0], student=worth[1]).model_dump())
        write_json(folder / SPEED_FILE, Speeds(teacher=cost[0], student=cost[1]).model_dump())
    click.echo(
        f"{task.name}/{student.name}: {task.metric} {worth[1].value:.3f} (teacher {worth[0].value:.3f}), "
        f"{cost[1].latency_ms:.1f} ms per row (teacher {cost[0].latency_ms:.1f} ms)"
    )


if __name__ == "__main__":
    main()
