"""A parameter file for tests: the project's own with other values at places, and what `check` says of it."""

import copy
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner

from stages.check import main

ROOT = Path(__file__).parents[1]
MOVIES = "tasks.movies"
SCOUTED: dict[str, Any] = {
    f"{MOVIES}.aim": "scout",
    "scouts": {"movies": {"layers": 3, "snapshots": 2}},
    "augment.perturbation.objective": "gap",
}
"""Changes that make a sound file with a scout of the default one."""


def check(path: Path) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["--params", str(path)])
    return result.exit_code, result.output


def changed(changes: dict[str, Any]) -> str:
    """The default file with three perturbed variants and other values at dotted places; None takes a setting out."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["augment"] |= {"variants": 3, "recipes": [["perturb"]]}
    content["tasks"]["movies"]["words"] = None
    for place, value in changes.items():
        *way, name = place.split(".")
        section = content
        for step in way:
            section = section[step]
        section.pop(name, None)
        section |= {} if value is None else {name: copy.deepcopy(value)}
    return yaml.safe_dump(content)
