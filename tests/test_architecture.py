"""The rooms and who may enter them: one order of imports, two halves that meet in the shards, dvc.yaml that tells the truth."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from pipeline.store.code import TRAINING_LIBRARIES

ROOT = Path(__file__).parent.parent

ROOMS = [
    "config",
    "store",
    "corpus",
    "models",
    "training",
    "perturbation",
    "shards",
    "augment",
    "distill",
    "evaluation",
    "checking",
]
"""A room imports only from itself and from those that stand above it."""


def modules(folder: str) -> list[str]:
    """Dotted names of all modules below a folder."""
    paths = sorted((ROOT / folder).rglob("*.py"))
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths if path.name != "__init__.py"]


@cache
def imports(module: str) -> frozenset[str]:
    """Everything a module imports, anywhere in it: dotted names of modules."""
    tree = ast.parse(file_of(module).read_text(encoding="utf-8"))
    return frozenset(name for node in ast.walk(tree) for name in _names(node))


def _names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def file_of(module: str) -> Path:
    """The source file of a module."""
    return ROOT / Path(*module.split(".")).with_suffix(".py")


def own(names: frozenset[str]) -> set[str]:
    """Of imported names those that are modules of this project."""
    return {name for name in names if name.split(".")[0] in ("pipeline", "stages") and file_of(name).exists()}


def needed_by(module: str) -> set[str]:
    """A module and all that it imports, directly or not."""
    found, waiting = {module}, [module]
    while waiting:
        for name in own(imports(waiting.pop())) - found:
            found.add(name)
            waiting.append(name)
    return found


def room_of(module: str) -> str:
    """The room that a module of ``pipeline`` lies in."""
    return module.split(".")[1]


def test_a_room_imports_only_what_stands_above_it() -> None:
    assert sorted(ROOMS) == sorted({room_of(module) for module in modules("pipeline")})
    for module in modules("pipeline"):
        allowed = ROOMS[: ROOMS.index(room_of(module)) + 1]
        astray = {name for name in own(imports(module)) if room_of(name) not in allowed}
        assert not astray, f"{module} imports {sorted(astray)}, which stand below it"
        assert not {name for name in imports(module) if name.split(".")[0] in ("stages", "click")}, module


def test_the_two_halves_meet_only_in_the_shards() -> None:
    for half, other in (("augment", "distill"), ("distill", "augment")):
        for module in modules(f"pipeline/{half}"):
            touched = {name for name in needed_by(module) if name.startswith(f"pipeline.{other}.")}
            assert not touched, f"{module} reaches {touched}"


def test_ray_is_imported_where_processes_are_started_and_only_by_a_run_that_uses_it() -> None:
    users = {m for m in modules("pipeline") + modules("stages") if any(n.split(".")[0] == "ray" for n in imports(m))}
    assert users == {"pipeline.training.ray_session", "pipeline.augment.cluster", "pipeline.distill.launch"}
    for module in ("pipeline.augment.passes", "pipeline.distill.launch"):
        tree = ast.parse(file_of(module).read_text(encoding="utf-8"))
        loaded = {name for node in tree.body for name in _names(node)}
        assert not loaded & {"ray", "pipeline.augment.cluster", "pipeline.training.ray_session"}


def dvc_stages() -> dict[str, dict[str, object]]:
    """The stages of dvc.yaml, what foreach repeats taken out of it."""
    content = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    return {name: stage.get("do", stage) for name, stage in content["stages"].items()}


@pytest.mark.parametrize("name", sorted(dvc_stages()))
def test_dvc_lists_every_room_a_stage_runs_and_no_other(name: str) -> None:
    stage = dvc_stages()[name]
    module = str(stage["cmd"]).split("-m ")[1].split()[0]
    needed = needed_by(module)
    listed = {str(dep) for dep in stage["deps"] if str(dep).startswith(("pipeline", "stages"))}  # type: ignore[attr-defined]
    rooms = {f"pipeline/{room_of(name)}" for name in needed if name.startswith("pipeline.")}
    files = {str(file_of(name).relative_to(ROOT)) for name in needed if name.startswith("stages.")}
    assert listed == rooms | files


def test_dvc_tracks_pinned_libraries_where_models_compute_and_no_setting_that_changes_only_speed() -> None:
    stages = dvc_stages()
    for name in ("teach", "words", "score", "scout", "augment", "distill"):
        assert "libraries.txt" in stages[name]["deps"], name  # type: ignore[operator]
    for name, stage in stages.items():
        assert not [place for place in stage.get("params", []) if str(place).startswith("runtime")], name  # type: ignore[attr-defined]


def test_the_pinned_libraries_are_those_that_keys_name() -> None:
    pinned = [line.split("==")[0] for line in (ROOT / "libraries.txt").read_text().splitlines() if "==" in line]
    assert pinned == sorted(TRAINING_LIBRARIES)
    assert "--constraint libraries.txt" in (ROOT / "constraints.txt").read_text().splitlines()
