"""Find the radius whose effect on the teacher is the one asked for. Knows numbers and a sample, not shards."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.augment.jobs import Done
from pipeline.augment.model_set import ModelSet
from pipeline.augment.recipes import AugmentSettings
from pipeline.augment.variants import Label, Making, Scored, make_variant
from pipeline.errors import PipelineError
from pipeline.perturbation import Effect
from pipeline.shards.store import ShardStore

SMALLEST, LARGEST = 2e-3, 2.0
"""Where a radius is looked for, as fractions of the mean word-embedding length."""

HALVINGS = 8
"""The radius is found to 2.7 %: a range of three powers of ten, halved eight times on the logarithmic scale."""


@dataclass(frozen=True)
class Found:
    """A radius and what it did to the calibration sample."""

    radius: float
    flips: float
    divergence: float
    rows: int

    def plain(self) -> dict[str, Any]:
        """For the manifest and the store."""
        return asdict(self)


def find_radius(effect_of: Callable[[float], float], wanted: float) -> float:
    """The radius at which a growing effect reaches what is wanted, by bisection of its logarithm, to three digits.

    Raises:
        PipelineError: no radius in the range has the effect.
    """
    low, high = math.log(SMALLEST), math.log(LARGEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if effect_of(math.exp(middle)) < wanted else (low, middle)
    if low == math.log(SMALLEST) and (least := effect_of(SMALLEST)) > wanted:
        raise PipelineError(_no_radius(wanted, SMALLEST, least))
    if high == math.log(LARGEST) and (most := effect_of(LARGEST)) < wanted:
        raise PipelineError(_no_radius(wanted, LARGEST, most))
    return float(f"{math.exp(high):.3g}")


def _no_radius(wanted: float, edge: float, effect: float) -> str:
    return (
        f"no radius between {SMALLEST} and {LARGEST} has the effect {wanted:g} on the teacher: at {edge:g} it is {effect:.3g}; "
        "ask for another effect, or give the radius as a number"
    )


@dataclass(frozen=True)
class CalibrationJob:
    """Find the radius for the effect asked for, or take the one given, and measure what it does to a sample."""

    scored: Scored
    settings: AugmentSettings
    snapshots: int | None
    """Of the scout that the perturbations are aimed at; each is tried on its share of the sample."""

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"calibration of the radius on {len(self.scored.inputs)} rows"

    def work(self) -> "CalibrationJob":
        """The sample travels with it."""
        return self

    def run(self, models: ModelSet, store: ShardStore) -> Done:
        """Perturb the sample at one radius after the other; the store is not touched."""
        search = self.settings.perturbation
        radius = 0.0 if search.objective == "none" else search.radius
        if isinstance(radius, Effect):
            wanted, name = (radius.flips, "flips") if radius.flips is not None else (radius.divergence, "divergence")
            assert wanted is not None, "an Effect states exactly one"
            radius = find_radius(lambda tried: getattr(self._measure(models, tried), name), wanted)
        return Done(self._measure(models, radius), tuple(models.batches.notes()))

    def _measure(self, models: ModelSet, radius: float) -> Found:
        labels = [label for part in self._parts() for label in self._perturbed(models, radius, *part)]
        flips = float(np.mean([label.flipped for label in labels]))
        return Found(radius, flips, float(np.mean([label.divergence for label in labels])), len(labels))

    def _parts(self) -> Iterator[tuple[Scored, int | None]]:
        """The sample in as many parts as there are snapshots to aim at."""
        parts = self.snapshots or 1
        for number in range(min(parts, len(self.scored.inputs))):
            chosen = np.arange(number, len(self.scored.inputs), parts)
            yield self.scored.take(chosen), self.snapshots and number + 1

    def _perturbed(self, models: ModelSet, radius: float, part: Scored, snapshot: int | None) -> list[Label]:
        """The untouched rows perturbed once, whatever else the recipes do."""
        alone = self.settings.model_copy(update={"recipes": [["perturb"]], "keep_label": False})
        return make_variant(models, part, None, Making(1, alone, radius, snapshot)).labels
