"""What the table of runs says: differences of paired runs, with their intervals. Knows columns and statistics, no stage."""

import warnings
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from benchmarks.accuracy.results import IDENTITY
from pipeline.seeding import seed_of
from pipeline.tasks import Floats

PAIR = ["task", "rows", "seed", "student", "epochs"]
"""What two runs of a pair share."""

POINTS = 100.0
"""A metric is between 0 and 1; a difference is told in points."""

CONFIDENCE, RESAMPLES = 0.95, 10_000
FEWEST_PAIRS = 3
"""With fewer there is neither an interval nor a test."""


@dataclass(frozen=True)
class Comparison:
    """An arm beside its control, over all tasks and seeds that have both."""

    arm: str
    control: str
    differences: pd.DataFrame
    """One row a pair: those of PAIR, differences in ``points`` of the metric and of ``agreement`` with the teacher,
    and what the arm took of the control's ``steps`` and ``seconds``."""

    @property
    def pairs(self) -> int:
        """How many there are."""
        return len(self.differences)

    @property
    def points(self) -> Floats:
        """Of each pair, arm − control."""
        return self.differences["points"].to_numpy()

    @property
    def median(self) -> float:
        """The median over seeds of each task, and the mean of these over tasks."""
        return self.median_of("points")

    def median_of(self, column: str) -> float:
        """The same of another difference."""
        return float(self.differences.groupby("task")[column].median().mean())

    def interval(self) -> tuple[float, float] | None:
        """The 95 % percentile bootstrap interval of the mean over tasks; pairs are drawn within their task."""
        if self.pairs < FEWEST_PAIRS:
            return None
        generator = np.random.default_rng(seed_of("comparison", self.arm, self.control))
        groups = [group.to_numpy() for _, group in self.differences.groupby("task")["points"]]
        drawn = [generator.choice(group, (RESAMPLES, len(group))).mean(axis=1) for group in groups]
        means = np.mean(drawn, axis=0)
        low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return float(low), float(high)

    def p_value(self) -> float | None:
        """Of Wilcoxon's signed-rank test over all pairs, two-sided; None where all pairs are equal or there are few."""
        if self.pairs < FEWEST_PAIRS or not np.any(self.points):
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pairs that are equal leave it to an approximation, and it says so
            return float(scipy.stats.wilcoxon(self.points).pvalue)


def compared(results: pd.DataFrame, arm: str, control: str) -> Comparison:
    """Every pair of runs of two arms that differ in nothing but the arm."""
    own, other = (results[results["arm"] == name] for name in (arm, control))
    both = own.merge(other, on=PAIR, suffixes=("", "_control"))
    found = both[PAIR].assign(
        points=POINTS * (both["value"] - both["value_control"]),
        agreement=POINTS * (both["agreement"] - both["agreement_control"]),
        steps=both["steps"] / both["steps_control"],
        seconds=both["seconds"] / both["seconds_control"],
    )
    return Comparison(arm, control, found)


def current(results: pd.DataFrame, wanted: Collection[tuple[Any, ...]]) -> pd.DataFrame:
    """The wanted runs, by what identifies them; those of arms that have changed since are left out."""
    found = results[IDENTITY].itertuples(index=False, name=None)
    return results[[key in wanted for key in found]].drop_duplicates(IDENTITY, keep="last")


def by_task(results: pd.DataFrame, arms: list[str]) -> pd.DataFrame:
    """Median over seeds of each task's metric, in points: a row a task, a column an arm, the teacher's first."""
    chosen = results[results["arm"].isin(arms)]
    values = chosen.pivot_table(index="task", columns="arm", values="value", aggfunc="median", sort=False)
    teacher = chosen.drop_duplicates(["task", "rows", "seed"]).groupby("task")["teacher_value"].median()
    table = values.reindex(columns=[arm for arm in arms if arm in values])
    table.insert(0, "teacher", teacher)
    return POINTS * table
