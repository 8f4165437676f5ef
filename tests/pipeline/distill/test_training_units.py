"""A regression's students in whatever unit its labels have."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from pipeline.distill.jobs import StudentJob
from pipeline.distill.launch import obtain
from pipeline.config.settings import StudentSettings
from pipeline.models.outputs import Scale
from tests.world import STUDENT, make_shards, make_task, runtime_at, save_prepared, save_teacher, student_settings


def in_other_units(teacher: Path, prepared: Path, scale: Scale, folder: Path) -> tuple[Path, Path]:
    """The same teacher and corpus, their values in another unit."""
    model = AutoModelForSequenceClassification.from_pretrained(teacher)
    scale.put_into(model)
    taught = Path(shutil.copytree(teacher, folder / "teacher"))
    model.save_pretrained(taught)
    copied = Path(shutil.copytree(prepared, folder / "copied"))
    for path in copied.glob("*.parquet"):
        table = pq.read_table(path)
        labels = pa.array(scale.mean + scale.deviation * table["label"].to_numpy(), pa.float32())
        pq.write_table(table.set_column(table.schema.get_field_index("label"), "label", labels), path)
    return taught, copied


def answers(student: Path) -> torch.Tensor:
    model = AutoModelForSequenceClassification.from_pretrained(student)
    with torch.inference_mode():
        return model(torch.tensor([[2, 9, 10, 3], [2, 20, 30, 3], [2, 11, 12, 3], [2, 25, 6, 3]])).logits[:, 0]


def learnt(folder: Path, teacher: Path, prepared: Path, settings: StudentSettings) -> Path:
    """The student of a teacher."""
    job = StudentJob("student", *make_shards(folder, prepared, teacher), teacher, settings)
    obtain(job, runtime_at(folder), folder / "student", folder / "student.json")
    return folder / "student"


LEARNS_ALL = {"objective": STUDENT["objective"] | {"hard": 0.5}}


@pytest.mark.parametrize("scale", [Scale(500.0, 200.0), Scale(0.0, 1e-3)])
@pytest.mark.parametrize(
    "changed",
    [
        LEARNS_ALL,
        {"start": "scratch", "variants": "none"},
        {"hidden": 16, "heads": 2, "intermediate": 32},
        {"variants": {"worst_of": 2}},
    ],
    ids=["all parts", "scratch", "narrow", "worst"],
)
def test_what_a_student_of_a_regression_learns_does_not_depend_on_the_unit(
    changed: dict[str, Any], scale: Scale, tmp_path: Path
) -> None:
    task = make_task("regression")
    plain = (
        save_teacher(tmp_path / "plain", task),
        save_prepared(tmp_path / "prepared", task, {"train": 40, "dev": 10, "test": 10}),
    )
    one = answers(learnt(tmp_path / "one", *plain, student_settings(**changed)))
    other = answers(learnt(tmp_path / "other", *in_other_units(*plain, scale, tmp_path), student_settings(**changed)))
    torch.testing.assert_close((other - scale.mean) / scale.deviation, one, rtol=1e-2, atol=2e-3)
    assert one.std() > 0.02
