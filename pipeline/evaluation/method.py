"""How teacher, shards and students of a task came about, in sentences for a reader who has not seen the settings.

Knows facts and settings, not the page; every figure in a sentence is one of this run.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.evaluation.facts import TaskReport

STEPS = {
    "perturb": "a perturbation δ of the word embeddings",
    "mask": "masked tokens",
    "delete": "tokens left out",
    "swap": "tokens that trade places",
    "ngram": "a run of tokens alone",
    "span": "a run of tokens in another order",
    "masked_lm": "words replaced by a masked language model’s",
    "mix": "a mixture with another example",
}
"""What each step of a recipe makes."""

RAISED = {
    "divergence": "the divergence from the answer to the untouched input",
    "label": "the loss of the teacher’s answer",
    "gold_label": "the loss of the label",
    "gap": "the divergence from the teacher’s answer",
}
"""What the gradient of an objective raises."""

USES = {
    "rotate": "one stored variant, another each epoch",
    "by_progress": "the stored variant that was aimed at the scout when it was as far in its training",
    "all": "all stored variants",
}
"""What a step shows of the stored variants."""


def method(report: TaskReport) -> list[str]:
    """One paragraph each: the scores, the variants, and what the students learn from, alike ones together."""
    rows = sum(entry.receipt.rows for entry in report.scores.of_split("train"))
    scores = f"The teacher answered every example once, {_count(rows, 'training row')} among them; no student ever ran it."
    return [scores, *_variants(report), *_students(report)]


def _variants(report: TaskReport) -> list[str]:
    shards = report.perturbations
    if not shards.variants:
        return []
    recipes = [", then ".join(STEPS[step] for step in recipe) for recipe in shards.recipes]
    named = "; ".join(recipes) if any(len(recipe) > 1 for recipe in shards.recipes) else listed(recipes)
    stored = f"Of every training row {_count(shards.variants, 'variant')} were stored{', in turn' if len(recipes) > 1 else ''}"
    labelled = f"{stored}: {named}. The teacher answered each of them as it is stored.{_proposer(shards.details.get('words'))}"
    if not shards.perturbed:
        return [labelled]
    search = shards.details["settings"]["perturbation"]
    aim = "a scout’s" if shards.details.get("snapshots") else "the teacher’s"
    size = f"{shards.details['radius']:.3g} times as long as the mean word embedding"
    return [f"{labelled} δ {_searched(search, aim)}, and is at most {size}."]


def _proposer(words: Mapping[str, Any] | None) -> str:
    """Where the words come from that stand in others' places, if any do."""
    if words is None:
        return ""
    how = "was fitted to the training texts, without their labels" if words["fitted"] else "was taken as it is"
    return f" The masked language model {how}."


def _students(report: TaskReport) -> list[str]:
    alike: dict[str, list[str]] = {}
    for name, lineage in report.lineages.items():
        alike.setdefault(_lesson(lineage["settings"]), []).append(name)
    return [
        f"{'Student' if len(names) == 1 else 'Students'} {listed(names)} {'learns' if len(names) == 1 else 'learn'} {lesson}."
        for lesson, names in alike.items()
    ]


def _lesson(settings: Mapping[str, Any]) -> str:
    """For how long a student learns, and what."""
    objective, shares = settings["objective"], settings["adversary"]
    learnt = {"the teacher’s answer to the untouched input": objective["soft"], "the label": objective["hard"]}
    parts = [what for what, weight in learnt.items() if weight]
    if objective["hidden"]:
        parts.append("the teacher’s states on the first token")
    if objective["perturbed"] and shares["shards"]:
        parts.append(f"the teacher’s answer to {_use(settings['variants'])}")
    if objective["perturbed"] and shares["student"]:
        parts.append(f"the same as of the untouched input where it has perturbed that itself: {_own(settings['perturbation'])}")
    return f"for {_count(settings['optimiser']['num_train_epochs'], 'epoch')}: {'; '.join(parts)}"


def _use(use: Any) -> str:
    if isinstance(use, Mapping):
        return f"that of {use['worst_of']} stored variants which the student answers worst"
    return USES[use]


def _own(search: Mapping[str, Any]) -> str:
    radius = search["radius"]
    if not isinstance(radius, Mapping):
        return f"δ {_searched(search, 'its own')}, {radius:g} times as long as the mean word embedding"
    ((effect, value),) = radius.items()
    wanted = f"{value:.0%} of its answers change" if effect == "flips" else f"its answers move by {value:g} on average"
    return f"δ {_searched(search, 'its own')}, so large that {wanted}"


def _searched(search: Mapping[str, Any], whose: str) -> str:
    """How δ came about, as the predicate of a sentence about it."""
    ball = {"l2": "L2", "linf": "L∞"}[search["norm"]]
    if search["objective"] == "noise":
        return f"is noise within an {ball} ball around each token"
    if search["objective"] == "none":
        return "is nothing"
    steps = _count(search["steps"], "step")
    return (
        f"follows {whose} gradient in {steps} to raise {RAISED[search['objective']]}, within an {ball} ball around each token"
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}".replace(",", "\u202f")


def listed(names: Sequence[str]) -> str:
    """Names as a sentence enumerates them."""
    *most, last = names or [""]
    return f"{', '.join(most)} and {last}" if most else last
