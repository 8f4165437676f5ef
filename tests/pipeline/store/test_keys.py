import dataclasses
import json
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.store import keys
from pipeline.store.keys import BUILD, LIBRARIES, TRAINING_LIBRARIES, Package, computed_by, differences, key_hash, libraries_of
from tests.running import ROOT

ENTRIES = {
    "soft labels": "pipeline.augment.jobs",
    "variants": "pipeline.augment.variants",
    "calibration": "pipeline.augment.calibration",
    "teacher": "pipeline.training.teacher",
    "masked LM": "pipeline.training.masked_lm",
    "surrogate": "pipeline.distill.surrogate",
    "students": "pipeline.distill.training",
}
"""The modules whose code stands in the key of each kind of result."""

TRAININGS = {"teacher", "masked LM", "surrogate", "students"}

ENGINE = (
    *(f"pipeline.augment.{name}" for name in ("plans", "passes", "estimate", "workers", "engine")),
    *(f"pipeline.distill.{name}" for name in ("jobs", "launch", "card")),
    *(f"pipeline.training.{name}" for name in ("resuming", "ray_session")),
)
"""Modules that only run the work."""


def codes(package: Package) -> dict[str, dict[str, str]]:
    return {kind: package.code_of(entry) for kind, entry in ENTRIES.items()}


@pytest.fixture(scope="module")
def before() -> dict[str, dict[str, str]]:
    return codes(keys.PACKAGE)


def test_neither_place_nor_comments_docstrings_and_formatting_change_a_key(
    tmp_path: Path, before: dict[str, dict[str, str]]
) -> None:
    copy = Path(shutil.copytree(ROOT / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__")))
    for path in copy.rglob("*.py"):
        source = re.sub(r'"""', '"""Reworded. ', path.read_text(encoding="utf-8"), count=1)
        source = re.sub(r'^(    )?"""(?!Reworded)[^"]*"""$', r'\1"""An attribute."""', source, flags=re.MULTILINE)
        path.write_text("# A comment.\n" + re.sub(r"^def ", "\n\n\ndef  ", source, flags=re.MULTILINE), encoding="utf-8")
    assert codes(Package(copy)) == before


DECIDES: dict[str, Collection[str]] = {
    "perturbation.search": {"variants", "calibration"},
    "distill.losses": {"surrogate", "students"},
    "config.params": (),
    "store.files": (),
    "shards.codec": {"variants", "calibration", "surrogate", "students"},
    "training.order": TRAININGS,
    "models.forward": ENTRIES,
}
"""Modules, and the kinds of result that depend on the code of each."""


@pytest.mark.parametrize("modules", [list(DECIDES)[:4], list(DECIDES)[4:]])
def test_a_changed_value_changes_the_keys_of_exactly_what_it_decides(
    before: dict[str, dict[str, str]], modules: list[str]
) -> None:
    package = Package(ROOT / "pipeline")
    for module in modules:
        package.sources[f"pipeline.{module}"] += "\nCHANGED = 1\n"
    for kind, after in codes(package).items():
        changed = {room for room in after if after[room] != before[kind][room]}
        assert changed == {module.split(".")[0] for module in modules if kind in DECIDES[module]}, kind


def test_what_only_runs_the_work_is_in_no_key_and_the_search_in_those_of_variants_alone() -> None:
    assert set(ENGINE) <= keys.PACKAGE.sources.keys()
    for kind, entry in ENTRIES.items():
        needed = keys.PACKAGE.closure(entry)
        assert not needed & set(ENGINE), kind
        assert kind in DECIDES["perturbation.search"] or "pipeline.perturbation.search" not in needed


def test_imports_anywhere_count_in_whatever_form(tmp_path: Path) -> None:
    sources = {
        "a/entry": "from .near import x\nfrom ..b import member\ndef f():\n  import parts.b.late\n  from parts.b import deep",
        "a/near": "from parts.a.further import y, z",
        "a/further": "import os, json",
        "b/member": "",
        "b/late": "",
        "b/deep": "",
        "b/other": "import parts.a.entry",
    }
    for name, source in sources.items():
        path = tmp_path / "parts" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    found = Package(tmp_path / "parts").closure("parts.a.entry")
    assert found == {f"parts.{name.replace('/', '.')}" for name in sources if name != "b/other"}


@pytest.mark.parametrize(
    ("source", "same"),
    [
        ('def f():\n    """Says."""\n    return 1', True),
        ("def f(): return (1)  # one", True),
        ("def f():\n    return 2", False),
        ('def f():\n    return "1"', False),
        ('NAME = "text"\ndef f():\n    return 1', False),
        ("def g():\n    return 1", False),
    ],
)
def test_a_tree_is_named_by_what_it_does(tmp_path: Path, source: str, same: bool) -> None:
    (tmp_path / "parts" / "room").mkdir(parents=True)
    hashes = []
    for text in ("def f():\n    return 1", source):
        (tmp_path / "parts" / "room" / "m.py").write_text(text, encoding="utf-8")
        hashes.append(Package(tmp_path / "parts").code_of("parts.room.m"))
    assert (hashes[0] == hashes[1]) is same


def test_a_file_that_is_edited_while_a_process_runs_changes_no_hash_in_it(tmp_path: Path) -> None:
    (tmp_path / "parts" / "room").mkdir(parents=True)
    (tmp_path / "parts" / "room" / "m.py").write_text("VALUE = 1")
    package, other = Package(tmp_path / "parts"), Package(tmp_path / "parts")
    (tmp_path / "parts" / "room" / "m.py").write_text("VALUE = 2")
    assert (
        package.code_of("parts.room.m") == other.code_of("parts.room.m") != Package(tmp_path / "parts").code_of("parts.room.m")
    )


def test_keys_name_libraries_by_the_version_that_all_builds_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"{name} 2.0+cu130")
    assert libraries_of(LIBRARIES) == {name: f"{name} 2.0" for name in LIBRARIES}
    assert computed_by(ENTRIES["soft labels"])["libraries"].keys() == set(LIBRARIES), "accelerate computes no shard"
    assert computed_by(ENTRIES["teacher"], TRAINING_LIBRARIES)["libraries"]["accelerate"] == "accelerate 2.0"


def test_what_another_process_computes_with_otherwise_is_named() -> None:
    imported = "pipeline.store.keys"
    other = dataclasses.replace(
        BUILD, sources={**BUILD.sources, imported: "changed"}, libraries={**BUILD.libraries, "torch": "2.0.0"}
    )
    assert BUILD.differs_from(BUILD) == []
    assert BUILD.differs_from(other) == [imported, f"torch {BUILD.libraries['torch']} in place of 2.0.0"]
    unseen = dataclasses.replace(BUILD, sources={**BUILD.sources, "pipeline.of_tomorrow": "never imported"})
    assert unseen.differs_from(BUILD) == []


VALUES = st.integers() | st.floats(0, 1) | st.booleans() | st.text(max_size=3)
SOME_KEYS = st.dictionaries(st.text(max_size=5), VALUES, max_size=5)


@given(SOME_KEYS, SOME_KEYS)
def test_two_keys_have_one_name_only_if_nothing_differs(one: dict[str, Any], other: dict[str, Any]) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (key_hash(one) == key_hash(other)) == same
    assert key_hash(one) == key_hash(dict(reversed(one.items())))
    assert len(key_hash(one)) == 32


@given(SOME_KEYS, SOME_KEYS)
def test_differences_name_each_field_that_differs_and_no_other(wanted: dict[str, Any], found: dict[str, Any]) -> None:
    lines = differences(wanted, found)
    names = [name for name in sorted(wanted.keys() | found.keys()) if wanted.get(name) != found.get(name)]
    assert len(lines) == len(names)
    assert all(line.startswith(f"{name}: ") for line, name in zip(lines, names, strict=True))
    assert differences(wanted, wanted) == []


def test_a_difference_shows_both_values_and_hashes_cut_short() -> None:
    assert differences({"teacher": "a" * 64, "max_length": 64}, {"teacher": "b" * 64, "max_length": 32}) == [
        "max_length: 64 wanted, 32 found",
        f"teacher: {'a' * 12}… wanted, {'b' * 12}… found",
    ]
