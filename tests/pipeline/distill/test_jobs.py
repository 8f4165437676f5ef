import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.corpus.task import Task
from pipeline.distill import jobs
from pipeline.distill.jobs import COST_FILE, StudentJob, StudentStore, train_into
from pipeline.distill.launch import obtain
from pipeline.shards.manifest import ShardMismatch, manifest_hash
from pipeline.store.files import write_json
from tests.world import make_shards, runtime_at, save_masked_lm, save_prepared, student_settings

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
        return training(name, *given)

    training = jobs.train
    monkeypatch.setattr(jobs, "train", count)
    return names


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_student_is_taken_from_the_store(
    job: StudentJob, tmp_path: Path, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    runtime = runtime_at(tmp_path)
    facts = [obtain(job, runtime, tmp_path / name, tmp_path / f"{name}.json") for name in ("one", "two")]
    assert facts[0] == facts[1]
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert trained == ["distill tiny half"]
    assert "distill tiny half: finished before, taken from" in capsys.readouterr().out
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    cost = json.loads((tmp_path / "one.json").read_text())
    assert cost["steps"] == 16
    assert cost["seconds"] >= 0
    assert not (tmp_path / "one" / COST_FILE).exists(), "what varies from run to run is no part of the student"
    assert not list(StudentStore.of(runtime).folder.glob("*-training")), "states go when the student is finished"


def test_other_test_rows_and_another_name_cost_no_training(
    job: StudentJob, task: Task, teacher: Path, tmp_path: Path, trained: list[str]
) -> None:
    prepared = save_prepared(tmp_path / "prepared", task, {"train": 60, "dev": 20, "test": 30})
    scores, shards = make_shards(tmp_path / "again", prepared, teacher)
    again = dataclasses.replace(job, name="renamed", scores=scores, shards=shards)
    runtime = runtime_at(tmp_path)
    old, new = (obtain(one, runtime, tmp_path / one.name, tmp_path / f"{one.name}.json") for one in (job, again))
    assert trained == ["distill tiny half"]
    assert (new["student"], new["scores"], new["shards"]) == ("renamed", manifest_hash(scores), manifest_hash(shards))
    assert new["scores"] != old["scores"]
    assert {name for name in old if old[name] != new[name]} == {"student", "scores", "shards"}
    assert "# renamed: a distilled" in (tmp_path / "renamed" / "README.md").read_text()
    assert manifest_hash(scores) in (tmp_path / "renamed" / "README.md").read_text()


def test_a_student_in_the_store_is_not_taken_for_variants_of_other_scores(
    job: StudentJob, task: Task, teacher: Path, tmp_path: Path
) -> None:
    runtime = runtime_at(tmp_path)
    obtain(job, runtime, tmp_path / "one", tmp_path / "one.json")
    prepared = save_prepared(tmp_path / "prepared", task, {"train": 60, "dev": 20, "test": 30})
    scores, _ = make_shards(tmp_path / "again", prepared, teacher)
    mixed = dataclasses.replace(job, scores=scores)
    assert mixed.key() == job.key(), "they differ in test rows alone"
    with pytest.raises(ShardMismatch, match=r"the perturbations in .* do not fit: scores"):
        obtain(mixed, runtime, tmp_path / "two", tmp_path / "two.json")
    assert not (tmp_path / "two").exists()


def test_a_student_that_another_user_has_trained_is_fetched_without_a_lock(
    job: StudentJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = runtime_at(tmp_path)
    obtain(job, runtime, tmp_path / "one", tmp_path / "one.json")
    monkeypatch.setattr(StudentStore, "alone", lambda *_: pytest.fail("the lock is the other user's"))
    obtain(job, runtime, tmp_path / "two", tmp_path / "two.json")
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


@pytest.mark.parametrize("fault", ["byte", "missing", "contents", "no mapping", "other key"])
def test_a_damaged_student_is_not_there(job: StudentJob, tmp_path: Path, trained: list[str], fault: str) -> None:
    runtime = runtime_at(tmp_path)
    obtain(job, runtime, tmp_path / "one", tmp_path / "one.json")
    place = StudentStore.of(runtime).place_of(job.key())
    weights = place / "model.safetensors"
    match fault:
        case "byte":
            held = bytearray(weights.read_bytes())
            held[len(held) // 2] ^= 1
            weights.write_bytes(held)
        case "missing":
            weights.unlink()
        case "contents":
            (place / jobs.CONTENTS_FILE).write_text("{")
        case "no mapping":
            (place / jobs.CONTENTS_FILE).write_text("[]")
        case "other key":
            contents = json.loads((place / jobs.CONTENTS_FILE).read_text())
            write_json(place / jobs.CONTENTS_FILE, contents | {"key": contents["key"] | {"teacher": "another"}})
    obtain(job, runtime, tmp_path / "two", tmp_path / "two.json")
    assert len(trained) == 2
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_the_key_names_what_decides_a_student_and_nothing_else(
    job: StudentJob, made: Folders, teacher: Path, tmp_path: Path
) -> None:
    def differing(**changed: Any) -> set[str]:
        key = StudentJob(**({field: getattr(job, field) for field in job.__dataclass_fields__} | changed)).key()
        return {name for name in key.keys() | job.key().keys() if key.get(name) != job.key().get(name)}

    assert differing() == set()
    moved = {"scores": tmp_path / "scores", "shards": tmp_path / "shards", "teacher": tmp_path / "teacher"}
    for name, folder in moved.items():
        shutil.copytree(getattr(job, name), folder)
    assert differing(**moved) == set(), "not where things lie"
    assert differing(name="other") == set(), "nor what it is called"
    assert differing(settings=student_settings({"seed": 4})) == {"settings"}
    assert differing(settings=student_settings(adversary="none")) == {"settings", "shards"}
    words = save_masked_lm(tmp_path / "words")
    checkpoint, moved_there = (student_settings(start={"checkpoint": str(path)}) for path in (words, tmp_path / "elsewhere"))
    assert differing(settings=checkpoint) == {"settings", "checkpoint"}
    key = dataclasses.replace(job, settings=checkpoint).key()
    words.rename(tmp_path / "elsewhere")
    assert dataclasses.replace(job, settings=moved_there).key() == key, "nor where a checkpoint lies"


def test_settings_that_mean_nothing_for_a_student_are_not_in_its_key(job: StudentJob) -> None:
    def key(**changed: Any) -> Any:
        return dataclasses.replace(job, settings=student_settings(**changed)).key()

    search = student_settings().perturbation.model_dump() | {"steps": 4}
    for unread in ({"perturbation": search}, {"variants": "all"}):
        assert key(adversary="none", **unread) == key(adversary="none")
    assert key(perturbation=search) == key(), "the student perturbs nothing"
    assert key(variants="all") != key()
    assert key(adversary="student", perturbation=search) != key(adversary="student")
    assert key(adversary="student", variants="all") == key(adversary="student")


def test_the_key_does_not_ask_how_it_is_run(job: StudentJob, tmp_path: Path, trained: list[str]) -> None:
    for number, changed in enumerate([{"dataloader_num_workers": 0}, {"dataloader_num_workers": 1}, {"save_steps": 1}]):
        obtain(job, runtime_at(tmp_path).model_copy(update=changed), tmp_path / str(number), tmp_path / f"{number}.json")
    assert len(trained) == 1


def test_reading_ahead_in_other_processes_changes_no_byte(job: StudentJob, tmp_path: Path) -> None:
    for name, readers in {"none": 0, "two": 2}.items():
        runtime = runtime_at(tmp_path / name).model_copy(update={"dataloader_num_workers": readers})
        obtain(job, runtime, tmp_path / f"{name}-out", tmp_path / f"{name}.json")
    assert files_of(tmp_path / "none-out") == files_of(tmp_path / "two-out")


def test_what_fails_leaves_no_student_and_its_states(job: StudentJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no room")

    monkeypatch.setattr(jobs, "write_student", fail)
    store = StudentStore.of(runtime_at(tmp_path))
    with pytest.raises(OSError, match="no room"):
        train_into(store, job, runtime_at(tmp_path))
    assert not store.has(job.key())
    assert not store.place_of(job.key()).exists()
    assert list(store.states_of(job.key()).glob("checkpoint-*")), "its states are kept: the next run has only to write it"
