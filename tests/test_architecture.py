"""The rooms and who may enter them: one order of imports, two halves that meet in the shards, dvc.yaml that tells the truth."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from pipeline.distill.jobs import CODE
from pipeline.sources import TRAINING_LIBRARIES

ROOT = Path(__file__).parent.parent

ORDER = [
    "pipeline.errors",
    "pipeline.config",
    "pipeline.files",
    "pipeline.sources",
    "pipeline.checkpoints",
    "pipeline.seeding",
    "pipeline.sampling",
    "pipeline.order",
    "pipeline.runtime",
    "pipeline.ray_session",
    "pipeline.progress",
    "pipeline.tasks",
    "pipeline.corpus.faults",
    "pipeline.corpus.tables",
    "pipeline.corpus.files",
    "pipeline.corpus.hub",
    "pipeline.corpus.rows",
    "pipeline.corpus.settings",
    "pipeline.corpus.splits",
    "pipeline.corpus.labels",
    "pipeline.corpus.preparation",
    "pipeline.encoding",
    "pipeline.corpus.tokens",
    "pipeline.models.architectures",
    "pipeline.models.forward",
    "pipeline.models.pretrained",
    "pipeline.models.hashes",
    "pipeline.models.soundness",
    "pipeline.models.scale",
    "pipeline.scouting",
    "pipeline.proposing",
    "pipeline.shares",
    "pipeline.views",
    "pipeline.conduct",
    "pipeline.resuming",
    "pipeline.loading",
    "pipeline.finetuning",
    "pipeline.teaching",
    "pipeline.masking",
    "pipeline.wording",
    "pipeline.perturbation",
    "pipeline.shards.schema",
    "pipeline.shards.codec",
    "pipeline.shards.manifest",
    "pipeline.shards.lineage",
    "pipeline.shards.store",
    "pipeline.shards.writer",
    "pipeline.shards.usage",
    "pipeline.shards.upkeep",
    "pipeline.shards.reader",
    "pipeline.shards.batches",
    "pipeline.augment.partition",
    "pipeline.augment.inputs",
    "pipeline.augment.batches",
    "pipeline.augment.text_edits",
    "pipeline.augment.words",
    "pipeline.augment.masked_lm",
    "pipeline.augment.teacher",
    "pipeline.augment.recipes",
    "pipeline.augment.faults",
    "pipeline.augment.model_set",
    "pipeline.augment.variants",
    "pipeline.augment.columns",
    "pipeline.augment.jobs",
    "pipeline.augment.calibration",
    "pipeline.augment.worker",
    "pipeline.augment.workers",
    "pipeline.augment.cluster",
    "pipeline.augment.plans",
    "pipeline.augment.completion",
    "pipeline.augment.estimate",
    "pipeline.augment.passes",
    "pipeline.distill.narrowing",
    "pipeline.distill.student",
    "pipeline.distill.uses",
    "pipeline.distill.objective",
    "pipeline.distill.settings",
    "pipeline.distill.examples",
    "pipeline.distill.adversary",
    "pipeline.distill.step",
    "pipeline.distill.card",
    "pipeline.distill.training",
    "pipeline.distill.scout",
    "pipeline.distill.jobs",
    "pipeline.distill.kept",
    "pipeline.distill.launch",
    "pipeline.evaluation",
    "pipeline.checking.sections",
    "pipeline.checking.uses",
    "pipeline.export.graph",
    "pipeline.export.checking",
    "pipeline.export.folder",
    "pipeline.report.variants",
    "pipeline.report.facts",
    "pipeline.report.plots",
    "pipeline.report.method",
    "pipeline.report.provenance",
    "pipeline.report.page",
]
"""A module imports only what stands above it."""

RAY_MAY_BE_IMPORTED_BY = {"pipeline.ray_session", "pipeline.augment.cluster", "pipeline.distill.launch"}


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


def test_every_module_has_its_place_in_the_order() -> None:
    assert sorted(ORDER) == modules("pipeline")


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_what_stands_above_it(module: str) -> None:
    above = set(ORDER[: ORDER.index(module)])
    assert own(imports(module)) <= above, f"{module} imports {sorted(own(imports(module)) - above)}, which stand below it"


@pytest.mark.parametrize("module", ["pipeline.augment.passes", "pipeline.distill.launch"])
def test_ray_is_loaded_only_by_a_run_that_uses_it(module: str) -> None:
    tree = ast.parse(file_of(module).read_text(encoding="utf-8"))
    loaded = {name for node in tree.body for name in _names(node)}
    assert not loaded & {"ray", "pipeline.augment.cluster", "pipeline.ray_session"}


@pytest.mark.parametrize(("half", "other"), [("augment", "distill"), ("distill", "augment")])
def test_the_two_halves_meet_only_in_the_shards(half: str, other: str) -> None:
    for module in modules(f"pipeline/{half}"):
        touched = {name for name in needed_by(module) if name.startswith(f"pipeline.{other}.")}
        assert not touched, f"{module} reaches {touched}"


def test_ray_is_imported_where_processes_are_started_and_nowhere_else() -> None:
    users = {m for m in modules("pipeline") + modules("stages") if any(n.split(".")[0] == "ray" for n in imports(m))}
    assert users == RAY_MAY_BE_IMPORTED_BY


DECIDES_NO_WEIGHT = {
    f"pipeline.{name}"
    for name in (
        "errors",
        "config",
        "files",
        "models.hashes",
        "shards.schema",
        "shards.lineage",
    )
}
"""What a training runs, and yet a student's weights do not depend on; of schema and lineage the key holds what does."""


def test_the_key_of_a_student_names_all_code_that_decides_its_weights() -> None:
    assert {module.__name__ for module in CODE} == needed_by("pipeline.distill.training") - DECIDES_NO_WEIGHT


def test_init_files_are_empty() -> None:
    for path in [*(ROOT / "pipeline").rglob("__init__.py"), *(ROOT / "stages").rglob("__init__.py")]:
        assert path.read_text(encoding="utf-8") == "", path


def test_pipeline_never_imports_stages_or_click() -> None:
    for module in modules("pipeline"):
        assert not {name for name in imports(module) if name.split(".")[0] in ("stages", "click")}, module


def dvc_stages() -> dict[str, dict[str, object]]:
    """The stages of dvc.yaml, what foreach repeats taken out of it."""
    content = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    return {name: stage.get("do", stage) for name, stage in content["stages"].items()}


@pytest.mark.parametrize("name", sorted(dvc_stages()))
def test_dvc_lists_every_source_file_a_stage_runs_and_no_other(name: str) -> None:
    stage = dvc_stages()[name]
    module = str(stage["cmd"]).split("-m ")[1].split()[0]
    listed = {str(dep) for dep in stage["deps"] if str(dep).startswith(("pipeline", "stages"))}  # type: ignore[attr-defined]
    wanted = {str(file_of(needed).relative_to(ROOT)) for needed in needed_by(module)} | templates(needed_by(module))
    missing = {path for path in wanted if not any(path == dep or path.startswith(f"{dep}/") for dep in listed)}
    spare = {dep for dep in listed if not any(path == dep or path.startswith(f"{dep}/") for path in wanted)}
    assert not missing, f"dvc.yaml: {name} runs these files but does not list them: {sorted(missing)}"
    assert not spare, f"dvc.yaml: {name} lists these files but does not run them: {sorted(spare)}"


@pytest.mark.parametrize("name", ["teach", "words", "score", "scout", "augment", "distill"])
def test_dvc_runs_again_what_models_computed_when_libraries_are_pinned_otherwise(name: str) -> None:
    assert "libraries.txt" in dvc_stages()[name]["deps"]  # type: ignore[operator]


def test_the_pinned_libraries_are_those_that_keys_name() -> None:
    pinned = [line.split("==")[0] for line in (ROOT / "libraries.txt").read_text().splitlines() if "==" in line]
    assert pinned == sorted(TRAINING_LIBRARIES)
    assert "--constraint libraries.txt" in (ROOT / "constraints.txt").read_text().splitlines()


def templates(needed: set[str]) -> set[str]:
    """Page templates that lie beside the modules of a stage."""
    folders = {file_of(module).parent for module in needed if module.startswith("pipeline.report")}
    return {str(path.relative_to(ROOT)) for folder in folders for path in folder.glob("*.j2")}


@pytest.mark.parametrize("name", sorted(dvc_stages()))
def test_dvc_tracks_no_setting_that_changes_only_speed(name: str) -> None:
    tracked = dvc_stages()[name].get("params", [])
    assert not [place for place in tracked if str(place).startswith("runtime")]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "room", ["pipeline", "pipeline/models", "pipeline/shards", "pipeline/augment", "pipeline/distill", "stages"]
)
def test_the_readme_says_what_each_file_of_a_room_is_for(room: str) -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("## The tree")[1].split("```")[1]
    missing = [path.name for path in (ROOT / room).glob("*.py") if path.name != "__init__.py" and f" {path.name} " not in tree]
    assert not missing
