import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.distill.jobs import Called, StudentStore
from pipeline.store.hashing import Key, key_hash
from pipeline.shards.reader import Shards
from stages.store import main
from tests.stored import DAY, age_students, begin_training, describe, keep_student
from tests.world import AUGMENT_SETTINGS, make_shards

STRONGER = AUGMENT_SETTINGS.model_copy(
    update={"perturbation": AUGMENT_SETTINGS.perturbation.model_copy(update={"radius": 0.4})}
)
Files = dict[str, bytes]


@pytest.fixture
def data(tmp_path: Path, prepared: Path, teacher: Path) -> Path:
    """Two passes of augment over one corpus, of which the second is published, in a store two days old."""
    make_shards(tmp_path / "data", prepared, teacher)
    make_shards(tmp_path / "data", prepared, teacher, STRONGER)
    age(tmp_path / "data" / "store", days=2)
    return tmp_path / "data"


@pytest.fixture
def students(data: Path) -> dict[str, Key]:
    """A student that is used, one that is not, and one whose training was killed, five days old."""
    store = StudentStore.below(data / "store")
    keys = {"half": keep_student(store), "spare": keep_student(store, "spare"), "killed": begin_training(store, "killed")}
    store.take(keys["half"], data / "student" / "tiny" / "half", data / "training" / "tiny" / "half.json", describe)
    age_students(store, 5 * DAY)
    return keys


def age(folder: Path, days: float) -> None:
    then = time.time() - days * 24 * 3600
    for path in folder.iterdir():
        os.utime(path, (then, then))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def on(data: Path, command: str, *arguments: object) -> Result:
    products = () if command == "verify" else ("--data", data)
    return run(command, "--store", data / "store", *products, *arguments)


def held(data: Path) -> Files:
    return {path.name: path.read_bytes() for path in (data / "store").iterdir()}


def a_shard(data: Path) -> Path:
    return min((data / "store").glob("*.arrow"))


def flip(path: Path) -> None:
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[:700] + bytes([whole[700] ^ 1]) + whole[701:])


def test_list_shows_each_set_with_who_uses_it(data: Path) -> None:
    result = on(data, "list")
    assert result.exit_code == 0, result.output
    heading, *rows, totals = result.stdout.splitlines()
    assert heading.split() == ["set", "content", "teacher", "settings", "shards", "rows", "MB", "used", "by"]
    scores, weaker, stronger = rows
    assert "scores" in scores
    assert scores.rstrip().endswith(str(data / "scores"))
    assert "radius 0.2, int8" in weaker
    assert weaker.rstrip().endswith("unused")
    assert "radius 0.4, int8" in stronger
    assert stronger.rstrip().endswith(str(data / "shards"))
    assert weaker.split()[-4:-1] == [str(len(Shards(data / "shards").manifest.shards)), "120", "0.10"]
    assert totals.startswith(f"{data / 'store'}: 3 sets, ")
    assert "340 rows" in totals
    assert "2 notes, 0 partial files, 0 damaged or incomplete as far as sizes tell" in totals


def test_list_counts_what_sizes_tell_and_says_what_it_could_not_read(data: Path, tmp_path: Path) -> None:
    os.truncate(a_shard(data), 100)
    (data / "shards" / "manifest.json").write_text("{")
    result = on(data, "list", "--data", tmp_path / "clone")
    assert result.exit_code == 0, result.output
    assert "1 damaged or incomplete" in result.stdout
    assert "unknown" in result.stdout
    assert "unused" not in result.stdout
    assert f"not read, so what it uses is not known: {data / 'shards' / 'manifest.json'} is damaged" in result.stdout
    assert f"no manifest.json below {tmp_path / 'clone'}, so it uses nothing" in result.stdout


def test_verify_of_a_sound_store_ends_well_and_leaves_no_trace(data: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in (data / "store").iterdir()}
    result = on(data, "verify", "--delete")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"{data / 'store'}: nothing is damaged"
    assert {path: path.stat().st_mtime_ns for path in (data / "store").iterdir()} == times


def test_verify_names_what_is_damaged_and_deletes_it_only_when_told(data: Path) -> None:
    shard, before = a_shard(data), held(data)
    flip(shard)
    result = on(data, "verify")
    assert result.exit_code == 1
    assert f"Error: {data / 'store'}: 1 damaged\n  - {shard.name} has other bytes" in result.stderr
    assert "of teacher" in result.stderr
    assert "computes it again; --delete removes what is damaged now" in result.stderr
    assert held(data).keys() == before.keys()
    result = on(data, "verify", "--delete")
    assert result.exit_code == 1
    assert "1 of 1 deleted; the next run that needs them computes them again" in result.stderr
    assert before.keys() - held(data).keys() == {shard.name, shard.with_suffix(".json").name}
    assert on(data, "verify").exit_code == 0


def test_what_verify_deleted_is_computed_again_with_the_same_bytes(data: Path, prepared: Path, teacher: Path) -> None:
    before = held(data)
    for shard in list((data / "store").glob("*.arrow")):
        flip(shard)
    on(data, "verify", "--delete")
    assert not list((data / "store").glob("*.arrow"))
    make_shards(data, prepared, teacher)
    make_shards(data, prepared, teacher, STRONGER)
    assert held(data) == before


def test_verify_leaves_alone_what_may_be_about_to_get_its_receipt(data: Path) -> None:
    shard = a_shard(data)
    shard.with_suffix(".json").unlink()
    os.utime(shard)
    result = on(data, "verify", "--delete")
    assert result.exit_code == 0, result.output
    assert f"left alone, perhaps in use: {shard.name} is a shard without a receipt" in result.stdout
    assert shard.exists()


def test_gc_deletes_nothing_unless_told(data: Path) -> None:
    before = held(data)
    result = on(data, "gc")
    assert result.exit_code == 0, result.output
    assert held(data) == before
    assert "would be deleted:\n  - 8 shards, 0.11 MB: set " in result.stdout
    assert "radius 0.2, int8" in result.stdout
    assert "radius 0.4" not in result.stdout
    assert "nothing was deleted, --delete does it" in result.stdout


def test_gc_frees_exactly_the_bytes_it_says_and_what_is_published_stays_whole(
    data: Path, prepared: Path, teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = held(data)
    result = on(data, "gc", "--delete")
    gone = before.keys() - held(data).keys()
    assert len(gone) == 16
    assert f"\nfreed {sum(len(before[name]) for name in gone):,} bytes (" in result.stdout
    assert "deleted: nothing" in on(data, "gc", "--delete").stdout
    assert on(data, "verify").exit_code == 0
    capsys.readouterr()
    make_shards(data, prepared, teacher, STRONGER)
    said = capsys.readouterr().out
    assert "9 in the store, 0 to compute" in said
    assert "8 in the store, 0 to compute" in said
    assert "calibration" not in said, "the radius found is still known"


def test_gc_keeps_what_is_too_young_and_says_so(data: Path) -> None:
    before = held(data)
    result = on(data, "gc", "--delete", "--min-age-hours", 72)
    assert held(data) == before
    assert "kept although not in use: 8, too young for --min-age-hours 72" in result.stdout


def test_gc_says_that_linked_shards_free_nothing(data: Path) -> None:
    shutil.rmtree(data / "shards")
    shutil.copytree(data / "scores", data / "keeps-links", copy_function=os.link)
    shutil.rmtree(data / "scores")
    (data / "keeps-links" / "manifest.json").unlink()
    result = on(data, "gc", "--everything")
    assert "of 9 shards, 0.04 MB, another folder has a link: they free nothing until it goes" in result.stdout
    total = sum(len(content) for content in held(data).values())
    linked = sum(path.stat().st_size for path in (data / "keeps-links").iterdir())
    assert f"would free {total - linked:,} bytes" in result.stdout


def test_gc_after_a_mistyped_folder_deletes_nothing(data: Path, tmp_path: Path) -> None:
    before = held(data)
    result = run("gc", "--store", data / "store", "--data", data, "--data", tmp_path / "dta", "--delete")
    assert result.exit_code == 1
    assert f"Error: no manifest.json below {tmp_path / 'dta'}, so everything would count as unused" in result.stderr
    assert held(data) == before


def test_gc_everything_empties_a_store_without_products(data: Path, tmp_path: Path) -> None:
    arguments = ("gc", "--store", data / "store", "--data", tmp_path / "none", "--delete", "--everything")
    assert run(*arguments).exit_code == 0
    assert held(data) == {}


def test_gc_beside_a_manifest_that_cannot_be_read_deletes_nothing(data: Path) -> None:
    before = held(data)
    (data / "shards" / "manifest.json").write_text('{"format_version": 0}')
    result = on(data, "gc", "--delete", "--everything")
    assert result.exit_code == 1
    assert f"nothing is deleted:\n  - {data / 'shards' / 'manifest.json'}: format_version is 0" in result.stderr
    assert held(data) == before


@pytest.mark.parametrize("command", ["list", "verify", "gc"])
def test_the_store_is_that_of_the_settings_unless_one_is_named(
    command: str, data: Path, write: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parent)
    write("params.yaml", "runtime: {store: data/store}")
    result = run(command)
    assert result.exit_code == 0, result.output
    assert "data/store: " in result.stdout
    result = run(command, "--store", "elsewhere")
    assert result.exit_code == 1
    assert "the shard store elsewhere does not exist; name its folder with --store" in result.stderr
    write("params.yaml", "runtime: {}")
    result = run(command)
    assert result.exit_code == 1
    assert "params.yaml has no runtime.store; name the folder of the shard store with --store" in result.stderr


def test_help_says_to_name_every_clone_and_to_finish_what_was_interrupted() -> None:
    text = " ".join(run("gc", "-h").output.split())
    assert "Give one for EVERY clone that uses the store" in text
    assert "finish or repeat a stage that was interrupted before clearing the store" in text


def test_list_shows_each_student_with_what_uses_it(data: Path, students: dict[str, Key]) -> None:
    result = on(data, "list")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    heading, half, killed, spare, totals = lines[5:]
    assert heading.split() == ["student", "task", "teacher", "state", "MB", "age", "used", "by"]
    assert half.split() == ["half", "tiny", "ab" * 6, "finished", "0.00", "5", "days", str(data / "student" / "tiny" / "half")]
    assert killed.split() == ["killed", "tiny", "ab" * 6, "unfinished", "0.00", "5", "days", "unused"]
    assert spare.split() == ["spare", "tiny", "ab" * 6, "finished", "0.00", "5", "days", "unused"]
    assert totals == f"{data / 'store' / 'students'}: 3 folders, 0.00 MB"
    assert lines[4].startswith(f"{data / 'store'}: 3 sets, "), "shards are counted apart"


def test_list_says_which_student_is_in_training(data: Path, students: dict[str, Key]) -> None:
    with StudentStore.below(data / "store").alone(students["killed"], Called("killed", "tiny")):
        assert "in training" in on(data, "list").stdout
    assert "in training" not in on(data, "list").stdout


def test_verify_names_a_damaged_student_and_deletes_it_only_when_told(data: Path, students: dict[str, Key]) -> None:
    place = data / "store" / "students" / key_hash(students["half"])
    assert on(data, "verify").exit_code == 0
    (place / "model.safetensors").write_bytes(b"")
    result = on(data, "verify")
    assert result.exit_code == 1
    fault = f"{place.name}/model.safetensors has other bytes than when it was written: half of task tiny, teacher "
    assert f"Error: {data / 'store'}: 1 damaged\n  - {fault}" in result.stderr
    assert place.exists()
    result = on(data, "verify", "--delete")
    assert result.exit_code == 1
    assert "1 of 1 deleted; the next run that needs them computes them again" in result.stderr
    assert not place.exists()
    assert on(data, "verify").exit_code == 0


def test_gc_offers_students_that_no_folder_uses_and_deletes_them_only_when_told(data: Path, students: dict[str, Key]) -> None:
    store = data / "store" / "students"
    sizes = {path.name: sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in store.iterdir()}
    spare, states = key_hash(students["spare"]), f"{key_hash(students['killed'])}-training"
    result = on(data, "gc", "--min-age-hours", 96)
    assert "would be deleted:\n  - 1 student, 0.00 MB: killed of task tiny, teacher abababababab, unfinished\n" in result.stdout
    assert "\n  - 1 student, 0.00 MB: spare of task tiny, teacher abababababab, finished\n" in result.stdout
    assert f"would free {sizes[spare] + sizes[states]:,} bytes" in result.stdout
    assert "kept although not in use: 8, too young for --min-age-hours 96" in result.stdout, "the shards are"
    assert {path.name for path in store.iterdir()} == sizes.keys()
    result = on(data, "gc", "--min-age-hours", 96, "--delete")
    assert f"freed {sizes[spare] + sizes[states]:,} bytes" in result.stdout
    assert sizes.keys() - {path.name for path in store.iterdir()} == {spare, states}
    assert "deleted: nothing" in on(data, "gc", "--min-age-hours", 96, "--delete").stdout


def test_gc_keeps_students_that_are_too_young_and_says_so(data: Path, students: dict[str, Key]) -> None:
    result = on(data, "gc", "--delete", "--min-age-hours", 144)
    assert "deleted: nothing" in result.stdout
    assert "kept although not in use: 10, too young for --min-age-hours 144" in result.stdout


def test_gc_beside_a_student_that_cannot_be_read_deletes_nothing(data: Path, students: dict[str, Key]) -> None:
    lineage = data / "student" / "tiny" / "half" / "lineage.json"
    lineage.write_text("{")
    result = on(data, "gc", "--delete", "--everything")
    assert result.exit_code == 1
    assert f"{lineage} is damaged" in result.stderr
    assert (data / "store" / "students" / key_hash(students["spare"])).exists()
    assert "unknown" in on(data, "list").stdout
