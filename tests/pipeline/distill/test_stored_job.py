import dataclasses
import shutil
from pathlib import Path

import pytest

from pipeline.distill.jobs import StudentJob, train_into
from pipeline.distill.stored_job import StoredJob
from pipeline.shards.manifest import ShardMismatch
from pipeline.store.store import Store, needed
from tests.world import make_task, runtime_at, save_teacher, student_settings

Folders = tuple[Path, Path]


@pytest.fixture
def folders(made: Folders, teacher: Path, tmp_path: Path) -> list[Path]:
    """Copies of soft labels, shards and teacher."""
    given = {"soft_labels": made[0], "shards": made[1], "teacher": teacher}
    return [Path(shutil.copytree(folder, tmp_path / "project" / name)) for name, folder in given.items()]


@pytest.mark.parametrize("start", ["teacher", "checkpoint"])
def test_a_node_that_sees_the_store_alone_trains_the_same_student(folders: list[Path], tmp_path: Path, start: str) -> None:
    settings = student_settings(num_hidden_layers=1)
    if start == "checkpoint":
        checkpoint = save_teacher(tmp_path / "project" / "checkpoint", make_task(), seed=4)
        settings = student_settings(num_hidden_layers=1, initial_weights={"checkpoint": str(checkpoint)})
    job, here, there = StudentJob("half", *folders, settings), Store(tmp_path / "here"), Store(tmp_path / "there")
    train_into(here, job, runtime_at(tmp_path))
    wanted, key = needed(here, job.key(), "it"), job.key()
    stored = StoredJob.put(job, there)
    (tmp_path / "project").rename(tmp_path / "elsewhere")
    with stored.opened(there) as opened:
        assert opened.key() == key
        train_into(there, opened, runtime_at(tmp_path))
    assert needed(there, key, "it").files == wanted.files


def test_a_job_that_cannot_be_done_names_the_folders_of_the_driver(folders: list[Path], other: Path, tmp_path: Path) -> None:
    job, store = StudentJob("half", *folders, student_settings()), Store(tmp_path / "store")
    mixed = StoredJob.put(dataclasses.replace(job, soft_labels=other), store)
    sentence = rf"^the variants in {folders[1]} do not fit: soft_labels"
    with pytest.raises(ShardMismatch, match=sentence), mixed.opened(store) as opened:
        opened.sources(store)


@pytest.fixture
def other(folders: list[Path], tmp_path: Path) -> Path:
    """Soft labels with another manifest."""
    folder = Path(shutil.copytree(folders[0], tmp_path / "other"))
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"name": "tiny"', '"name": "other"'))
    return folder
