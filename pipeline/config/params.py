"""params.yaml as strict, frozen settings: all errors of what a stage needs are reported at once, before work starts."""

import copy
import functools
import io
import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode

from pipeline.config.errors import PipelineError, PipelineErrors
from pipeline.config.renamed import renamed_settings

FORM = re.compile(r"[\[\]]|^(constrained-)?(float|int|str|list|dict)$|^[A-Z]\w*$")
"""Parts that pydantic adds to the location of an error to name the form of a union that it tried."""

LONGEST_SHOWN = 80
"""Longer invalid values are not repeated in the error."""

CREDENTIALS = "holds credentials; they belong in the environment or a profile"
"""Error of a setting whose value must not be printed."""

ABSENT = "{} does not exist; make it with dvc repro"
"""Error for a missing file that a stage writes."""


class Settings(BaseModel):
    """Base of every settings model: no unknown keys, no silent conversions, no change after reading."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


AnySettings = TypeVar("AnySettings", bound=Settings)


@dataclass(frozen=True)
class Within:
    """A section that becomes one setting of the section that it is merged into."""

    place: str
    name: str


Place = str | Within | dict[str, Any]
"""A dotted place in the file, a section within another, or constant settings."""

Places = tuple[Place, ...]


class _PlainValues(SafeConstructor):
    """Values without repeated keys, and without dates, which no setting is: 2020-01-01 is a text."""

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        own = node.value[len(getattr(node, "merge", None) or ()) :]  # without the keys that << has added already
        keys = Counter(key.value if key.tag.endswith(":merge") else self.construct_object(key, deep=True) for key, _ in own)
        if repeated := sorted(str(key) for key, count in keys.items() if count > 1):
            raise ConstructorError(None, None, f"given twice: {', '.join(repeated)}", node.start_mark)
        return dict(super().construct_mapping(node, deep))


_PlainValues.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


def read_params(path: Path) -> dict[str, Any]:
    """The whole parameter file as plain mappings, read as DVC reads it: YAML 1.2, in which ``2e-5`` is a number."""
    try:
        content = copy.deepcopy(_parsed(path.read_text(encoding="utf-8"), str(path)))
    except FileNotFoundError as cause:
        raise PipelineError(f"{path} does not exist; name the parameter file with --params") from cause
    except (YAMLError, ValueError, LookupError, TypeError) as cause:  # the last three of tags that do not fit, as in !!int x
        raise PipelineError(f"{path} is not readable YAML: {cause}") from cause
    if not isinstance(content, dict):
        raise PipelineError(f"{path} holds no settings; it must be a mapping of section names to settings")
    return content


@functools.lru_cache(maxsize=16)
def _parsed(text: str, name: str) -> Any:
    """The content of a YAML document; ``name`` is its name in error messages. A command reads the same file many times."""
    reader = YAML(typ="safe", pure=True)
    reader.Constructor = _PlainValues
    stream = io.StringIO(text)
    stream.name = name
    return reader.load(stream)


def load(path: Path, model: type[AnySettings], **places: Place | Places) -> AnySettings:
    """Read the sections that one stage needs.

    Args:
        path: the parameter file.
        model: has one field per section.
        places: for each field the place of its section; several places are merged, the later one wins.

    Raises:
        PipelineErrors: unknown, missing or mistyped keys, each with its place, its value and the expected form.
    """
    params = read_params(path)
    if renamed := renamed_settings(params):
        raise PipelineErrors(str(path), renamed)
    owners = {field: place if isinstance(place, tuple) else (place,) for field, place in places.items()}
    found = {field: merged(params, own) for field, own in owners.items()}
    try:
        return model.model_validate({field: section for field, section in found.items() if section is not None})
    except ValidationError as error:
        groups: dict[tuple[Any, ...], list[Any]] = {}  # a union has one error for each of its forms
        for one in error.errors():
            place = tuple(itertools.takewhile(lambda part: not FORM.search(str(part)), one["loc"]))
            groups.setdefault(place, []).append(one)
        sentences = [_sentence(place, group, owners.get(place[0], ()), params) for place, group in groups.items()]
        raise PipelineErrors(str(path), sentences) from None


def read_facts(model: type[AnySettings], path: Path, missing: str | None = None) -> AnySettings:
    """The facts that a stage wrote about its product in a JSON file; ``missing`` is the error if the file does not exist."""
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError as cause:
        raise PipelineError(missing or ABSENT.format(path)) from cause
    except ValidationError as cause:
        place = ".".join(map(str, cause.errors()[0]["loc"]))
        reason = f"this version writes another {place}" if place else "it is not JSON"
        raise PipelineError(f"{path} is damaged: {reason}; make it again with dvc repro") from cause


def lookup(params: Any, place: str) -> Any:
    """The value at a dotted place, or None."""
    for name in place.split("."):
        params = params.get(name) if isinstance(params, dict) else None
    return params


def task_in(path: Path, task: str) -> dict[str, Any]:
    """The entry of a task in a parameter file; the error for an unknown task names the known ones."""
    tasks = lookup(read_params(path), "tasks") or {}
    if task not in tasks:
        raise PipelineError(f"{path} has no task {task}; it has {', '.join(map(str, tasks)) or 'none'}")
    return dict(tasks[task] or {})


def naming_errors(params: Any, section: str) -> list[str]:
    """The errors of a section that maps names to settings."""
    names = lookup(params, section)
    if not isinstance(names, dict) or not names:
        return [f"{section} must map at least one name to its settings"]
    return [f"{section}.{name}: YAML reads this name as no text; quote it" for name in names if not isinstance(name, str)]


def section_at(params: Mapping[str, Any], place: Place) -> Any:
    """The section at a place, or None."""
    if isinstance(place, dict):
        return place
    found = lookup(params, place if isinstance(place, str) else place.place)
    return {place.name: found} if isinstance(place, Within) and found is not None else found


def merged(params: Mapping[str, Any], places: Places) -> Any:
    """The sections at these places as one, later ones on top; None if one of them is missing."""
    sections = [section_at(params, place) for place in places]
    return None if None in sections else functools.reduce(overlaid, sections)


def overlaid(below: Any, above: Any) -> Any:
    """Two sections as one: mappings are merged key by key, any other value of ``above`` wins."""
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: overlaid(below[key], value) if key in below else value for key, value in above.items()}
    return above


def _sentence(place: tuple[Any, ...], errors: Sequence[Any], owners: Places, params: dict[str, Any]) -> str:
    """The errors of one setting as a sentence; ``place`` is its location in the model."""
    error, inner = errors[0], [str(part) for part in place[1:]]
    spelled = _spelled(owners, inner) or [".".join(map(str, place))]
    missing = error["type"] == "missing"
    candidates = [text for text in spelled if (lookup(params, text) is None) == missing] or spelled[:1]
    where = candidates[0] if missing else candidates[-1]
    above, _, name = where.rpartition(".")
    siblings = lookup(params, above) if above else params
    if missing and isinstance(siblings, dict) and name in siblings:
        return f"{where} is empty; write its settings, or {{}} for none of its own"
    if missing and inner:
        return f"{where} is missing" + (f" (or {spelled[-1]})" if len(spelled) > 1 else "")
    if missing:
        return f"{where} is missing" + (f"; {above} has {', '.join(map(str, siblings))}" if above and siblings else "")
    if error["type"] == "extra_forbidden" and len(errors) == 1:
        return f"{where} is not a setting known here (value: {error['input']!r})"
    wanted = "; or ".join(dict.fromkeys(_wanted(one, len(place)) for one in errors))
    shown = repr(error["input"])
    secret = CREDENTIALS in error["msg"]
    is_shown = "[key]" not in error["loc"] and error["input"] is not None and len(shown) <= LONGEST_SHOWN and not secret
    hint = _yaml_hint(error["input"], error["type"]) if len(errors) == 1 else ""
    return f"{where}: {wanted}" + (f", not {shown}{hint}" if is_shown else "")


def _yaml_hint(value: Any, error: str) -> str:
    """How to write a value that YAML reads as another type than was meant."""
    if error == "string_type":
        return " (write it in quotes)" if isinstance(value, int | float) else ""
    try:
        number = _parsed(value, "") if isinstance(value, str) and math.isfinite(float(value)) else value
    except ValueError:
        return ""
    if error not in ("int_type", "float_type") or isinstance(number, bool) or not isinstance(number, int | float):
        return ""
    if error == "int_type" and isinstance(number, float):
        return f" (write {int(number)})" if number.is_integer() else ""
    return " (write it without quotes)" if isinstance(value, str) else ""


def _spelled(owners: Places, inner: list[str]) -> list[str]:
    """The dotted places at which a setting may be written."""
    found = [".".join([owner, *inner]) for owner in owners if isinstance(owner, str)]
    within = [owner for owner in owners if isinstance(owner, Within) and inner[:1] in ([], [owner.name])]
    return [".".join([owner.place, *inner[1:]]) for owner in within] + found


def _wanted(error: Any, depth: int) -> str:
    """The expected form of a setting, or of a setting below it if the form is a mapping; ``depth`` is the setting's."""
    inner = ".".join(str(part) for part in error["loc"][depth:] if not FORM.search(str(part)))
    if error["type"] in ("model_type", "dict_type"):
        return "it may be a mapping of settings" if error["loc"][depth:] else "must be a mapping of names to settings"
    if error["type"] == "extra_forbidden":
        return f"{inner} is not a setting known here"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{inner}: " * bool(inner) + message[0].lower() + message[1:]
