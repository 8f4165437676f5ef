"""What is run for which question, in the order in which it pays most to know. Knows names alone."""

from collections.abc import Iterator
from itertools import product

from pydantic import Field

from benchmarks.accuracy.arms import HERE, PRECISION, Precision, Run
from benchmarks.accuracy.corpora import Case
from pipeline.config import params as config
from pipeline.config.errors import PipelineError
from pipeline.config.params import Settings


class Block(Settings):
    """Runs that differ in everything named here."""

    tasks: list[str]
    rows: list[int]
    """Train rows; 0 for all."""
    seeds: list[int]
    students: list[str] = Field(default_factory=lambda: ["half"])
    epochs: list[int]
    arms: list[str] = Field(min_length=1)

    def runs(self, precision: Precision) -> Iterator[Run]:
        """All of them, seed after seed, and of a seed one arm over all tasks: two processes seldom wait for the same case."""
        for seed, rows, student, epochs in product(self.seeds, self.rows, self.students, self.epochs):
            for arm, task in product(self.arms, self.tasks):
                yield Run(Case(task, rows, seed), arm, student, epochs, precision)


class Studies(Settings):
    """All of studies.yaml."""

    studies: dict[str, list[Block]]


def all_studies() -> dict[str, list[Block]]:
    """Studies by name."""
    return config.load(HERE / "studies.yaml", Studies, studies="studies").studies


def runs_of(study: str, precision: Precision = PRECISION) -> list[Run]:
    """Every run of a study once, in a precision.

    Raises:
        PipelineError: there is no such study.
    """
    studies = all_studies()
    if study not in studies:
        raise PipelineError(f"there is no study {study}; there are {', '.join(studies)}")
    return list(dict.fromkeys(run for block in studies[study] for run in block.runs(precision)))
