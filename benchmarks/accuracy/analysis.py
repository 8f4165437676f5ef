"""What the table of runs says: differences of paired runs, with their intervals. Knows columns and statistics, no stage."""

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from benchmarks.accuracy.results import IDENTITY
from pipeline.corpus.seeding import seed_of
from pipeline.corpus.task import Floats

CASE = ["task", "rows", "seed"]
PAIR = [*CASE, "student", "epochs", "teacher"]
"""What two runs of a pair share; the teacher by its hash."""

POINTS = 100.0
"""A metric is between 0 and 1; a difference is given in points."""

TEACHER = "teacher"

CONFIDENCE, RESAMPLES = 0.95, 10_000
FEWEST_PAIRS = 6
"""With fewer there is neither an interval nor a test: five signs alone cannot be surer than one in sixteen."""


@dataclass(frozen=True)
class Comparison:
    """An arm beside its control, over all tasks and seeds that have both."""

    arm: str
    control: str
    differences: pd.DataFrame
    """One row a pair: those of PAIR, differences in ``points`` of the metric and of ``agreement`` with the teacher, and what
    the arm took of the control's ``seconds``, of the training alone and ``with_stage_one``."""

    @property
    def pairs(self) -> int:
        """How many there are."""
        return len(self.differences)

    @property
    def points(self) -> Floats:
        """Of each pair, arm − control."""
        return self.differences["points"].to_numpy()

    @property
    def mean(self) -> float:
        """Over all pairs."""
        return float(self.points.mean())

    def median_of(self, column: str) -> float:
        """The median over seeds of each task, and the mean of these over tasks."""
        return float(self.differences.groupby("task")[column].median().mean())

    def interval(self) -> tuple[float, float] | None:
        """The 95 % percentile bootstrap interval of the mean over pairs: tasks are drawn, then of each its seeds.

        The seeds of a task share its test rows, so pairs are not drawn as if each stood for itself.
        """
        if self.pairs < FEWEST_PAIRS:
            return None
        generator = np.random.default_rng(seed_of("comparison", self.arm, self.control))
        tasks = [group.to_numpy() for _, group in self.differences.groupby("task")["points"]]
        drawn = generator.integers(len(tasks), size=(RESAMPLES, len(tasks)))
        sums, counts = np.zeros(RESAMPLES), np.zeros(RESAMPLES)
        for number, points in enumerate(tasks):
            seeds = generator.integers(len(points), size=(*drawn.shape, len(points)))
            sums += np.where(drawn == number, points[seeds].sum(axis=2), 0.0).sum(axis=1)
            counts += len(points) * (drawn == number).sum(axis=1)
        low, high = np.quantile(sums / counts, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
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
        seconds=both["seconds"] / both["seconds_control"],
        with_stage_one=(both["seconds"] + both["stage_one_seconds"])
        / (both["seconds_control"] + both["stage_one_seconds_control"]),
    )
    return Comparison(arm, control, found)


def current(results: pd.DataFrame, wanted: Collection[tuple[Any, ...]]) -> pd.DataFrame:
    """The wanted runs, by what identifies them; those of arms that have changed since are left out.

    Shards count in full for every arm that learns from them, whichever run made them and whichever found them made.
    """
    keys = results[IDENTITY].itertuples(index=False, name=None)
    kept = np.array([key in wanted for key in keys], dtype=bool)
    made = results.groupby([*CASE, "manifest"])["stage_one_seconds"].transform("max")
    return results.assign(stage_one_seconds=made)[kept].drop_duplicates(IDENTITY, keep="last")


def cases_of(results: pd.DataFrame, arm: str) -> pd.DataFrame:
    """The runs of all arms on the rows, teachers and seeds that ``arm`` has."""
    return results.merge(results.loc[results["arm"] == arm, PAIR], on=PAIR)


def by_task(results: pd.DataFrame, arms: Sequence[str]) -> pd.DataFrame:
    """Median over seeds of each task's metric, in points: a row a task, a column an arm, the teacher's first.

    Only cases count that the last arm has, and of the others only arms that have all of these: a mean over other tasks
    or seeds would compare nothing.
    """
    found = cases_of(results, arms[-1])
    count = (found["arm"] == arms[-1]).sum()
    whole = [arm for arm in arms if (found["arm"] == arm).sum() == count]
    values = found[found["arm"].isin(whole)].pivot_table(
        index="task", columns="arm", values="value", aggfunc="median", sort=False
    )
    table = values.reindex(columns=whole)
    table.insert(0, TEACHER, found.drop_duplicates(PAIR).groupby("task")["teacher_value"].median())
    return POINTS * table
