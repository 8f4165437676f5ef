"""The search for the epsilon that has a given effect on the model whose gradient is followed, on a sample of rows."""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from pipeline.augment.jobs import Done
from pipeline.augment.teacher import ModelSet
from pipeline.augment.variants import LabelledRows, VariantSpec, divergence_growth
from pipeline.config.errors import PipelineError
from pipeline.config.settings import AugmentSettings, Effect
from pipeline.store.store import Store

SMALLEST, LARGEST = 2e-3, 2.0
"""Bounds of the search, as fractions of the mean norm of a word embedding."""

HALVINGS = 6
"""Epsilon is found to 11 %: three powers of ten, halved six times on the logarithmic scale."""

ROWS_A_PART = 64
"""About how many rows of the sample one job perturbs."""


@dataclass(frozen=True)
class Found:
    """An epsilon and its effect on the calibration sample."""

    epsilon: float
    divergence: float
    """Mean of ``divergence_growth``, for a regression as a share of the variance of the teacher's outputs."""
    rows: int

    @property
    def effect(self) -> str:
        """For progress lines."""
        return f"the divergence grows by {self.divergence:.3g}"


def find_epsilon(effect_of: Callable[[float], float], wanted: float) -> float:
    """The epsilon, to three digits, at which a growing effect reaches ``wanted``, by bisection of its logarithm."""
    low, high = SMALLEST, LARGEST
    for _ in range(HALVINGS):
        middle = float(f"{math.sqrt(low * high):.3g}")
        low, high = (middle, high) if effect_of(middle) < wanted else (low, middle)
    for edge, misses in ((SMALLEST, operator.gt), (LARGEST, operator.lt)):
        if edge in (low, high) and misses(effect := effect_of(edge), wanted):
            raise PipelineError(
                f"no epsilon between {SMALLEST} and {LARGEST} raises the divergence by {wanted:g} (at {edge:g}: "
                f"{effect:.3g}); state another divergence, or epsilon as a number"
            )
    return high


@dataclass(frozen=True)
class Calibration:
    """The sample on which values of epsilon are tried.

    If the gradient of a surrogate is followed, each of its ``checkpoints`` is used on its share of the sample.
    """

    labelled: LabelledRows
    settings: AugmentSettings
    """Their only recipe is [perturb]."""
    checkpoints: int
    unit: float = 1.0
    """Of the divergence: for a regression the variance of the teacher's outputs."""

    def trial(self, epsilon: float) -> list["CalibrationJob"]:
        """Jobs for one epsilon on the whole sample, independent of the number of workers."""
        rows, each = len(self.labelled.inputs), max(self.checkpoints, 1)
        parts = min(each * max(rows // (ROWS_A_PART * each), 1), rows)
        jobs = []
        for part in range(parts):
            checkpoint = 1 + part % self.checkpoints if self.checkpoints else None
            labelled = self.labelled.take(np.arange(part, rows, parts))
            jobs.append(CalibrationJob(labelled, VariantSpec(1, self.settings, epsilon, checkpoint), self.unit))
        return jobs

    def find(self, measure: Callable[[Sequence["CalibrationJob"]], Sequence[Found]]) -> Found:
        """Search epsilon, or measure the given one; ``measure`` runs the jobs of one trial."""

        @cache
        def tried(epsilon: float) -> Found:
            return joined(measure(self.trial(epsilon)))

        wanted = self.settings.perturbation.epsilon
        if not isinstance(wanted, Effect):
            return tried(wanted)
        return tried(find_epsilon(lambda epsilon: tried(epsilon).divergence, wanted.divergence))


@dataclass(frozen=True)
class CalibrationJob:
    """Measures the effect of an epsilon on a part of the sample, whatever the recipes are; stores nothing."""

    labelled: LabelledRows
    spec: VariantSpec
    unit: float

    @property
    def name(self) -> str:
        return f"effect of the epsilon {self.spec.epsilon:.3g} on {len(self.labelled.inputs)} rows"

    @property
    def work(self) -> "CalibrationJob":
        """The job itself, which has its rows."""
        return self

    def prepare(self, store: Store) -> None:
        """Nothing: the job has its rows."""

    def __call__(self, models: ModelSet, store: Store) -> Done:
        growth = divergence_growth(models, self.labelled, self.spec)
        return Done(Found(self.spec.epsilon, float(growth.mean()) / self.unit, len(growth)), models.batches.notes())


def joined(parts: Sequence[Found]) -> Found:
    """The effect on all rows of several parts."""
    rows = sum(part.rows for part in parts)
    return Found(parts[0].epsilon, sum(part.divergence * part.rows for part in parts) / rows, rows)
