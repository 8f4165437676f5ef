"""Find the radius whose effect on the teacher is the one asked for. Knows numbers and a sample, not shards."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.augment.teacher import FrozenTeacher, Inputs
from pipeline.errors import PipelineError
from pipeline.perturbation import Effect, PerturbationSettings
from pipeline.shards.codec import CodecName

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

    inputs: Inputs
    clean_logits: npt.NDArray[np.float32]
    seed: int
    settings: PerturbationSettings
    codec: CodecName
    batch_rows: int

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"calibration of the radius on {len(self.inputs.example_ids)} rows"

    def run(self, teacher: FrozenTeacher) -> Found:
        """Perturb the sample at one radius after the other."""
        radius = 0.0 if self.settings.objective == "none" else self.settings.radius
        if isinstance(radius, Effect):
            wanted, name = (radius.flips, "flips") if radius.flips is not None else (radius.divergence, "divergence")
            assert wanted is not None, "an Effect states exactly one"
            radius = find_radius(lambda tried: getattr(self._measure(teacher, tried), name), wanted)
        return self._measure(teacher, radius)

    def _measure(self, teacher: FrozenTeacher, radius: float) -> Found:
        rows = teacher.perturb(self.inputs, self.clean_logits, 1, self.seed, radius, self.settings, self.codec, self.batch_rows)
        flips = float(np.mean([row.flipped for row in rows]))
        return Found(radius, flips, float(np.mean([row.divergence for row in rows])), len(rows))
