import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.shards import upkeep
from pipeline.store.hashing import Key
from pipeline.store.store import Store
from pipeline.shards.upkeep import Finding, Plan
from pipeline.shards.usage import look_for_uses
from pipeline.store.hashing import sha256_of
from tests import stored
from tests.stored import DAY, HOUR, PERTURBED, SCORES, STRONGER, add, age, key_of, publish, unfinished

data, store = stored.data, stored.store


def spoil(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Other bytes in a file of its own, as on a disk that forgets; its links elsewhere are left alone."""
    content = change(path.read_bytes())
    path.unlink()
    path.write_bytes(content)


def flip_middle(whole: bytes) -> bytes:
    middle = len(whole) // 2
    return whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]


def plan(store: Store, data: Path, least_age: float = DAY) -> Plan:
    return upkeep.plan(store.contents(), look_for_uses([data], store), least_age, time.time())


def doomed(found: Plan) -> set[str]:
    return {file.path.name for one in found.garbage for file in one.files}


def files_of(store: Store, *keys: Key) -> set[str]:
    return {path.name for key in keys for path in (store.shard_path(key), store.receipt_path(key))}


def findings(store: Store) -> list[Finding]:
    found = [upkeep.examine(entry, time.time()) for entry in store.contents().entries]
    return [one for one in found if one]


def test_shards_that_differ_in_examples_and_variant_alone_are_one_set(store: Store, data: Path) -> None:
    scores, perturbed = add(store, SCORES, 3), add(store, PERTURBED)
    store.finish(unfinished(store, key_of(PERTURBED, variant=2)))
    add(store, STRONGER, 1)
    folder = publish(data / "shards" / "tiny", store, perturbed)
    sets = upkeep.sets_of(store.contents(), look_for_uses([data], store))
    assert [(one.content, one.settings, one.shards, one.rows, one.used_by) for one in sets] == [
        ("scores", "batch_rows 8", 3, 6, ()),
        ("perturbations", "divergence, l2, radius 0.0143, int8", 3, 6, (folder,)),
        ("perturbations", "divergence, l2, radius 0.5, int8", 1, 2, ()),
    ]
    assert {one.teacher for one in sets} == {"ab" * 6}
    assert sets[0].bytes == sum(store.shard_path(key).stat().st_size for key in scores)


def test_sets_that_look_alike_to_a_person_but_were_made_by_other_code_are_two(store: Store, data: Path) -> None:
    add(store, PERTURBED)
    add(store, PERTURBED | {"computed_by": {"code": "00" * 32}})
    sets = upkeep.sets_of(store.contents(), look_for_uses([data], store))
    assert len({one.settings for one in sets}) == 1
    assert len({one.name for one in sets}) == 2


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (SCORES, "batch_rows 8"),
        ({"content": "perturbations", "teacher": "x"}, "–"),
        (PERTURBED | {"perturbation": {"objective": "none", "norm": "l2", "radius": None}}, "none, l2, int8"),
        ({"edit": {"share": 0.1}, "seed": 1}, 'edit {"share": 0.1}, seed 1'),
        ({"perturbation": "of another form"}, "of another form"),
        (
            PERTURBED | {"recipe": ["mask", "perturb"], "text_edits": {"mask": 0.1}, "scout": "cd" * 32},
            'mask+perturb, {"mask": 0.1}, divergence, scout cdcdcdcdcdcd, l2, radius 0.0143, int8',
        ),
        ({"recipe": ["mix"], "mixing": {"alpha": 0.4}, "seed": 1, "precision": "float32"}, 'mix, {"alpha": 0.4}'),
    ],
)
def test_settings_of_any_key_are_said_in_short(key: Key, said: str) -> None:
    assert upkeep.settings_of(key) == said


def test_a_sound_store_has_no_findings(store: Store) -> None:
    add(store, SCORES)
    add(store, PERTURBED)
    age(store, DAY)
    assert findings(store) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (flip_middle, "has other bytes than when it was written"),
        (lambda whole: whole[:-9], "bytes, its receipt says"),
        (lambda whole: b"", "has 0 bytes, its receipt says"),
    ],
)
def test_a_damaged_shard_is_named_with_what_it_was(store: Store, change: Callable[[bytes], bytes], said: str) -> None:
    key, _ = add(store, PERTURBED)
    spoil(store.shard_path(key), change)
    (found,) = findings(store)
    assert found.damaged
    assert store.shard_path(key).name in found.text
    assert said in found.text
    described = upkeep.describe(found.entry)
    assert described == f"perturbations of teacher {'ab' * 6}, divergence, l2, radius 0.0143, int8, variant 1"


def test_a_shard_that_holds_another_key_than_its_receipt_is_damaged_and_the_difference_named(store: Store) -> None:
    key = key_of(SCORES)
    store.finish(unfinished(store, key, held=key | {"batch_rows": 16}))
    (found,) = findings(store)
    assert found.damaged
    assert "holds another key than its receipt: batch_rows: 8 wanted, 16 found" in found.text


def test_a_file_that_is_no_arrow_file_is_damaged_even_if_its_receipt_fits(store: Store) -> None:
    key = key_of(SCORES)
    receipt = unfinished(store, key)
    store.shard_path(key).write_bytes(b"no arrow")
    store.finish(receipt.model_copy(update={"bytes": 8, "sha256": sha256_of(store.shard_path(key))}))
    (found,) = findings(store)
    assert found.damaged
    assert "is no shard of this package" in found.text


@pytest.mark.parametrize("missing", ["shard", "receipt"])
def test_half_of_a_pair_is_damaged_once_it_is_too_old_for_a_run_in_progress(store: Store, missing: str) -> None:
    (key,) = add(store, PERTURBED, 1)
    (store.shard_path(key) if missing == "shard" else store.receipt_path(key)).unlink()
    (found,) = findings(store)
    assert not found.damaged
    age(store, 2 * HOUR)
    (found,) = findings(store)
    assert found.damaged
    assert f"without a {missing}" in found.text
    assert "radius 0.0143, int8, variant 1" in upkeep.describe(found.entry), "a shard alone says itself what it is"


def test_a_damaged_receipt_is_damage_but_one_of_another_version_is_left_alone(store: Store) -> None:
    (key,) = add(store, SCORES, 1)
    path = store.receipt_path(key)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"compressed": True}))
    (found,) = findings(store)
    assert (found.damaged, "another version" in found.text) == (False, True)
    path.write_text("{")
    (found,) = findings(store)
    assert (found.damaged, "is damaged" in found.text) == (True, True)


def test_a_disk_that_cannot_read_a_shard_is_a_finding(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> str:
        raise OSError(5, "Input/output error")

    add(store, SCORES, 1)
    monkeypatch.setattr(upkeep, "sha256_of", broken)
    (found,) = findings(store)
    assert found.damaged
    assert "cannot be read (Input/output error)" in found.text


def test_what_no_manifest_lists_may_go_and_what_one_lists_may_not(store: Store, data: Path) -> None:
    used, spare = add(store, PERTURBED), add(store, STRONGER)
    publish(data / "shards" / "tiny", store, used)
    age(store, 2 * DAY)
    found = plan(store, data)
    assert doomed(found) == files_of(store, *spare)
    assert all("radius 0.5" in one.label for one in found.garbage)


def test_of_one_set_only_the_shards_that_are_listed_stay(store: Store, data: Path) -> None:
    first, second = add(store, PERTURBED)
    publish(data / "shards" / "tiny", store, [first])
    age(store, 2 * DAY)
    assert doomed(plan(store, data)) == files_of(store, second)


def test_a_run_of_days_keeps_what_it_computed_or_found_on_the_first(store: Store, data: Path) -> None:
    found_first, computing = add(store, PERTURBED), add(store, STRONGER)
    others = add(store, PERTURBED | {"teacher": "cd" * 32})
    age(store, 3 * DAY)
    age(store, 1 * HOUR, computing[1])
    found = plan(store, data)
    assert doomed(found) == files_of(store, *others)
    assert found.young == len(found_first + computing)


def test_a_run_of_days_keeps_the_words_that_it_looked_up_on_the_first(store: Store, data: Path) -> None:
    """Nothing of it is published yet, and what it goes on writing is of its teacher too."""
    proposing = {"masked_lm": {"model": "e" * 64, "candidates": 15}}
    words = add(store, {"content": "candidates"} | proposing)
    writing = add(store, PERTURBED | proposing)
    others = add(store, {"content": "candidates", "masked_lm": {"model": "f" * 64, "candidates": 15}})
    age(store, 3 * DAY)
    age(store, 1 * HOUR, writing[1])
    found = plan(store, data)
    assert doomed(found) == files_of(store, *others)
    assert found.young == len(words + writing)


def test_a_shard_that_a_run_has_just_found_is_in_use(store: Store, data: Path) -> None:
    keys = add(store, PERTURBED)
    age(store, 30 * DAY)
    assert doomed(plan(store, data)) == files_of(store, *keys)
    assert store.find(keys[0]) is not None
    assert doomed(plan(store, data)) == set()


def test_half_written_files_stay_an_hour_however_small_the_least_age(store: Store, data: Path) -> None:
    key = key_of(SCORES)
    unfinished(store, key)
    partial = store.folder / f".partial-0123456789ab-{store.shard_path(key).name}"
    partial.touch()
    assert (doomed(plan(store, data, 0)), plan(store, data, 0).young) == (set(), 2)
    age(store, 1.1 * HOUR)
    assert doomed(plan(store, data, 0)) == {partial.name, store.shard_path(key).name}
    assert doomed(plan(store, data, 2 * HOUR)) == set(), "nothing younger than the least age goes, partial files included"


def test_notes_stay_with_a_teacher_that_is_in_use(store: Store, data: Path) -> None:
    publish(data / "scores" / "tiny", store, add(store, SCORES))
    kept, spare = SCORES | {"calibration": 1}, SCORES | {"teacher": "cd" * 32}
    for key in (kept, spare):
        store.remember(key, {"radius": 0.3})
    damaged = store.folder / ("00" * 16 + ".note.json")
    damaged.write_text("{")
    age(store, 2 * DAY)
    assert doomed(plan(store, data)) == {store.note_path(spare).name, damaged.name}


def test_words_of_a_masked_language_model_go_when_no_variant_has_them(store: Store, data: Path) -> None:
    old, new = ({"masked_lm": {"model": name * 64, "candidates": 15}} for name in "ef")
    publish(data / "shards" / "tiny", store, add(store, SCORES | new))
    spare, _ = (add(store, {"content": "candidates"} | model) for model in (old, new))
    age(store, 2 * DAY)
    assert doomed(plan(store, data)) == files_of(store, *spare)


def test_by_products_that_no_manifest_ever_lists_stay_with_their_teacher(store: Store, data: Path) -> None:
    folder = publish(data / "scores" / "tiny", store, add(store, SCORES))
    add(store, {"content": "candidates", "teacher": "ab" * 32})
    spare = add(store, {"content": "candidates", "teacher": "cd" * 32})
    age(store, 2 * DAY)
    assert doomed(plan(store, data)) == files_of(store, *spare)
    sets = upkeep.sets_of(store.contents(), look_for_uses([data], store))
    assert {(one.content, one.teacher[:2]): one.used_by for one in sets} == {
        ("scores", "ab"): (folder,),
        ("candidates", "ab"): (folder,),
        ("candidates", "cd"): (),
    }


def test_a_shard_that_is_linked_elsewhere_frees_nothing(store: Store, data: Path, tmp_path: Path) -> None:
    linked, alone = add(store, PERTURBED)
    store.place(linked, tmp_path / "kept.arrow")
    age(store, 2 * DAY)
    garbage = {one.files[1].path: one for one in plan(store, data).garbage}
    both = garbage[store.shard_path(linked)]
    assert both.freed == store.receipt_path(linked).stat().st_size
    assert [file.path for file in both.linked] == [store.shard_path(linked)]
    other = garbage[store.shard_path(alone)]
    assert (other.freed, other.linked) == (other.bytes, ())


def test_a_receipt_is_deleted_before_its_shard(store: Store, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def killed_at_the_second(path: Path, missing_ok: bool = False) -> None:
        if gone:
            raise Killed
        gone.append(path)
        unlink(path)

    (key,) = add(store, SCORES, 1)
    (entry,) = store.contents().entries
    gone, unlink = list[Path](), Path.unlink
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed_at_the_second)
        with pytest.raises(Killed):
            upkeep.delete(entry.files)
    assert gone == [store.receipt_path(key)]
    assert not store.has_receipt(key)
    age(store, 2 * DAY)
    assert doomed(plan(store, data)) == {store.shard_path(key).name}, "the next clearing finishes it"


def found_by_a_run(store: Store, key: Key, out: Path) -> None:
    assert store.find(key) is not None


def placed_by_a_run(store: Store, key: Key, out: Path) -> None:
    store.place(key, out)


def computed_again(store: Store, key: Key, out: Path) -> None:
    unfinished(store, key)


@pytest.mark.parametrize("event", [found_by_a_run, placed_by_a_run, computed_again])
def test_what_a_run_takes_up_between_plan_and_deletion_stays(
    store: Store, data: Path, tmp_path: Path, event: Callable[[Store, Key, Path], None]
) -> None:
    (key,) = add(store, SCORES, 1)
    age(store, 2 * DAY)
    (garbage,) = plan(store, data).garbage
    event(store, key, tmp_path / "out.arrow")
    assert not upkeep.delete(garbage.files)
    assert store.find(key) is not None
