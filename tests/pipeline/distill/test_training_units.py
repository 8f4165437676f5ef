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


UNITS = {"plain": Scale(0.0, 1.0), "large": Scale(500.0, 200.0), "small": Scale(0.0, 1e-3)}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path, Path]]:
    """Scores, shards and teacher in each unit."""
    folder, task = tmp_path_factory.mktemp("units"), make_task("regression")
    teacher = save_teacher(folder / "teacher", task)
    prepared = save_prepared(folder / "prepared", task, {"train": 40, "dev": 10, "test": 10})
    found = {}
    for name, scale in UNITS.items():
        taught, copied = in_other_units(teacher, prepared, scale, folder / name)
        found[name] = (*make_shards(folder / name, copied, taught), taught)
    return found


@pytest.mark.parametrize(
    ("changed", "unit"),
    [
        ({"objective": STUDENT["objective"] | {"hard": 0.5}}, "large"),
        ({"objective": STUDENT["objective"] | {"hard": 0.5}}, "small"),
        ({"start": "scratch", "variants": "none"}, "large"),
        ({"hidden": 16, "heads": 2, "intermediate": 32}, "large"),
        ({"variants": {"worst_of": 2}}, "small"),
    ],
    ids=["all parts", "all parts, small", "scratch", "narrow", "worst"],
)
def test_what_a_student_of_a_regression_learns_does_not_depend_on_the_unit(
    changed: dict[str, Any], unit: str, sources: dict[str, tuple[Path, Path, Path]], tmp_path: Path
) -> None:
    found = {}
    for name in ("plain", unit):
        job = StudentJob("student", *sources[name], student_settings(**changed))
        obtain(job, runtime_at(tmp_path), tmp_path / name, tmp_path / f"{name}.json")
        found[name] = answers(tmp_path / name)
    scale = UNITS[unit]
    torch.testing.assert_close((found[unit] - scale.mean) / scale.deviation, found["plain"], rtol=1e-2, atol=2e-3)
    assert found["plain"].std() > 0.02
