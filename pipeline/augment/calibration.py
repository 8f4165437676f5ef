"""Find the radius whose effect on the teacher is the one asked for. Knows numbers and a sample, not shards."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np

from pipeline.augment.jobs import Done
from pipeline.augment.model_set import ModelSet
from pipeline.augment.recipes import AugmentSettings
from pipeline.augment.variants import Making, Scored, make_variant
from pipeline.config.errors import PipelineError
from pipeline.corpus.task import Kind
from pipeline.perturbation.search import Effect
from pipeline.store.store import Store

SMALLEST, LARGEST = 2e-3, 2.0
"""Where a radius is looked for, as fractions of the mean word-embedding length."""

HALVINGS = 8
"""The radius is found to 2.7 %: a range of three powers of ten, halved eight times on the logarithmic scale."""

ROWS_A_PART = 64
"""About how many rows of the sample a worker tries at a time."""


@dataclass(frozen=True)
class Found:
    """A radius and what it did to the calibration sample."""

    radius: float
    flips: float
    divergence: float
    rows: int

    def words(self, kind: Kind) -> str:
        """For a person; the answers of a regression do not flip."""
        flips = "" if kind == "regression" else f"{self.flips:.1%} of the teacher's answers flip, "
        return f"{flips}mean divergence {self.divergence:.3g}"

    def plain(self) -> dict[str, Any]:
        """For the manifest and the store."""
        return asdict(self)


def find_radius(effect_of: Callable[[float], float], wanted: float) -> float:
    """The radius at which a growing effect reaches what is wanted, by bisection of its logarithm, to three digits.

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
    """The sample on which a radius is tried, and what is wanted of it."""

    scored: Scored
    settings: AugmentSettings
    snapshots: int | None
    """Of the scout that the perturbations are aimed at; each is tried on its share of the sample."""

    @property
    def rows(self) -> int:
        """Size of the sample."""
        return len(self.scored.inputs)

    @property
    def wanted(self) -> Effect | float:
        """The effect for which a radius is sought, or the radius given."""
        return self.settings.perturbation.radius

    def trial(self, radius: float) -> list["CalibrationJob"]:
        """One radius on the whole sample, in parts that do not depend on who computes them."""
        aims = self.snapshots or 1
        parts = min(aims * max(self.rows // (ROWS_A_PART * aims), 1), self.rows)
        return [
            CalibrationJob(self.scored.take(np.arange(part, self.rows, parts)), self.settings, self._aim(part), radius)
            for part in range(parts)
        ]

    def _aim(self, part: int) -> int | None:
        return None if self.snapshots is None else 1 + part % self.snapshots

    def find(self, measure: Callable[[Sequence["CalibrationJob"]], Sequence[Found]]) -> Found:
        """Try one radius after the other, each with all its parts at once; or measure the one given."""

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
    """What a radius does to a part of the sample."""

    scored: Scored
    settings: AugmentSettings
    snapshot: int | None
    radius: float

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"effect of the radius {self.radius:.3g} on {len(self.scored.inputs)} rows"

    def work(self) -> "CalibrationJob":
        """The rows travel with it."""
        return self

    def run(self, models: ModelSet, store: Store) -> Done:
        """Perturb the untouched rows once, whatever else the recipes do; the store is not touched."""
        alone = self.settings.model_copy(update={"recipes": [["perturb"]], "keep_label": False})
        labels = make_variant(models, self.scored, None, Making(1, alone, self.radius, self.snapshot)).labels
        flips, moved = (float(np.mean([getattr(label, name) for label in labels])) for name in ("flipped", "divergence"))
        return Done(Found(self.radius, flips, moved, len(labels)), tuple(models.batches.notes()))


def joined(parts: Sequence[Found]) -> Found:
    """The effect on all rows of several parts."""
    rows = sum(part.rows for part in parts)
    flips, moved = (sum(getattr(part, name) * part.rows for part in parts) / rows for name in ("flips", "divergence"))
    return Found(parts[0].radius, flips, moved, rows)
