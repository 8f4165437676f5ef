import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.distill import kept
from pipeline.distill.jobs import CONTENTS_FILE, Called, StudentStore
from pipeline.distill.kept import KeptStudent
from pipeline.store.hashing import Key, key_hash
from pipeline.store.files import write_json
from tests.stored import DAY, HOUR, age_students, begin_training, describe, keep_student, student_key


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def store(data: Path) -> StudentStore:
    """An empty store among the products."""
    return StudentStore.below(data / "store")


def stock(store: StudentStore, *data: Path) -> list[KeptStudent]:
    return kept.take_stock(store, kept.look_for_students(data, store))


def fetch(store: StudentStore, key: Key, data: Path) -> Path:
    """Put a student where the stage distill puts it."""
    out = data / "student" / "tiny" / key["settings"]
    store.take(key, out, data / "training" / "tiny" / f"{key['settings']}.json", describe)
    return out


def doomed(store: StudentStore, data: Path, least_age: float = DAY) -> set[str]:
    found, _ = kept.spare(stock(store, data), least_age, time.time())
    return {one.folder.name for one in found}


def test_a_store_without_students_is_empty(store: StudentStore) -> None:
    assert stock(store) == []


def test_a_finished_student_is_described_with_the_folders_that_use_it(store: StudentStore, data: Path) -> None:
    key = keep_student(store)
    places = [fetch(store, key, data), fetch(store, key, data / "clone")]
    (found,) = stock(store, data)
    assert (found.student, found.task, found.teacher, found.state) == ("half", "tiny", "ab" * 6, "finished")
    assert found.key == key
    assert sorted(found.used_by) == sorted(places)
    assert found.bytes == sum(path.stat().st_size for path in store.place_of(key).iterdir())


def test_a_student_is_told_from_one_of_the_same_name_and_settings(store: StudentStore, data: Path) -> None:
    """Made by other code."""
    old, new = keep_student(store), keep_student(store, code="00" * 32)
    place = fetch(store, new, data)
    assert {one.name: one.used_by for one in stock(store, data)} == {key_hash(old): (), key_hash(new): (place,)}


def test_one_student_may_be_used_under_several_names(store: StudentStore, data: Path) -> None:
    key = keep_student(store)
    places = [fetch(store, key, data), data / "student" / "tiny" / "renamed"]
    store.take(key, places[1], data / "cost.json", describe)
    (found,) = stock(store, data)
    assert sorted(found.used_by) == sorted(places)


def test_of_a_student_kept_without_a_name_the_key_is_known_so_it_ages_with_its_teacher(store: StudentStore, data: Path) -> None:
    old, young = keep_student(store), keep_student(store, "young")
    path = store.place_of(old) / CONTENTS_FILE
    contents = json.loads(path.read_text())
    write_json(path, {name: contents[name] for name in ("key", "files")})
    age_students(store, 2 * DAY, store.place_of(old))
    (unnamed,) = (one for one in stock(store) if one.name == key_hash(old))
    assert (unnamed.student, unnamed.task, unnamed.key) == ("unknown", None, old)
    assert doomed(store, data) == set(), f"{key_hash(young)} is of the same teacher"


def test_a_student_made_by_hand_uses_nothing_and_the_store_does_not_use_itself(store: StudentStore, data: Path) -> None:
    keep_student(store)
    write_json(data / "student" / "tiny" / "hand" / "lineage.json", {"task": "tiny"})
    assert [one.used_by for one in stock(store, data)] == [()]


def vanish(lineage: Path) -> None:
    lineage.unlink()
    lineage.symlink_to("nowhere")


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (vanish, "cannot be read (No such file or directory)"),
        (lambda lineage: lineage.write_text("{"), "is damaged"),
        (lambda lineage: lineage.write_text("[]"), "is damaged"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    harm: Callable[[Path], object], told: str, store: StudentStore, data: Path
) -> None:
    place = fetch(store, keep_student(store), data)
    harm(place / "lineage.json")
    assert kept.look_for_students([data], store).unreadable == (f"{place / 'lineage.json'} {told}",)


def test_a_training_is_told_from_one_that_was_killed(store: StudentStore) -> None:
    key = begin_training(store)
    (killed,) = stock(store)
    assert (killed.student, killed.task, killed.state, killed.bytes) == ("half", "tiny", "unfinished", 500)
    with store.alone(key, Called("half", "tiny")):
        (running,) = stock(store)
    assert (running.student, running.state) == ("half", "in training")


def test_files_of_others_are_not_seen(store: StudentStore) -> None:
    begin_training(store)
    (store.folder / "notes").mkdir()
    (store.folder / "README").touch()
    assert len(stock(store)) == 1


def test_a_sound_student_has_no_fault_and_looking_leaves_no_trace(store: StudentStore) -> None:
    key = keep_student(store)
    begin_training(store, "other")
    before = {path: path.stat().st_mtime_ns for path in store.folder.rglob("*")}
    assert [kept.fault_of(one) for one in stock(store)] == [None, None]
    assert {path: path.stat().st_mtime_ns for path in store.folder.rglob("*")} == before
    assert store.has(key)


def flip(place: Path) -> None:
    (place / "model.safetensors").write_bytes(bytes(999) + b"x")


def remove(place: Path) -> None:
    (place / "model.safetensors").unlink()


def uncover(place: Path) -> None:
    (place / CONTENTS_FILE).unlink()


def garble(place: Path) -> None:
    (place / CONTENTS_FILE).write_text("{")


def exchange(place: Path) -> None:
    write_json(place / CONTENTS_FILE, {"key": student_key("another"), "files": {}})


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (flip, "/model.safetensors has other bytes than when it was written"),
        (remove, "/model.safetensors cannot be read (No such file or directory)"),
        (uncover, " has no contents.json that can be read"),
        (garble, " has no contents.json that can be read"),
        (exchange, " holds the key of another student"),
    ],
)
def test_a_damaged_student_is_named_and_can_be_deleted(store: StudentStore, harm: Callable[[Path], None], said: str) -> None:
    key, sound = keep_student(store), keep_student(store, "sound")
    harm(store.place_of(key))
    ((damaged, fault),) = [(one, fault) for one in stock(store) if (fault := kept.fault_of(one))]
    assert fault == key_hash(key) + said
    assert not store.has(key), "for the training it is not there"
    (damaged,) = [one for one in stock(store) if one.name == key_hash(key)]
    assert kept.delete(store, damaged)
    assert not store.place_of(key).exists()
    assert store.has(sound)


def test_what_no_folder_uses_may_go_and_what_one_uses_may_not(store: StudentStore, data: Path) -> None:
    used, spare, states = keep_student(store), keep_student(store, "spare"), begin_training(store, "killed")
    fetch(store, used, data)
    age_students(store, 2 * DAY)
    assert doomed(store, data) == {key_hash(spare), store.states_of(states).name}
    assert doomed(store, data, 3 * DAY) == set()


def test_a_run_of_days_keeps_the_students_that_it_trained_on_the_first(store: StudentStore, data: Path) -> None:
    keep_student(store), keep_student(store, "second")
    other = keep_student(store, teacher="cd" * 32)
    age_students(store, 3 * DAY)
    begin_training(store, "third")
    assert doomed(store, data) == {key_hash(other)}
    assert kept.spare(stock(store, data), DAY, time.time())[1] == 3


def test_a_student_that_a_run_has_just_found_is_in_use(store: StudentStore, data: Path) -> None:
    key = keep_student(store)
    age_students(store, 9 * DAY)
    assert doomed(store, data) == {key_hash(key)}
    assert store.has(key)
    assert doomed(store, data) == set()


def test_a_training_in_progress_never_goes_however_long_it_has_written_nothing(store: StudentStore, data: Path) -> None:
    key = begin_training(store)
    age_students(store, 9 * DAY)
    with store.alone(key, Called("half", "tiny")):
        age_students(store, 9 * DAY)
        assert doomed(store, data, 0) == set()
    assert doomed(store, data, 0) == {store.states_of(key).name}


def test_what_looks_unfinished_stays_an_hour_however_small_the_least_age(store: StudentStore, data: Path) -> None:
    states, partial = begin_training(store, "killed"), store.folder / f".partial-0123456789ab-{key_hash(student_key('new'))}"
    shutil.copytree(store.place_of(keep_student(store)), partial)
    finished = keep_student(store, "finished", teacher="cd" * 32)
    assert doomed(store, data, 0) == {key_hash(student_key()), key_hash(finished)}
    age_students(store, 1.1 * HOUR)
    assert doomed(store, data, 0) == {path.name for path in store.folder.iterdir() if path.is_dir()}
    assert doomed(store, data, 2 * HOUR) == set(), "nothing younger than the least age goes"
    assert store.states_of(states).name in doomed(store, data, 0)


def test_what_is_half_written_counts_as_used_by_nobody(store: StudentStore, data: Path) -> None:
    """Killed before it got its name, then trained again with the same bytes."""
    key = keep_student(store)
    fetch(store, key, data)
    partial = store.folder / f".partial-0123456789ab-{key_hash(key)}"
    shutil.copytree(store.place_of(key), partial)
    age_students(store, 2 * DAY)
    assert doomed(store, data) == {partial.name}


def test_deleting_takes_the_list_of_contents_first(store: StudentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def killed(folder: Path) -> None:
        raise Killed

    key = keep_student(store)
    (found,) = stock(store)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(Killed):
            kept.delete(store, found)
    assert not store.has(key)
    (left,) = stock(store)
    assert (left.student, left.state) == ("unknown", "damaged")
    assert kept.delete(store, left), "the next clearing finishes it"


def found_by_a_run(store: StudentStore, key: Key) -> None:
    assert store.has(key)


def trained_again(store: StudentStore, key: Key) -> None:
    keep_student(store)


@pytest.mark.parametrize("event", [found_by_a_run, trained_again])
def test_what_a_run_takes_up_between_plan_and_deletion_stays(
    store: StudentStore, event: Callable[[StudentStore, Key], None]
) -> None:
    key = keep_student(store)
    age_students(store, 2 * DAY)
    (found,) = stock(store)
    event(store, key)
    assert not kept.delete(store, found)
    assert store.has(key)


def test_what_begins_to_be_trained_between_plan_and_deletion_stays(store: StudentStore) -> None:
    key = begin_training(store)
    (found,) = stock(store)
    with store.alone(key, Called("half", "tiny")):
        assert not kept.delete(store, found)
    assert store.states_of(key).exists()
    assert kept.delete(store, found)
    assert not store.states_of(key).exists()
