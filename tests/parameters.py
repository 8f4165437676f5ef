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
    "scout": {"layers": 3, "snapshots": 2},
}
"""Changes that make a sound file with a scout of that which ``changed`` writes."""


def check(path: Path) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["--params", str(path)])
    return result.exit_code, result.output


def changed(changes: dict[str, Any]) -> str:
    """The default file with three variants aimed by the teacher, and other values at dotted places; None takes one out."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["augment"] |= {"variants": 3, "recipes": [["perturb"]]}
    content["tasks"]["movies"]["aim"] = "teacher"
    for place, value in changes.items():
        *way, name = place.split(".")
        section = content
        for step in way:
            section = section[step]
        section.pop(name, None)
        section |= {} if value is None else {name: copy.deepcopy(value)}
    return yaml.safe_dump(content)
