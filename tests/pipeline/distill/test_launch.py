import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config.errors import PipelineError
from pipeline.corpus.task import Task
from pipeline.distill import launch
from pipeline.distill.jobs import StudentJob, train_into
from pipeline.distill.launch import obtain, train_all
from pipeline.evaluation.quality import logits_of
from pipeline.models.folder import ModelFolder
from pipeline.models.loading import load_classifier
from pipeline.shards.reader import Shards
from pipeline.store.keys import BUILD, Build
from pipeline.store.store import open_store
from tests.world import make_shards, make_task, runtime_at, save_prepared, save_teacher, student_settings

Folders = tuple[Path, Path]


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Soft labels, shards and a teacher without dropout, so that chance has no part in a student."""
    folder, task = tmp_path_factory.mktemp("still"), make_task()
    teacher = save_teacher(folder / "teacher", task)
    held = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps(held | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}))
    prepared = save_prepared(folder / "prepared", task, {"train": 41, "dev": 10, "test": 10})
    return *make_shards(folder, prepared, teacher), teacher


@pytest.mark.timeout(600)
def test_two_processes_make_the_student_of_one(still: tuple[Path, Path, Path], tmp_path: Path, capfd: Any) -> None:
    """With stored variants, in steps that two cannot share evenly."""
    settings = student_settings({"batch_size": 7})
    job, found = StudentJob("half", *still, settings), {}
    for trainers in (1, 2):
        runtime = runtime_at(tmp_path / str(trainers)).model_copy(update={"world_size": trainers})
        obtain(job, runtime, tmp_path / f"{trainers}-out", tmp_path / f"{trainers}.json")
        found[trainers] = logits_of(
            load_classifier(ModelFolder(tmp_path / f"{trainers}-out")), Shards(still[0]).rows("train", 0), 0, 8
        )
    np.testing.assert_allclose(found[2], found[1], atol=2e-3)
    assert np.abs(found[1]).max() > 0.1, "the logits are not small numbers"
    histories = [np.loadtxt(tmp_path / f"{n}-out" / "history.csv", delimiter=",", skiprows=1) for n in (1, 2)]
    np.testing.assert_allclose(histories[1], histories[0], rtol=1e-3)
    said = capfd.readouterr().out
    assert said.count("distill tiny half: epoch 2/2") == 2, "once for each of the two trainings, whoever computes"


@pytest.mark.timeout(600)
def test_all_students_are_trained_at_once_and_one_that_cannot_be_trained_is_named(
    made: Folders, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = runtime_at(tmp_path, workers=2)
    sizes = {"a": 1, "b": 2, "b again": 2}
    students = [StudentJob(name, *made, teacher, student_settings(num_hidden_layers=layers)) for name, layers in sizes.items()]
    bad = StudentJob("bad", *made, teacher, student_settings(teacher_layers=[7]))
    obtain(students[0], runtime, tmp_path / "a", tmp_path / "a.json")
    capsys.readouterr()
    with pytest.raises(
        PipelineError, match=r"1 of 2 students were not trained:\n  - bad \(soft_labels\): .*cannot be kept of 4"
    ):
        train_all([bad, *students], runtime)
    assert "distill: 4 students, 1 in the store, 2 to train, 1 identical to another\n" in capsys.readouterr().out
    assert not open_store(runtime).get(bad.key())
    monkeypatch.setattr(launch, "train_into", lambda *_: pytest.fail("it was trained before"))
    for job in students:
        obtain(job, runtime, tmp_path / job.name, tmp_path / f"{job.name}.json")
    train_all(students, runtime)
    assert "3 in the store, 0 to train" in capsys.readouterr().out


def test_soft_labels_that_are_made_again_during_a_training_are_not_named_as_what_it_learnt_from(
    made: Folders, task: Task, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soft_labels, shards = (Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in made)
    job, training = StudentJob("half", soft_labels, shards, teacher, student_settings(num_hidden_layers=1)), train_into

    def made_again(*given: Any) -> None:
        training(*given)
        prepared = save_prepared(tmp_path / "prepared", task, {"train": 50, "dev": 20, "test": 20})
        for old, new in zip((soft_labels, shards), make_shards(tmp_path / "again", prepared, teacher), strict=True):
            shutil.rmtree(old)
            new.rename(old)

    monkeypatch.setattr(launch, "train_into", made_again)
    with pytest.raises(
        PipelineError, match=r"tiny half: teacher, soft labels or variants changed during the training; run the stage again"
    ):
        obtain(job, runtime_at(tmp_path), tmp_path / "out", tmp_path / "cost.json")
    assert not (tmp_path / "out").exists()


@pytest.mark.timeout(600)
def test_a_process_with_other_libraries_trains_no_student(
    made: Folders, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "BUILD", Build(BUILD.sources, {**BUILD.libraries, "torch": "2.0.0"}))
    job = StudentJob("half", *made, teacher, student_settings(num_hidden_layers=1))
    with pytest.raises(PipelineError, match=r"half \(soft_labels\): .*a worker uses other sources or libraries .*: torch "):
        train_all([job], runtime_at(tmp_path, workers=1))
    assert open_store(runtime_at(tmp_path)).get(job.key()) is None


def test_what_does_not_belong_together_is_rejected_before_ray_is_started(
    made: Folders, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.training.ray_session.join_ray", lambda *_, **__: pytest.fail("Ray would be started"))
    shards = shutil.copytree(made[1], tmp_path / "shards")
    next(shards.glob("*.arrow")).unlink()
    runtime = runtime_at(tmp_path).model_copy(update={"world_size": 2})
    with pytest.raises(PipelineError, match="is missing"):
        obtain(StudentJob("half", made[0], shards, teacher, student_settings()), runtime, tmp_path / "out", tmp_path / "c.json")
    assert not (tmp_path / "out").exists()
