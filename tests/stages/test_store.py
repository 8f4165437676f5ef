from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.store.hashing import key_hash
from pipeline.store.store import Store
from stages.store import main
from tests.stored import DAY, add, age, begin, data, publish, store

__all__ = ["data", "store"]


@pytest.fixture
def products(data: Path, store: Store) -> Path:
    """Two sets of shards, of which one is published, a teacher that is used, a student that is not, all two days old."""
    used, spare = ([add(store, content, number) for number in range(3)] for content in ("scores", "perturbations"))
    publish(data / "scores" / "t", store, used)
    publish(data / "teacher" / "t", store, [add(store, "teacher", title="teach t")], "stored_as.json")
    add(store, "student", title="distill t half")
    begin(store, {"content": "surrogate"})
    age(store.folder, 2 * DAY)
    assert len(spare) == 3
    return data


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def on(data: Path, command: str, *arguments: object) -> Result:
    folders = () if command == "verify" else ("--data", data)
    return run(command, "--store", data / "store", *folders, *arguments)


def held(data: Path) -> dict[str, bytes]:
    folder = data / "store"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_list_shows_what_there_is_and_who_uses_it(products: Path) -> None:
    result = on(products, "list")
    assert result.exit_code == 0, result.output
    _, *rows, totals = [" ".join(line.split()) for line in result.stdout.splitlines()]
    wanted = [
        ("1 ", "finished distill t half unused"),
        ("3 ", "finished perturbations unused"),
        ("3 ", f"finished scores {products / 'scores' / 't'}"),
        ("1 ", f"finished teach t {products / 'teacher' / 't'}"),
        ("1 ", "unfinished surrogate unused"),
    ]
    for row, (count, rest) in zip(rows, wanted, strict=True):
        assert row.startswith(count)
        assert row.endswith(rest)
    assert totals.startswith(f"{products / 'store'}: 9 entries, ")


def test_list_says_what_it_could_not_read(products: Path, tmp_path: Path) -> None:
    (products / "scores" / "t" / "manifest.json").write_text("{")
    result = on(products, "list", "--data", tmp_path / "clone")
    assert result.exit_code == 0, result.output
    assert "unknown" in result.stdout
    assert "unused" not in result.stdout
    assert f"not read, so what it uses is not known: {products}/scores/t/manifest.json is damaged" in result.stdout
    assert f"no manifest.json below {tmp_path / 'clone'}, so it uses nothing" in result.stdout


def test_verify_names_what_is_damaged_and_deletes_it_only_when_told(products: Path, store: Store) -> None:
    assert on(products, "verify").stdout.splitlines()[-1] == f"{store.folder}: nothing is damaged"
    key, before = add(store, "student", title="distill t half"), held(products)
    (store.folder_of(key) / "model.bin").write_bytes(bytes(999) + b"!")
    result = on(products, "verify")
    assert result.exit_code == 1
    said = f"Error: {store.folder}: 1 damaged\n  - {key_hash(key)}/model.bin has other bytes than when it was written"
    assert result.stderr.startswith(said)
    assert "receipt's): distill t half\n" in result.stderr
    assert held(products).keys() == before.keys()
    result = on(products, "verify", "--delete")
    assert result.exit_code == 1
    assert "1 of 1 deleted; the next run that needs them computes them again" in result.stderr
    assert {name.split("/")[0] for name in before.keys() - held(products).keys()} == {key_hash(key)}
    assert on(products, "verify").exit_code == 0


def test_gc_says_what_may_go_and_deletes_it_only_when_told(products: Path) -> None:
    before = held(products)
    young = on(products, "gc", "--delete", "--min-age-hours", 72)
    assert "kept although not in use: 5, younger than --min-age-hours 72 or being written" in young.stdout
    result = on(products, "gc")
    assert result.exit_code == 0, result.output
    assert held(products) == before
    lines = result.stdout.splitlines()
    assert lines[0] == f"{products / 'store'}: would be deleted:"
    assert [(line.split()[1:3], line.split(": ")[1]) for line in lines[1:4]] == [
        (["1", "finished,"], "distill t half"),
        (["3", "finished,"], "perturbations"),
        (["1", "unfinished,"], "surrogate"),
    ]
    assert lines[4].endswith(" bytes; --delete deletes them")
    result = on(products, "gc", "--delete")
    gone = before.keys() - held(products).keys()
    assert len({name.split("/")[0] for name in gone}) == 5
    assert f"\nfreed {sum(len(before[name]) for name in gone):,} bytes\n" in result.stdout
    assert "deleted: nothing" in on(products, "gc", "--delete").stdout
    assert on(products, "verify").exit_code == 0


def test_gc_after_a_mistyped_folder_deletes_nothing(products: Path, tmp_path: Path) -> None:
    before = held(products)
    result = run("gc", "--store", products / "store", "--data", products, "--data", tmp_path / "dta", "--delete")
    assert result.exit_code == 1
    assert f"Error: no manifest.json below {tmp_path / 'dta'}, so everything would count as unused" in result.stderr
    assert held(products) == before
    result = run("gc", "--store", products / "store", "--data", tmp_path / "dta", "--delete", "--everything")
    assert result.exit_code == 0
    assert "4,000 more bytes are hard links of another folder and are freed when it goes" in result.stdout
    assert held(products) == {}


def test_the_store_is_that_of_the_settings_unless_one_is_named(
    products: Path, write: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(products.parent)
    write("params.yaml", "runtime: {store: data/store}")
    for command in ("list", "verify", "gc"):
        assert "data/store: " in run(command).stdout
    result = run("gc", "--store", "elsewhere")
    assert result.exit_code == 1
    assert "the store elsewhere does not exist; name its folder with --store" in result.stderr
    write("params.yaml", "runtime: {}")
    result = run("list")
    assert result.exit_code == 1
    assert "params.yaml has no runtime.store; name the folder of the store with --store" in result.stderr
