import dataclasses
import re
import shutil
from pathlib import Path

import pytest

from pipeline.store import code
from pipeline.store.keys import BUILD, LIBRARIES, TRAINING_LIBRARIES, Package, code_of, computed_by, libraries_of
from tests.running import ROOT

ENTRIES = {
    "soft labels": "pipeline.augment.scoring",
    "variants": "pipeline.augment.variant_jobs",
    "calibration": "pipeline.augment.calibration",
    "teacher": "pipeline.training.teacher",
    "masked LM": "pipeline.training.masked_lm",
    "surrogate": "pipeline.distill.scout",
    "students": "pipeline.distill.training",
}
"""The modules whose code stands in the key of each kind of result."""

SHARDS, TRAININGS = {"soft labels", "variants", "calibration"}, {"teacher", "masked LM", "surrogate", "students"}


def codes(package: Package) -> dict[str, dict[str, str]]:
    return {kind: package.code_of(entry) for kind, entry in ENTRIES.items()}


@pytest.fixture(scope="module")
def before() -> dict[str, dict[str, str]]:
    return codes(Package(ROOT / "pipeline"))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package, to be edited."""
    return Path(shutil.copytree(ROOT / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__")))


def test_the_package_is_the_same_wherever_it_lies(copy: Path, before: dict[str, dict[str, str]]) -> None:
    assert codes(Package(copy)) == before


def test_comments_docstrings_and_formatting_change_no_key(copy: Path, before: dict[str, dict[str, str]]) -> None:
    for path in copy.rglob("*.py"):
        source = re.sub(r'"""', '"""Reworded. ', path.read_text(encoding="utf-8"), count=1)
        source = re.sub(r'^(    )?"""(?!Reworded)[^"]*"""$', r'\1"""An attribute."""', source, flags=re.MULTILINE)
        path.write_text("# A comment.\n" + re.sub(r"^def ", "\n\n\ndef  ", source, flags=re.MULTILINE), encoding="utf-8")
    assert codes(Package(copy)) == before


@pytest.mark.parametrize(
    ("module", "room", "kinds"),
    [
        ("perturbation/search", "perturbation", {"variants", "calibration"}),
        ("shards/codec", "shards", {"variants", "calibration", "surrogate", "students"}),
        ("distill/losses", "distill", {"surrogate", "students"}),
        ("training/order", "training", TRAININGS),
        ("training/masking", "training", {"masked LM"}),
        ("shards/reader", "shards", {"soft labels", "variants", "surrogate", "students"}),
        ("corpus/seeding", "corpus", SHARDS | TRAININGS),
        ("models/forward", "models", SHARDS | TRAININGS),
        ("config/params", "config", set()),
        ("store/files", "store", set()),
        ("augment/passes", "augment", set()),
        ("augment/cluster", "augment", set()),
        ("distill/card", "distill", set()),
    ],
)
def test_a_changed_value_changes_the_keys_of_exactly_what_it_decides(
    copy: Path, before: dict[str, dict[str, str]], module: str, room: str, kinds: set[str]
) -> None:
    with (copy / f"{module}.py").open("a", encoding="utf-8") as file:
        file.write("\nCHANGED = 1\n")
    after = codes(Package(copy))
    changed = {kind: _differing(before[kind], after[kind]) for kind in ENTRIES if before[kind] != after[kind]}
    assert changed == {kind: {room} for kind in kinds}


def test_the_search_is_in_the_code_of_no_training() -> None:
    found = {kind for kind in TRAININGS if "pipeline.perturbation.search" in code.PACKAGE.closure(ENTRIES[kind])}
    assert not found


def _differing(one: dict[str, str], other: dict[str, str]) -> set[str]:
    return {room for room in one.keys() | other.keys() if one.get(room) != other.get(room)}


@pytest.mark.parametrize("kind", sorted(ENTRIES))
def test_what_only_runs_the_work_is_in_no_key(kind: str) -> None:
    engine = {
        *(
            f"augment.{name}"
            for name in ("plans", "passes", "completion", "estimate", "workers", "worker", "cluster", "progress")
        ),
        *(f"distill.{name}" for name in ("jobs", "launch", "card")),
        *(f"training.{name}" for name in ("resuming", "ray_session")),
    }
    names = {f"pipeline.{name}" for name in engine}
    assert names <= code.PACKAGE.sources.keys()
    assert not names & code.PACKAGE.closure(ENTRIES[kind])


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


def test_a_file_that_is_edited_while_a_process_runs_changes_no_hash_in_it(copy: Path) -> None:
    package = Package(copy)
    with (copy / "training" / "teacher.py").open("a", encoding="utf-8") as file:
        file.write("\nCHANGED = 1\n")
    assert package.code_of(ENTRIES["teacher"]) == code_of(ENTRIES["teacher"])


def test_keys_name_libraries_by_the_version_that_all_builds_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code.importlib.metadata, "version", lambda name: f"{name} 2.0+cu130")
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
