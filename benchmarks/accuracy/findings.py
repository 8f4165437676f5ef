"""What the finished runs of a study say, as text and as pictures. Knows studies, arms and the table of runs; makes no run."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchmarks.accuracy import tables
from benchmarks.accuracy.analysis import TEACHER, Comparison, by_task, cases_of, compared, current
from benchmarks.accuracy.arms import PRECISION, Precision, Run, all_arms
from benchmarks.accuracy.pictures import curves, differences, schedules
from benchmarks.accuracy.results import curves_of, read_results
from benchmarks.accuracy.studies import all_studies, runs_of
from pipeline.config.errors import PipelineError

CONTROLS = ("ft", "kd", "twice", "kd_long")
"""Arms that see clean inputs alone, which stand in every table and picture."""


@dataclass(frozen=True)
class Findings:
    """The finished runs of a study, and the arm whose gains are looked at first."""

    study: str
    best: str
    results: Path
    """The table of runs."""
    wanted: list[Run]
    found: pd.DataFrame
    """Its rows of these runs."""

    @classmethod
    def of(
        cls, study: str, best: str, left_out: Collection[str], results: Path, precision: Precision = PRECISION
    ) -> "Findings":
        """What the table of runs has of a study without some of its tasks.

        Raises:
            PipelineError: there is no such study, or it has no such arm.
        """
        wanted = [run for run in runs_of(study, precision) if run.case.task not in left_out]
        named = dict.fromkeys(run.arm for run in wanted)
        if best not in named:
            raise PipelineError(f"{study} has no arm {best}; name one of its own with --best: {', '.join(named)}")
        return cls(study, best, results, wanted, current(read_results(results), {run.identity for run in wanted}))

    def markdown(self) -> str:
        """A heading and two tables for each student, number of rows and schedule."""
        lines = [f"{len(self.found)} of {len(self.wanted)} runs of {self.study} are finished"]
        for title, runs in _setups(self.found):
            lines += ["", f"### {title}", ""]
            if self._has_best(runs):
                lines += [self._headline(runs), ""]
            means = {arm: all_arms()[arm].means for arm in self._arms(runs)}
            pairs = self._compared(runs)
            lines += [tables.arms(pairs, means) if pairs else f"no pair yet, only {', '.join(means)}"]
        return "\n".join(lines)

    def draw(self, folder: Path) -> None:
        """What arms gain, what training longer brings and how students learn, each where there are runs for it."""
        if pairs := {title: found for title, runs in _setups(self.found) if (found := self._compared(runs))}:
            differences(pairs, folder / f"{self.study}_differences.svg")
        if not pairs or not self._has_best(self.found):
            return
        drawn = [arm for arm in self._with_all_cases(self.found) if arm in (*CONTROLS, self.best)]
        if (self.found.groupby(["task", "rows", "student"])["epochs"].nunique() > 1).any():
            schedules(self.found, drawn, folder / f"{self.study}_schedules.svg")
        curves(curves_of(cases_of(self.found, self.best), self.results), drawn, folder / f"{self.study}_curves.svg")

    def _arms(self, runs: pd.DataFrame) -> list[str]:
        """Those that have a run, in the order of the study."""
        present = set(runs["arm"])
        return [arm for arm in dict.fromkeys(run.arm for run in self.wanted) if arm in present]

    def _has_best(self, runs: pd.DataFrame) -> bool:
        return self.best in set(runs["arm"])

    def _by_task(self, runs: pd.DataFrame) -> pd.DataFrame:
        """The medians of the best arm, which stands last, and of all that have its cases."""
        return by_task(runs, [*(arm for arm in self._arms(runs) if arm != self.best), self.best])

    def _with_all_cases(self, runs: pd.DataFrame) -> list[str]:
        """The best arm and those that have all its cases: a mean over fewer seeds is another curve for no other reason."""
        return [str(arm) for arm in self._by_task(runs).columns if arm != TEACHER]

    def _headline(self, runs: pd.DataFrame) -> str:
        """The table of the best arm, task by task; other arms and controls stand in it where they have all its cases."""
        shown = self._by_task(runs)
        gains = [compared(runs, self.best, arm) for arm in CONTROLS if arm in shown and arm != self.best]
        return tables.headline(shown, gains, self.best)

    def _compared(self, runs: pd.DataFrame) -> list[Comparison]:
        """Every arm beside its control, and the best beside all controls; those without a pair are left out."""
        present = self._arms(runs)
        sides = [(arm, all_arms()[arm].control) for arm in present if all_arms()[arm].control != arm]
        if self._has_best(runs):
            sides += [(self.best, arm) for arm in CONTROLS if arm in present and arm != self.best]
        return [found for arm, control in dict.fromkeys(sides) if (found := compared(runs, arm, control)).pairs]


def beside(arm: str, control: str, left_out: Collection[str], results: pd.DataFrame, precision: Precision = PRECISION) -> str:
    """Any two arms, pair by pair and together, a heading and two tables for each student, number of rows and schedule.

    Raises:
        PipelineError: there is no such arm, or no pair of runs of the two.
    """
    if unknown := [name for name in (arm, control) if name not in all_arms()]:
        raise PipelineError(f"there is no arm {' nor '.join(unknown)}; there are {', '.join(all_arms())}")
    of_studies = (run for study in all_studies() for run in runs_of(study, precision))
    wanted = {run.identity for run in of_studies if run.arm in (arm, control)}
    found = current(results, wanted)
    lines = list[str]()
    for title, runs in _setups(found[~found["task"].isin(left_out)]):
        if (pairs := compared(runs, arm, control)).pairs:
            together = tables.arms([pairs], {arm: all_arms()[arm].means})
            lines += ["", f"### {title}", "", tables.pairs(pairs), "", together]
    if not lines:
        raise PipelineError(f"no finished runs of {arm} and {control} differ in nothing but the arm")
    return "\n".join(lines[1:])


def _setups(found: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The runs that may be compared with each other, and what they share."""
    for (student, rows, epochs), runs in found.groupby(["student", "rows", "epochs"], sort=False):
        yield f"{student}, {rows or 'all'} rows, {epochs} epochs", runs
