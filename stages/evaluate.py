"""evaluate: one student measured on the test split: metric, agreement with the teacher, size and speed."""

from functools import partial
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.params import Settings, load
from pipeline.config.settings import EvaluationSettings, RuntimeSettings
from pipeline.evaluation.quality import (
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
from pipeline.shards.manifest import check_agreement, check_trained_from, lineage
from pipeline.shards.reader import Shards
from pipeline.store.files import SKIPPED_FILE, folder_written_whole, write_json
from pipeline.store.store import open_store
from stages.command import folder_option, out_option, params_option, stage


class Needs(Settings):
    evaluate: EvaluationSettings
    runtime: RuntimeSettings


@stage
@folder_option("--soft-labels", "Output of `soft_label`.")
@folder_option("--teacher", "Output of `teach`; only its speed is measured here.")
@folder_option("--student", "Output of `distill`.")
@out_option("Folder for predictions, quality and speed; replaced as a whole.", QUALITY_FILE)
@params_option
def main(soft_labels: Path, teacher: Path, student: Path, out: Path, params: Path) -> None:
    """Measure a student on the test split: quality, agreement with the teacher, size and speed."""
    if (student / SKIPPED_FILE).exists():
        with folder_written_whole(out) as folder:
            write_json(folder / SKIPPED_FILE, {})
        click.echo(f"{out}: not evaluated, since the student was not trained for this task")
        return
    needs = load(params, Needs, evaluate="evaluate", runtime="runtime")
    shards = Shards.holding("soft_labels", soft_labels, open_store(needs.runtime))
    opened = {folder: ModelFolder(folder) for folder in (teacher, student)}
    hint = "Name the teacher that made them"
    check_agreement(f"the soft labels in {soft_labels}", lineage(opened[teacher]), shards.manifest.key, hint)
    check_trained_from(student, soft_labels)
    task, pad, rows = shards.manifest.task, shards.manifest.pad_token_id, shards.rows("test", 0)
    check_labelled(task, rows)
    models = {folder: load_classifier(model) for folder, model in opened.items()}
    for folder, model in models.items():
        check_labels(task, model, folder)

    wanted, labels = rows.matrix("teacher_logits"), rows.labels()
    found = logits_of(models[student].to(pick_device()), rows, pad)  # type: ignore[arg-type]
    measured = Qualities(
        rows=len(rows),
        teacher=quality(models[teacher], teacher, task, labels, wanted, wanted),
        student=quality(models[student], student, task, labels, found, wanted),
    )
    predictors = [partial(logits_from_ids, model.cpu()) for model in models.values()]
    one, other = speeds(predictors, rows, pad, needs.evaluate.timed_rows)
    columns = {"id": rows.column("example_id"), **{name: rows.column(name) for name in ("label", "teacher_logits")}}
    columns["student_logits"] = pa.array(list(found), pa.list_(pa.float32()))
    with folder_written_whole(out) as folder:
        pq.write_table(pa.table(columns), folder / PREDICTIONS_FILE)
        write_json(folder / QUALITY_FILE, measured.model_dump())
        write_json(folder / SPEED_FILE, Speeds(teacher=one, student=other).model_dump())
    click.echo(
        f"{task.name}/{student.name}: {task.metric} {measured.student.value:.3f} (teacher {measured.teacher.value:.3f}), "
        f"{other.latency_ms:.1f} ms per row (teacher {one.latency_ms:.1f} ms)"
    )


if __name__ == "__main__":
    main()
