import errno
import functools
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline
from pipeline.config.errors import PipelineError
from pipeline.store.files import PARTIAL, check_replaceable, folder_written_whole, write_json, written_whole
from pipeline.store.hashing import canonical_json, hash_of, sha256_of

ROOT = Path(pipeline.__file__).parents[1]
leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text())
plain = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def turned(value: Any) -> Any:
    """The same value with every mapping built in the opposite order."""
    if isinstance(value, dict):
        return {key: turned(inner) for key, inner in reversed(value.items())}
    return [turned(inner) for inner in value] if isinstance(value, list) else value


@given(plain)
def test_canonical_json_is_json_and_one_for_equal_values(value: Any) -> None:
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(turned(value)) == text
    assert hash_of(turned(value)) == hash_of(value) == hashlib.sha256(text).hexdigest()


def test_canonical_json_is_these_bytes_in_every_version_and_sha256_that_of_all_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9_000
    (tmp_path / "x").write_bytes(content)
    assert sha256_of(tmp_path / "x") == hashlib.sha256(content).hexdigest()
    assert canonical_json({"b": [1, 2.5, None, True], "a": "δ"}) == '{"a":"δ","b":[1,2.5,null,true]}'.encode()


def old(folder: Path, kind: str) -> Path:
    """A file, or a folder with a file, that holds ``old``."""
    path = folder / "out"
    if kind == "folder":
        path.mkdir()
    (path / "a" if kind == "folder" else path).write_text("old", encoding="utf-8")
    return path


def content_of(path: Path) -> dict[str, str]:
    return {one.name: one.read_text(encoding="utf-8") for one in (path.iterdir() if path.is_dir() else [path])}


def replace_half(path: Path, kind: str, error: type[BaseException]) -> None:
    with WRITERS[kind](path) as partial:
        (partial / "b" if kind == "folder" else partial).write_text("new", encoding="utf-8")
        assert partial.parent == path.parent, "a rename from another disk is not atomic"
        raise error


WRITERS: dict[str, Any] = {"file": written_whole, "folder": folder_written_whole}
either = pytest.mark.parametrize("kind", WRITERS)


@either
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path: Path, kind: str, error: type[BaseException]) -> None:
    path = old(tmp_path, kind)
    before = content_of(path)
    for target in (path, tmp_path / "absent"):
        with pytest.raises(error):
            replace_half(target, kind, error)
    assert content_of(path) == before
    assert names(tmp_path) == ["out"]


@either
def test_a_process_killed_while_writing_leaves_what_was_there_and_what_may_be_deleted(tmp_path: Path, kind: str) -> None:
    path = old(tmp_path, kind)
    before = content_of(path)
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom pipeline.store import files\n"
        "with getattr(files, sys.argv[1])(Path(sys.argv[2])) as partial:\n"
        "    (partial / 'b' if partial.is_dir() else partial).write_text('new')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, WRITERS[kind].__name__, path], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert content_of(path) == before
    (left,) = set(names(tmp_path)) - {"out"}
    assert left.startswith(PARTIAL)


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    with written_whole(tmp_path / "x") as one, written_whole(tmp_path / "x") as other:
        assert one != other
        one.write_text("one", encoding="utf-8")
        other.write_text("other", encoding="utf-8")
    assert (tmp_path / "x").read_text(encoding="utf-8") == "one"
    assert names(tmp_path) == ["x"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The order in which contents reach the disk and names change."""
    seen: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        seen.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink().name.split("-")[-1]))
        fsync(descriptor)

    def replaced(source: Path, target: Path) -> None:
        seen.append(("rename", target.name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    return seen


def test_content_is_on_disk_before_the_name_and_the_name_before_the_block_is_left(
    tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    with written_whole(tmp_path / "x") as partial:
        partial.write_text("a", encoding="utf-8")
    assert calls == [("sync", "x"), ("rename", "x"), ("sync", tmp_path.name.split("-")[-1])]


def test_every_file_of_a_folder_is_on_disk_before_the_folder_has_its_name(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    with folder_written_whole(tmp_path / "out") as folder:
        (folder / "inner").mkdir()
        for name in ("a", "inner/b"):
            (folder / name).write_text(name, encoding="utf-8")
    renamed = calls.index(("rename", "out"))
    assert {("sync", "a"), ("sync", "b"), ("sync", "inner")} <= set(calls[:renamed])
    assert calls[renamed + 1 :] == [("sync", tmp_path.name.split("-")[-1])]


def test_a_folder_replaces_the_old_one_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "out" / "deep").mkdir(parents=True)
    (tmp_path / "out" / "deep" / "stale").write_text("old", encoding="utf-8")
    with folder_written_whole(tmp_path / "out") as folder:
        assert names(folder) == []
        (folder / "fresh").write_text("new", encoding="utf-8")
        assert names(tmp_path / "out") == ["deep"], "the old folder stays until the new one is whole"
    assert names(tmp_path / "out") == ["fresh"]
    assert names(tmp_path) == ["out"]


def test_where_the_new_folder_cannot_take_its_place_the_old_one_stays_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("old", encoding="utf-8")
    replace = os.replace

    def refuse(source: Path, target: Path) -> None:
        if (Path(source) / "b").exists():
            raise OSError(errno.EBUSY, "busy")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="busy"), folder_written_whole(tmp_path / "out") as folder:
        (folder / "b").write_text("new", encoding="utf-8")
    assert (tmp_path / "out" / "a").read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["out"]


def test_of_a_link_that_which_it_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk" / "out").mkdir(parents=True)
    (tmp_path / "disk" / "out" / "a").touch()
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "out")
    with folder_written_whole(tmp_path / "out") as folder:
        (folder / "b").touch()
    assert (tmp_path / "out").is_symlink()
    assert names(tmp_path / "disk" / "out") == ["b"]


def test_a_new_file_is_as_open_as_others_and_one_that_has_another_name_elsewhere_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "stored").touch(mode=0o640)
    with folder_written_whole(tmp_path / "out") as folder:
        (folder / "linked").hardlink_to(tmp_path / "stored")
        (folder / "plain").touch()
        (folder / "weights").touch(mode=0o600)
    modes = {name: stat.S_IMODE((tmp_path / "out" / name).stat().st_mode) for name in names(tmp_path / "out")}
    assert modes["weights"] == modes["plain"]
    assert modes["linked"] == 0o640


def test_only_a_folder_of_the_same_kind_is_to_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_replaceable(tmp_path / "absent", ["manifest.json"])
    (tmp_path / ".gitignore").write_text("*")
    check_replaceable(tmp_path, ["manifest.json"])
    for name in (".git", "thesis.txt"):
        (tmp_path / name).mkdir()
        with pytest.raises(PipelineError, match=r"not written by this command \(it has no manifest\.json, no config\.json\)"):
            check_replaceable(tmp_path, ["manifest.json", "config.json"])
    (tmp_path / "manifest.json").write_text("{}")
    check_replaceable(tmp_path, ["manifest.json"])
    monkeypatch.chdir(tmp_path / ".git")
    for place in (Path(), Path(".."), tmp_path):
        with pytest.raises(PipelineError, match="would be replaced as a whole, and this command runs in it; name another"):
            check_replaceable(place, [])


@pytest.mark.parametrize("value", [float("nan"), object()])
def test_what_is_no_json_has_no_hash_and_leaves_the_file_that_was_there(tmp_path: Path, value: object) -> None:
    write_json(tmp_path / "x.json", {"a": ["δ"]})
    for make in (hash_of, functools.partial(write_json, tmp_path / "x.json")):
        with pytest.raises((ValueError, TypeError)):
            make({"a": [value]})
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == '{\n  "a": [\n    "δ"\n  ]\n}\n'
    assert names(tmp_path) == ["x.json"]
