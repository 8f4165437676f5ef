"""The search for the radius that has a given effect on the teacher, on a sample of rows."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np

from pipeline.augment.jobs import Done
from pipeline.augment.recipes import AugmentSettings
from pipeline.augment.teacher import ModelSet
from pipeline.augment.variants import Making, Scored, make_variant
from pipeline.config.errors import PipelineError
from pipeline.corpus.task import Kind
from pipeline.perturbation.search import Effect
from pipeline.store.store import Store

SMALLEST, LARGEST = 2e-3, 2.0
"""Bounds of the search, as fractions of the mean word-embedding length."""

HALVINGS = 8
"""The radius is found to 2.7 %: a range of three powers of ten, halved eight times on the logarithmic scale."""

ROWS_A_PART = 64
"""About how many rows of the sample a worker tries at a time."""


@dataclass(frozen=True)
class Found:
    """A radius and its effect on the calibration sample."""

    radius: float
    flips: float
    divergence: float
    rows: int

    def words(self, kind: Kind) -> str:
        """For the user; regressions have no flips."""
        flips = "" if kind == "regression" else f"{self.flips:.1%} of the teacher's answers flip, "
        return f"{flips}mean divergence {self.divergence:.3g}"

    def plain(self) -> dict[str, Any]:
        """For the manifest and the store."""
        return asdict(self)


def find_radius(effect_of: Callable[[float], float], wanted: float) -> float:
    """The radius at which a growing effect reaches ``wanted``, by bisection of its logarithm, to three digits.

    Raises:
        PipelineError: no radius in the range has the effect.
    """
    low, high = SMALLEST, LARGEST
    for _ in range(HALVINGS):
        middle = float(f"{math.sqrt(low * high):.3g}")
        low, high = (middle, high) if effect_of(middle) < wanted else (low, middle)
    if low == SMALLEST and (least := effect_of(SMALLEST)) > wanted:
        raise PipelineError(_no_radius(wanted, SMALLEST, least))
    if high == LARGEST and (most := effect_of(LARGEST)) < wanted:
        raise PipelineError(_no_radius(wanted, LARGEST, most))
    return high


def _no_radius(wanted: float, edge: float, effect: float) -> str:
    return (
        f"no radius between {SMALLEST} and {LARGEST} has the effect {wanted:g} on the teacher: at {edge:g} it is {effect:.3g}; "
        "ask for another effect, or give the radius as a number"
    )


@dataclass(frozen=True)
class Calibration:
    """The sample on which a radius is tried, and the effect wanted."""

    scored: Scored
    settings: AugmentSettings
    snapshots: int | None
    """Of the scout whose gradient is followed; each is tried on its share of the sample."""

    @property
    def rows(self) -> int:
        """Size of the sample."""
        return len(self.scored.inputs)

    @property
    def wanted(self) -> Effect | float:
        """The effect for which a radius is searched, or the given radius."""
        return self.settings.perturbation.radius

    def trial(self, radius: float) -> list["CalibrationJob"]:
        """One radius on the whole sample, in parts that do not depend on the number of workers."""
        aims = self.snapshots or 1
        parts = min(aims * max(self.rows // (ROWS_A_PART * aims), 1), self.rows)
        return [
            CalibrationJob(self.scored.take(np.arange(part, self.rows, parts)), self.settings, self._aim(part), radius)
            for part in range(parts)
        ]

    def _aim(self, part: int) -> int | None:
        return None if self.snapshots is None else 1 + part % self.snapshots

    def find(self, measure: Callable[[Sequence["CalibrationJob"]], Sequence[Found]]) -> Found:
        """Try one radius after the other, each with all its parts at once; or measure the given one."""

        @cache
        def tried(radius: float) -> Found:
            return joined(measure(self.trial(radius)))

        if not isinstance(self.wanted, Effect):
            return tried(self.wanted)
        effect, name = (self.wanted.flips, "flips") if self.wanted.flips is not None else (self.wanted.divergence, "divergence")
        assert effect is not None, "an Effect states exactly one"
        return tried(find_radius(lambda radius: float(getattr(tried(radius), name)), effect))


@dataclass(frozen=True)
class CalibrationJob:
    """Measures the effect of a radius on a part of the sample."""

    scored: Scored
    settings: AugmentSettings
    snapshot: int | None
    radius: float

    @property
    def name(self) -> str:
        """For progress lines and errors."""
        return f"effect of the radius {self.radius:.3g} on {len(self.scored.inputs)} rows"

    def work(self) -> "CalibrationJob":
        """The job itself, which has its rows."""
        return self

    def run(self, models: ModelSet, store: Store) -> Done:
        """Perturb the clean rows once, whatever the recipes are; nothing is written to the store."""
        alone = self.settings.model_copy(update={"recipes": [["perturb"]]})
        labels = make_variant(models, self.scored, None, Making(1, alone, self.radius, self.snapshot)).labels
        flips, moved = (float(np.mean([getattr(label, name) for label in labels])) for name in ("flipped", "divergence"))
        return Done(Found(self.radius, flips, moved, len(labels)), tuple(models.batches.notes()))


def joined(parts: Sequence[Found]) -> Found:
    """The effect on all rows of several parts."""
    rows = sum(part.rows for part in parts)
    flips, moved = (sum(getattr(part, name) * part.rows for part in parts) / rows for name in ("flips", "divergence"))
    return Found(parts[0].radius, flips, moved, rows)
