"""A parameter file for tests: the project's own with other values at places, and what `check` says of it."""

import copy
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner

from stages.check import main

ROOT = Path(__file__).parents[1]
MOVIES = "tasks.movies"
WITH_SURROGATE: dict[str, Any] = {"perturbation.gradient_from": "surrogate", "surrogate": {"depth": 0.5, "checkpoints": 2}}
"""Changes to what ``changed`` writes so that variants follow a surrogate."""


def check(path: Path) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["--params", str(path)])
    return result.exit_code, result.output


def changed(changes: dict[str, Any]) -> str:
    """The default file with three variants that follow the teacher, and other values at dotted places; None removes one."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["augment"] |= {"variants": 3, "recipes": [["perturb"]]}
    content["perturbation"]["gradient_from"] = "teacher"
    for place, value in changes.items():
        *way, name = place.split(".")
        section = content
        for step in way:
            section = section[step]
        section.pop(name, None)
        section |= {} if value is None else {name: copy.deepcopy(value)}
    return yaml.safe_dump(content)
