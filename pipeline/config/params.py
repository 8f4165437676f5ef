"""params.yaml as strict, frozen settings: all errors of what a stage needs are reported at once, before work starts."""

import copy
import functools
import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode

from pipeline.config.errors import PipelineError, PipelineErrors
from pipeline.config.renamed import renamed_settings

FORM = re.compile(r"[\[\]]|^(constrained-)?(float|int|str|list|dict)$|^[A-Z]\w*$")
"""What pydantic adds to the place of a error to say which form of a setting it tried: a type's name."""

LONGEST_SHOWN = 80
"""A invalid section longer than this is not repeated in the sentence about it."""


ABSENT = "{} does not exist; make it with dvc repro"
"""Of a file that a stage writes."""


class Settings(BaseModel):
    """Base of every settings model: no unknown keys, no silent conversions, no change after reading."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


MERGE = "tag:yaml.org,2002:merge"
"""What YAML calls the key << whose mapping is merged into the one that it stands in."""


class _PlainValues(SafeConstructor):
    """The values of YAML 1.2, without repeated keys and without dates, which no setting is: 2020-01-01 is a text."""

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        own = node.value[len(getattr(node, "merge", None) or ()) :]  # behind those that were merged into it already
        names = [key.value if key.tag == MERGE else self.construct_object(key, deep=True) for key, _ in own]
        repeated = sorted({str(name) for name in names if names.count(name) > 1})
        if repeated:
            raise ConstructorError(None, None, f"given twice: {', '.join(repeated)}", node.start_mark)
        return dict(super().construct_mapping(node, deep))


_PlainValues.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)

AnySettings = TypeVar("AnySettings", bound=Settings)


class Within(NamedTuple):
    """A section that is one setting of the section that it is merged into."""

    place: str
    name: str


Place = str | Within | dict[str, Any]
"""A dotted place in the file, a section within another, or constant settings."""

Places = tuple[Place, ...]


def read_params(path: Path) -> dict[str, Any]:
    """The whole parameter file as plain mappings, read as DVC reads and writes it: YAML 1.2, where ``2e-5`` is a number."""
    try:
        content = copy.deepcopy(_parsed(path.read_text(encoding="utf-8"), str(path)))
    except FileNotFoundError as cause:
        raise PipelineError(f"{path} does not exist; run the stage where params.yaml lies, or name it with --params") from cause
    except (YAMLError, ValueError, LookupError, TypeError) as cause:  # the last three of tags that do not fit, as in !!int x
        raise PipelineError(f"{path} is not readable YAML: {cause}") from cause
    if not isinstance(content, dict):
        raise PipelineError(f"{path} holds no settings; it must be a mapping of section names to settings")
    return content


@functools.lru_cache(maxsize=16)
def _parsed(text: str, name: str) -> Any:
    """What a YAML document says; ``name`` stands in what is said of a error. A command reads the same file many times."""
    reader = YAML(typ="safe", pure=True)
    reader.Constructor = _PlainValues
    stream = io.StringIO(text)
    stream.name = name
    return reader.load(stream)


def load(path: Path, model: type[AnySettings], **places: Place | Places) -> AnySettings:
    """Read the sections that one stage needs.

    Args:
        path: the parameter file.
        model: has one field a section.
        places: for each field the dotted place of its section; several places are merged, the later one winning.

    Raises:
        PipelineErrors: unknown, missing or mistyped keys, each with its place, its value and what was wanted.
    """
    params = read_params(path)
    if renamed := renamed_settings(params):
        raise PipelineErrors(str(path), renamed)
    found = {field: merged(params, as_places(place)) for field, place in places.items()}
    present = {field: section for field, section in found.items() if section is not None}
    try:
        return model.model_validate(present)
    except ValidationError as error:
        raise PipelineErrors(
            str(path), [_sentence(error, places, params) for error in _merged_unions(error.errors())]
        ) from None


def load_section(path: Path, model: type[AnySettings], *places: Place) -> AnySettings:
    """Read one section, or several merged, as `load` does."""
    form = create_model(model.__name__, __base__=Settings, section=(model, ...))
    section: AnySettings = dict(load(path, form, section=places))["section"]
    return section


def read_facts(model: type[AnySettings], path: Path, missing: str | None = None) -> AnySettings:
    """What a stage noted about its product in a JSON file.

    Args:
        model: what such a note holds.
        path: the file.
        missing: the sentence where it is not there, in place of one that names the file.

    Raises:
        PipelineError: it is not there, or is damaged.
    """
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError as cause:
        raise PipelineError(missing or ABSENT.format(path)) from cause
    except ValidationError as cause:
        place = ".".join(map(str, cause.errors()[0]["loc"]))
        said = f"{place} is not what this version writes" if place else "it is no JSON"
        raise PipelineError(f"{path} is damaged: {said}; make it again with dvc repro") from cause


def lookup(params: Any, place: str) -> Any:
    """The value at a dotted place, or None where there is none."""
    for name in place.split("."):
        params = params.get(name) if isinstance(params, dict) else None
    return params


def task_in(path: Path, task: str) -> dict[str, Any]:
    """The entry of a task in a parameter file; one that is not there is rejected with those that are."""
    tasks = lookup(read_params(path), "tasks") or {}
    if task not in tasks:
        raise PipelineError(f"{path} has no task {task}; it has {', '.join(map(str, tasks)) or 'none'}")
    return dict(tasks[task] or {})


def naming_errors(params: Any, section: str) -> list[str]:
    """Why a section cannot be read as names with their settings; empty where it can."""
    names = lookup(params, section)
    if not isinstance(names, dict) or not names:
        return [f"{section} must map at least one name to its settings"]
    return [
        f"{section}.{name}: YAML reads this name as no text; write it in quotes" for name in names if not isinstance(name, str)
    ]


def as_places(place: Place | Places) -> Places:
    """One place or several, as several."""
    return (place,) if isinstance(place, str | Within | dict) else place


def section_at(params: Mapping[str, Any], place: Place) -> Any:
    """What a place holds, or None where it is missing."""
    if isinstance(place, dict):
        return place
    found = lookup(params, place if isinstance(place, str) else place.place)
    return {place.name: found} if isinstance(place, Within) and found is not None else found


def merged(params: Mapping[str, Any], places: Places) -> Any:
    """The sections at these places as one, later ones on top; None if one of them is missing."""
    sections = [section_at(params, place) for place in places]
    return None if None in sections else functools.reduce(overlaid, sections)


def overlaid(below: Any, above: Any) -> Any:
    """Two sections as one: mappings are merged key by key, anything else above wins."""
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: overlaid(below[key], value) if key in below else value for key, value in above.items()}
    return above


def _merged_unions(errors: Sequence[Any]) -> list[Any]:
    """Where a setting has several forms, the library tells one error for each; a person made one mistake."""
    merged: dict[tuple[Any, ...], Any] = {}
    for error in errors:
        place = tuple(itertools.takewhile(lambda part: not FORM.search(str(part)), error["loc"]))
        if place == error["loc"]:
            merged[place, error["type"], error["msg"]] = error
        elif place in merged:
            merged[place]["ctx"].append(_form(error, place))
        else:
            kind = "no_key" if "[key]" in error["loc"] else "no_form"
            merged[place] = {**error, "loc": place, "type": kind, "ctx": [_form(error, place)]}
    return list(merged.values())


def _form(error: Any, place: tuple[Any, ...]) -> str:
    """What one of the forms of a setting wants; ``place`` is the setting's."""
    if error["type"] in ("model_type", "dict_type"):
        return "it may be a mapping of settings"
    inner = ".".join(str(part) for part in error["loc"][len(place) :] if not FORM.search(str(part)))
    if inner and error["type"] == "extra_forbidden":
        return f"{inner} is not a setting known here"
    return f"{inner}: {_wanted(error)}" if inner else _wanted(error)


def _sentence(error: Any, places: dict[str, Place | Places], params: dict[str, Any]) -> str:
    field, *inner = error["loc"]
    owners = as_places(places.get(str(field), str(field)))
    spelled = [text for owner in owners if (text := _spelled(owner, [*map(str, inner)]))] or [".".join(map(str, error["loc"]))]
    where = _place_of(spelled, params, absent=error["type"] == "missing")
    match error["type"]:
        case "missing" if lookup(params, where) is None and _stands(params, where):
            return f"{where} is empty; write its settings, or {{}} for none of its own"
        case "missing":
            hint = _nearest(where, params) if not inner else f" (or {spelled[-1]})" if len(spelled) > 1 else ""
            return f"{where} is missing{hint}"
        case "no_key":
            return f"{where}: {'; or '.join(dict.fromkeys(error['ctx']))}"
        case "no_form":
            forms, given = "; or ".join(dict.fromkeys(error["ctx"])), _given(spelled, params)
            return f"{where}: {forms}" + (f", not {given!r}" if given is not None and len(repr(given)) <= LONGEST_SHOWN else "")
        case "value_error" if error["input"] is None or len(repr(error["input"])) > LONGEST_SHOWN:
            return f"{where}: {_wanted(error)}"
        case "extra_forbidden":
            return f"{where} is not a setting known here (value: {error['input']!r})"
        case "model_type" | "dict_type":
            return f"{where}: must be a mapping of names to settings, not {error['input']!r}"
        case "float_type" | "int_type" | "string_type":
            return f"{where}: {_wanted(error)}, not {error['input']!r}{_yaml_hint(error['input'], error['type'])}"
        case _:
            return f"{where}: {_wanted(error)}, not {error['input']!r}"


def _spelled(owner: Place, inner: list[str]) -> str:
    """The dotted place of a setting below ``owner``; empty where the owner cannot hold it."""
    if isinstance(owner, str):
        return ".".join([owner, *inner])
    inside = isinstance(owner, Within) and bool(inner) and inner[0] == owner.name
    return ".".join([owner.place, *inner[1:]]) if isinstance(owner, Within) and inside else ""


def _given(spelled: list[str], params: dict[str, Any]) -> Any:
    """What a setting that may stand at several places comes to."""
    standing = [value for place in spelled if (value := lookup(params, place)) is not None]
    return functools.reduce(overlaid, standing) if standing else None


def _stands(params: dict[str, Any], place: str) -> bool:
    """Whether a name is written down, with or without a value."""
    above, _, name = place.rpartition(".")
    section = lookup(params, above) if above else params
    return isinstance(section, dict) and name in section


def _place_of(spelled: list[str], params: dict[str, Any], absent: bool) -> str:
    """Of the places that a setting may stand at, the one a person must look at."""
    standing = [place for place in spelled if (lookup(params, place) is None) == absent]
    return spelled[0] if not standing else standing[0] if absent else standing[-1]


def _nearest(place: str, params: dict[str, Any]) -> str:
    """Of the first name on the way to ``place`` that is not there: which ones are."""
    parts = place.split(".")
    for depth in range(1, len(parts) + 1):
        above, missing = ".".join(parts[: depth - 1]), ".".join(parts[:depth])
        if lookup(params, missing) is None:
            names = lookup(params, above) if above else params
            known = ", ".join(map(str, names)) if isinstance(names, dict) else ""
            break
    if depth == len(parts):
        return f"; {above} has {known}" if above and known else ""
    return f": there is no {missing}, only {known or 'nothing'}"


def _wanted(error: Any) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def _yaml_hint(value: Any, error: str) -> str:
    """How to write what YAML reads as another kind of value than was meant: ``"32"`` is a text, ``1e3`` is no whole number."""
    if error == "string_type":
        return " (write it in quotes)" if isinstance(value, int | float) else ""
    number = _number(value)
    if number is None:
        return ""
    if error == "int_type" and isinstance(number, float):
        return f" (write {int(number)})" if number.is_integer() else ""
    return " (write it without quotes)" if isinstance(value, str) else ""


def _number(value: Any) -> float | None:
    """The finite number that a value is, or that it would be without quotes."""
    try:
        found = _parsed(value, "") if isinstance(value, str) and math.isfinite(float(value)) else value
    except ValueError:
        return None
    return found if isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found) else None
