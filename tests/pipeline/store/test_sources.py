import dataclasses
from pathlib import Path

import pytest

from pipeline.corpus import encoding
from pipeline.perturbation import search as perturbation
from pipeline.store.code import BUILD, Build, LIBRARIES, TRAINING_LIBRARIES


def package(folder: Path, **sources: str) -> Path:
    """A package named ``parts`` with these modules."""
    for name, source in sources.items():
        path = folder / "parts" / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return folder / "parts"


def test_a_build_names_every_module_by_its_source(tmp_path: Path) -> None:
    before = Build.below(package(tmp_path / "1", search="STEP = 1", shards__codec="BITS = 8")).sources
    after = Build.below(package(tmp_path / "2", search="STEP = 2", shards__codec="BITS = 8")).sources
    assert list(before) == ["parts.search", "parts.shards.codec"]
    assert {name for name in before if before[name] != after[name]} == {"parts.search"}


def test_libraries_are_named_by_the_version_that_all_builds_of_them_share() -> None:
    assert tuple(BUILD.libraries) == TRAINING_LIBRARIES
    assert tuple(BUILD.naming(encoding)["libraries"]) == LIBRARIES, "an upgrade of accelerate leaves shards what they were"
    assert all(version and "+" not in version for version in BUILD.libraries.values())


def test_what_stands_in_keys_changes_with_these_modules_and_with_libraries() -> None:
    changed = dataclasses.replace(BUILD, sources={**BUILD.sources, "pipeline.perturbation.search": "changed"})
    assert BUILD.naming(encoding, perturbation) == BUILD.naming(perturbation, encoding)
    assert changed.naming(encoding, perturbation) != BUILD.naming(encoding, perturbation)
    assert changed.naming(encoding) == BUILD.naming(encoding)
    upgraded = dataclasses.replace(BUILD, libraries={**BUILD.libraries, "torch": "2.0.0"})
    assert upgraded.naming(encoding) != BUILD.naming(encoding)


def test_a_file_that_is_edited_while_a_process_runs_changes_no_hash_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = BUILD.naming(perturbation)
    edited = tmp_path / "perturbation.py"
    edited.write_text("STEP = 2", encoding="utf-8")
    monkeypatch.setattr(perturbation, "__file__", str(edited))
    assert BUILD.naming(perturbation) == before


def test_what_another_process_computes_with_otherwise_is_named() -> None:
    other = Build(
        {**BUILD.sources, "pipeline.perturbation.search": "changed", "pipeline.of_tomorrow": "unknown here"},
        {**BUILD.libraries, "torch": "2.0.0"},
    )
    assert BUILD.strange_to(BUILD) == []
    assert BUILD.strange_to(other) == ["pipeline.perturbation.search", f"torch {BUILD.libraries['torch']} in place of 2.0.0"]


def test_a_module_that_was_never_imported_makes_no_process_strange(monkeypatch: pytest.MonkeyPatch) -> None:
    here = dataclasses.replace(BUILD, sources={**BUILD.sources, "pipeline.of_tomorrow": "new"})
    assert here.strange_to(BUILD) == []
