"""Rooms of pipeline/ and their order of imports, Ray's place, and the dependencies that dvc.yaml lists."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.store.keys import TRAINING_LIBRARIES

ROOT = Path(__file__).parent.parent

ROOMS = re.findall(r"^([a-z]+)/  ", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
"""In the order of README.md; a room imports only from itself and from those above it."""


def modules(folder: str) -> list[str]:
    """Dotted names of all modules below a folder."""
    paths = sorted((ROOT / folder).rglob("*.py"))
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths if path.name != "__init__.py"]


def file_of(module: str) -> Path:
    return ROOT / Path(*module.split(".")).with_suffix(".py")


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(file_of(module).read_text(encoding="utf-8"))


def names(nodes: Iterator[ast.AST] | list[ast.stmt]) -> set[str]:
    """Dotted names that some nodes import."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def imports(module: str) -> set[str]:
    """Everything a module imports, anywhere in it."""
    return names(ast.walk(tree_of(module)))


def own(imported: set[str]) -> set[str]:
    """Of imported names those that are modules of this project."""
    return {name for name in imported if name.split(".")[0] in ("pipeline", "stages") and file_of(name).exists()}


def needed_by(module: str) -> set[str]:
    """A module and all that it imports, directly or not."""
    found, waiting = {module}, [module]
    while waiting:
        new = own(imports(waiting.pop())) - found
        found |= new
        waiting += new
    return found


def room_of(module: str) -> str:
    """The room of a module of ``pipeline``."""
    return module.split(".")[1]


def test_a_room_imports_only_those_above_it() -> None:
    assert sorted(ROOMS) == sorted({room_of(module) for module in modules("pipeline")})
    for module in modules("pipeline"):
        allowed = ROOMS[: ROOMS.index(room_of(module)) + 1]
        wrong = {name for name in own(imports(module)) if name.startswith("stages") or room_of(name) not in allowed}
        assert not wrong, f"{module} imports {sorted(wrong)}"
        assert "click" not in imports(module), module


def test_the_two_halves_meet_only_in_the_shards() -> None:
    for half, other in (("augment", "distill"), ("distill", "augment")):
        for module in modules(f"pipeline/{half}"):
            assert not {name for name in needed_by(module) if name.startswith(f"pipeline.{other}.")}, module


def test_every_module_has_a_test_module() -> None:
    """Of config, settings and corpus are forms; test_params and test_sections read them from files."""
    paths = {Path(*module.split(".")) for module in modules("pipeline")}
    without = {str(path) for path in paths if not (ROOT / "tests" / path.parent / f"test_{path.name}.py").exists()}
    assert without <= {"pipeline/config/settings", "pipeline/config/corpus"}


def test_ray_is_imported_where_processes_start_and_only_by_a_run_that_uses_it() -> None:
    users = {m for m in modules("pipeline") + modules("stages") if any(n.split(".")[0] == "ray" for n in imports(m))}
    assert users == {"pipeline.training.ray_session", "pipeline.augment.engine", "pipeline.distill.launch"}
    for module in ("pipeline.augment.passes", "pipeline.distill.launch"):
        assert not names(tree_of(module).body) & {"ray", "pipeline.augment.engine", "pipeline.training.ray_session"}


def dvc_stages() -> dict[str, dict[str, Any]]:
    """The stages of dvc.yaml, those under foreach unwrapped."""
    content = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    return {name: stage.get("do", stage) for name, stage in content["stages"].items()}


@pytest.mark.parametrize("name", sorted(dvc_stages()))
def test_dvc_lists_every_room_a_stage_runs_and_no_other(name: str) -> None:
    stage = dvc_stages()[name]
    needed = needed_by(stage["cmd"].split("-m ")[1].split()[0])
    listed = {dep for dep in stage["deps"] if dep.startswith(("pipeline", "stages"))}
    rooms = {f"pipeline/{room_of(name)}" for name in needed if name.startswith("pipeline.")}
    assert listed == rooms | {str(file_of(name).relative_to(ROOT)) for name in needed if name.startswith("stages.")}


def test_dvc_tracks_pinned_libraries_where_models_compute_and_no_setting_that_changes_only_speed() -> None:
    stages = dvc_stages()
    for name in ("teach", "masked_lm", "soft_label", "surrogate", "augment", "distill"):
        assert "libraries.txt" in stages[name]["deps"], name
    for name, stage in stages.items():
        assert not [place for place in stage.get("params", []) if place.startswith("runtime")], name


def test_the_pinned_libraries_are_those_that_keys_name() -> None:
    pinned = [line.split("==")[0] for line in (ROOT / "libraries.txt").read_text().splitlines() if "==" in line]
    assert pinned == sorted(TRAINING_LIBRARIES)
    assert "--constraint libraries.txt" in (ROOT / "constraints.txt").read_text().splitlines()
