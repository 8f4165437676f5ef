"""Who perturbs a student's inputs, and which of its settings that leaves without effect. Knows names of settings alone."""

from collections.abc import Mapping
from typing import Any

NAMED = {
    "shards": {"shards": 1.0, "student": 0.0},
    "student": {"shards": 0.0, "student": 1.0},
    "none": {"shards": 0.0, "student": 0.0},
}
"""Shares of an adversary that have a name; none is the control."""

READ_WITH = {"shards": ("variants", "residual"), "student": ("perturbation",)}
"""Settings of a student that do nothing where this share of its adversary is 0."""


def effective(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A student's settings, as its lineage keeps them, without those that do nothing for it.

    Two students with equal ones learn the same.
    """
    shares = settings["adversary"]
    idle = {name for share, names in READ_WITH.items() if not shares[share] for name in names}
    kept = {name: value for name, value in settings.items() if name not in idle}
    if "objective" in kept and not any(shares.values()):
        kept["objective"] = {name: weight for name, weight in kept["objective"].items() if name != "perturbed"}
    return kept
