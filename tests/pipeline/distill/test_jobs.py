import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.settings import RuntimeSettings
from pipeline.corpus.task import Task
from pipeline.distill import jobs, launch
from pipeline.distill.jobs import StoredJob, StudentJob, train_into
from pipeline.distill.launch import obtain
from pipeline.distill.training import train
from pipeline.shards.manifest import ShardMismatch, manifest_hash
from pipeline.store.store import Store, needed, open_store
from tests.stored import RemoteStore, only_in
from tests.world import make_shards, make_task, runtime_at, save_masked_lm, save_prepared, save_teacher, student_settings

Folders = tuple[Path, Path]


@pytest.fixture
def job(made: Folders, teacher: Path) -> StudentJob:
    return StudentJob("half", *made, teacher, student_settings())


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the students that were trained, not taken from the store."""
    names: list[str] = []

    def count(name: str, *given: Any) -> Any:
        names.append(name)
        return train(name, *given)

    monkeypatch.setattr(jobs, "train", count)
    return names


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(made: Folders, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the published student of ``job``, its cost and the store that has it; read only."""
    folder = tmp_path_factory.mktemp("finished")
    obtain(StudentJob("half", *made, teacher, student_settings()), runtime_at(folder), folder / "half", folder / "half.json")
    return folder


@pytest.fixture
def runtime(finished: Path, tmp_path: Path) -> RuntimeSettings:
    """A store of the test's own in which the student is finished."""
    shutil.copytree(finished / "store", tmp_path / "store")
    return runtime_at(tmp_path)


@pytest.fixture(scope="module")
def longer_test(task: Task, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Soft labels and variants of a corpus with ten more test rows."""
    folder = tmp_path_factory.mktemp("longer")
    return make_shards(folder, save_prepared(folder / "prepared", task, {"train": 60, "dev": 20, "test": 30}), teacher)


def test_a_finished_student_is_taken_from_the_store_without_a_lock(
    job: StudentJob,
    finished: Path,
    runtime: RuntimeSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Store, "lock", lambda *_: pytest.fail("the lock may be another user's"))
    monkeypatch.setattr(jobs, "train", lambda *_: pytest.fail("it was trained before"))
    facts = obtain(job, runtime, tmp_path / "again", tmp_path / "again.json")
    assert facts == json.loads((finished / "half" / "lineage.json").read_text())
    assert files_of(tmp_path / "again") == files_of(finished / "half")
    assert "distill tiny half: finished before, taken from" in capsys.readouterr().out
    assert (tmp_path / "again.json").read_bytes() == (finished / "half.json").read_bytes()
    cost = json.loads((finished / "half.json").read_text())
    assert cost["steps"] == 16
    assert cost["seconds"] >= 0
    assert not list(Path(runtime.store).glob(".*")), "checkpoints go when the student is finished"


def test_other_test_rows_and_another_name_cost_no_training(
    job: StudentJob, longer_test: Folders, finished: Path, runtime: RuntimeSettings, tmp_path: Path, trained: list[str]
) -> None:
    soft_labels, shards = longer_test
    again = dataclasses.replace(job, name="renamed", soft_labels=soft_labels, shards=shards)
    old = json.loads((finished / "half" / "lineage.json").read_text())
    new = obtain(again, runtime, tmp_path / "renamed", tmp_path / "renamed.json")
    assert not trained
    assert (new["student"], new["soft_labels"], new["shards"]) == ("renamed", manifest_hash(soft_labels), manifest_hash(shards))
    assert {name for name in old if old[name] != new[name]} == {"student", "soft_labels", "shards"}
    card = (tmp_path / "renamed" / "README.md").read_text()
    assert "# renamed: a distilled" in card
    assert manifest_hash(soft_labels) in card


def test_a_student_in_the_store_is_not_taken_for_variants_of_other_soft_labels(
    job: StudentJob, longer_test: Folders, runtime: RuntimeSettings, tmp_path: Path
) -> None:
    mixed = dataclasses.replace(job, soft_labels=longer_test[0])
    assert mixed.key() == job.key(), "they differ in test rows alone"
    with pytest.raises(ShardMismatch, match=r"the variants in .* do not fit: soft_labels"):
        obtain(mixed, runtime, tmp_path / "two", tmp_path / "two.json")
    assert not (tmp_path / "two").exists()


def test_a_damaged_student_is_trained_again(
    job: StudentJob, finished: Path, runtime: RuntimeSettings, tmp_path: Path, trained: list[str]
) -> None:
    weights = open_store(runtime).folder_of(job.key()) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    obtain(job, runtime, tmp_path / "two", tmp_path / "two.json")
    assert trained == ["distill tiny half"]
    assert files_of(tmp_path / "two") == files_of(finished / "half")


def test_the_key_names_what_decides_a_student_and_nothing_else(
    job: StudentJob, made: Folders, teacher: Path, tmp_path: Path
) -> None:
    def differing(**changed: Any) -> set[str]:
        key = StudentJob(**({field: getattr(job, field) for field in job.__dataclass_fields__} | changed)).key()
        return {name for name in key.keys() | job.key().keys() if key.get(name) != job.key().get(name)}

    assert differing() == set()
    moved = {"soft_labels": tmp_path / "soft_labels", "shards": tmp_path / "shards", "teacher": tmp_path / "teacher"}
    for name, folder in moved.items():
        shutil.copytree(getattr(job, name), folder)
    assert differing(**moved) == set(), "not where things lie"
    assert differing(name="other") == set(), "nor what it is called"
    assert differing(settings=student_settings({"seed": 4})) == {"settings"}
    assert differing(settings=student_settings(variant_policy="none")) == {"settings", "shards"}
    words = save_masked_lm(tmp_path / "words")
    checkpoint, moved_there = (
        student_settings(initial_weights={"checkpoint": str(path)}) for path in (words, tmp_path / "elsewhere")
    )
    assert differing(settings=checkpoint) == {"settings", "checkpoint"}
    key = dataclasses.replace(job, settings=checkpoint).key()
    words.rename(tmp_path / "elsewhere")
    assert dataclasses.replace(job, settings=moved_there).key() == key, "nor where a checkpoint lies"


def test_settings_that_mean_nothing_for_a_student_are_not_in_its_key(job: StudentJob) -> None:
    def key(**changed: Any) -> Any:
        return dataclasses.replace(job, settings=student_settings(**changed)).key()

    weights = {"variants": 0.5}
    assert key(variant_policy="none", loss=weights) == key(variant_policy="none")
    assert key(loss=weights) != key()
    assert key(variant_policy="all") != key()
    assert key(tasks=["tiny"]) == key()


def test_how_it_is_run_changes_neither_the_key_nor_a_byte(
    job: StudentJob, finished: Path, runtime: RuntimeSettings, tmp_path: Path, trained: list[str]
) -> None:
    """Worker processes, and shards that are only in a remote store."""
    changed = {"dataloader_num_workers": 2, "save_steps": 1}
    obtain(job, runtime.model_copy(update=changed), tmp_path / "one", tmp_path / "one.json")
    assert not trained
    store = RemoteStore(tmp_path / "remote")
    for folder in (job.soft_labels, job.shards):
        only_in(store, Path(shutil.copytree(folder, tmp_path / folder.name)))
    job = dataclasses.replace(job, soft_labels=tmp_path / "soft_labels", shards=tmp_path / "shards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "open_store", lambda _: store)
        obtain(job, runtime.model_copy(update=changed), tmp_path / "two", tmp_path / "two.json")
    assert trained
    assert files_of(tmp_path / "two") == files_of(finished / "half")


def test_what_fails_leaves_no_student_and_its_states(job: StudentJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no room")

    monkeypatch.setattr(jobs, "write_student", fail)
    store = open_store(runtime_at(tmp_path))
    with pytest.raises(OSError, match="no room"):
        train_into(store, job, runtime_at(tmp_path))
    assert store.get(job.key()) is None
    assert not store.folder_of(job.key()).exists()
    assert list(store.unfinished(job.key()).glob("checkpoint-*")), "its states are kept: the next run has only to write it"


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
