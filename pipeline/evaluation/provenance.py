"""What stands under a task's results: what the run was made of and with which settings, as tables of names and values.

Knows facts, and how settings are put in words; not the page.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.corpus.task import SPLITS
from pipeline.distill.settings import effective
from pipeline.evaluation.facts import TaskReport
from pipeline.shards.manifest import Manifest

Rows = list[tuple[str, Any]]
"""Name and value, as a definition table shows them."""

NOTHING = "–"


def origins(report: TaskReport) -> list[tuple[str, Rows]]:
    """Titled definition tables: task, teacher, and how the perturbations were made."""
    scores, shards = report.scores, report.perturbations
    answers = ", ".join(report.task.labels) or "one value"
    shown = ("content", "teacher", "tokenizer", "kind", "labels", "score_computed_by")
    others = [(name, value) for name, value in flattened(shards.key) if name.split(".")[0] not in shown]
    task = [("kind", report.task.kind), ("answers", answers), ("metric", report.task.metric), *_row_counts(scores)]
    recipes = " · ".join(" + ".join(recipe) for recipe in shards.recipes)
    found = {name: value for name, value in shards.details.items() if shards.perturbed and name in ("radius", "calibration")}
    return [
        ("Task", [*task, *flattened(scores.details)]),
        ("Teacher", [("teacher", scores.key.get("teacher")), ("tokenizer", scores.key.get("tokenizer")), *others]),
        ("Manifests", [("scores", report.hashes["scores"]), ("shards", report.hashes["shards"])]),
        ("Variants", [("variants", shards.variants), ("recipes", recipes), *_search(shards)]),
        ("Radius found, and its effect on a sample of the train split", flattened(found)),
    ]


def student_settings(report: TaskReport) -> tuple[Rows, list[tuple[str, list[Any]]]]:
    """Settings that all students share, and per name the values of each where they differ, with how training ended."""
    chosen = [dict(flattened(in_words(lineage["settings"]))) for lineage in report.lineages.values()]
    names = list(dict.fromkeys(name for settings in chosen for name in settings))
    rows = [(name, [settings.get(name, NOTHING) for settings in chosen]) for name in names]
    common = [(name, values[0]) for name, values in rows if len(values) > 1 and all(v == values[0] for v in values)]
    differing = [row for row in rows if row[0] not in dict(common)]
    ended = [dict(flattened(_ending(report, student))) for student in report.lineages]
    keys = dict.fromkeys(key for row in ended for key in row)
    differing += [(key.replace("_", " "), [row.get(key, NOTHING) for row in ended]) for key in keys]
    return common, differing


def in_words(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A student's settings as a person puts them, without those that do nothing for it."""
    return {name: _phrase(value) for name, value in effective(settings).items()}


def flattened(value: Mapping[str, Any], before: str = "") -> Rows:
    """Nested mappings as rows of dotted names."""
    rows: Rows = []
    for name, inner in value.items():
        place = f"{before}{name}"
        rows += flattened(inner, f"{place}.") if isinstance(inner, Mapping) else [(place, inner)]
    return rows


def _search(shards: Manifest) -> Rows:
    """The settings of the steps that some recipe has."""
    settings = shards.details.get("settings", {})
    steps = {step for recipe in shards.recipes for step in recipe}
    needed = {"perturbation": "perturb", "mixing": "mix", "masked_lm": "masked_lm"}
    used = {name: value for name, value in settings.items() if name in needed and needed[name] in steps}
    if "masked_lm" in used:
        used["masked_lm"] = used["masked_lm"] | (shards.details.get("words") or {})
    edits = {name: share for name, share in settings.get("text_edits", {}).items() if name in steps}
    search = used.pop("perturbation", {}) | _carrier(shards)
    return [*flattened(search), *flattened(used | {"text_edits": edits} if edits else used)]


def _carrier(shards: Manifest) -> dict[str, Any]:
    """What the perturbations are aimed at and stored as, where there are any."""
    if not shards.perturbed or shards.coding is None:
        return {}
    aim = {"snapshots of the scout": shards.details["snapshots"]} if shards.details.get("snapshots") else {}
    return aim | {"codec": shards.coding.codec, "embedding width": shards.coding.width}


def _row_counts(scores: Manifest) -> Rows:
    return [(f"{split} rows", sum(e.receipt.rows for e in scores.of_split(split))) for split in SPLITS]


def _phrase(value: Any) -> Any:
    """A mapping that stands for one value, such as a stated effect or a checkpoint, as the words for it."""
    if not isinstance(value, Mapping):
        return value
    if len(value) == 1:
        ((name, inner),) = value.items()
        return f"{name.replace('_', ' ')} {inner}"
    return {name: _phrase(inner) for name, inner in value.items()}


def _ending(report: TaskReport, student: str) -> dict[str, Any]:
    """How a training went; the settings say already whose weights it started from."""
    lineage, cost = report.lineages[student], report.costs[student]
    start = {name: value for name, value in lineage["start"].items() if name != "start"}
    steps = cost.steps if cost else NOTHING
    return {"steps": steps, "best_epoch": lineage["best_epoch"], "dev": lineage["dev"], "start": start}
