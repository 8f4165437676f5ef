"""Does it work, when, and at what cost: students of every arm, and the tables of what came out."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pandas as pd
import torch

from benchmarks.accuracy import tables
from benchmarks.accuracy.analysis import PAIR, by_task, compared, current
from benchmarks.accuracy.arms import Models, Run, all_arms
from benchmarks.accuracy.chain import Place, result_of
from benchmarks.accuracy.masked_lm import train_masked_lm
from benchmarks.accuracy.pictures import curves, schedules
from benchmarks.accuracy.results import IDENTITY, add_result, finished, read_curves, read_results
from benchmarks.accuracy.studies import runs_of
from pipeline.files import canonical_json
from stages.command import folder_option, stage

RESULTS = Path("benchmarks/results/accuracy.csv")

CONTROLS = ("ft", "kd", "kd_long")
"""Arms without perturbations, which stand in every table and picture."""

results_option = click.option(
    "--results", default=RESULTS, show_default=True, type=click.Path(path_type=Path, dir_okay=False), help="Table of runs."
)


data_option = folder_option("--data", "Folder of the labelled sets, one folder a set with train.tsv, dev.tsv and test.tsv.")
teacher_option = click.option(
    "--teacher",
    default="data/raw/all-MiniLM-L6-v2",
    show_default=True,
    help="Pretrained model of the teachers: folder or hub id.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """The accuracy suite: `run` adds finished runs to a table, `show` tells what it says,

    `masked-lm` trains a model for the arm that edits texts with one.
    """


@stage
@data_option
@teacher_option
@folder_option("--masked-lm", "Masked language model, for arms that edit texts with one.", required=False)
@folder_option("--work", "Folder for tables, teachers and shards; may be deleted between two suites.")
@click.option("--study", "studies", multiple=True, required=True, help="Of studies.yaml; give it several times for several.")
@results_option
def run(data: Path, teacher: str, masked_lm: Path | None, work: Path, studies: tuple[str, ...], results: Path) -> None:
    """Make what the table of runs lacks, one run after the other on one thread.

    Started several times on one folder, the processes share the runs. One that was killed loses what it was at, and is
    started again.
    """
    torch.set_num_threads(1)
    models = Models(_absolute(teacher), None if masked_lm is None else _absolute(str(masked_lm)))
    place = Place(data.resolve(), models, work.resolve())
    wanted = list(dict.fromkeys(run for study in studies for run in runs_of(study)))
    for number, each in enumerate(wanted, 1):
        with claimed(work / "claims" / each.name) as free:
            if not free or identity(each) in finished(results):
                continue
            click.echo(f"== {number}/{len(wanted)} {each.name}")
            result, curve = result_of(each, place)
            add_result(results, result, curve)
            click.echo(f"== {each.name}: {result.value:.4f}, teacher {result.teacher_value:.4f}, {result.seconds:.0f} s")


@stage
@click.option("--study", default="headline", show_default=True, help="Of studies.yaml.")
@click.option("--best", default="own", show_default=True, help="Arm whose gains the first table shows.")
@results_option
@folder_option("--pictures", "Folder to draw what training longer brings, and how students learn, into.", required=False)
def show(study: str, best: str, results: Path, pictures: Path | None) -> None:
    """Print what the finished runs of a study say, as Markdown: medians by task, and every arm beside its control."""
    found = of_study(read_results(results), study)
    named = list(dict.fromkeys(run.arm for run in runs_of(study)))
    arms = [arm for arm in named if arm in set(found["arm"])]
    for (student, rows, epochs), group in found.groupby(["student", "rows", "epochs"], sort=False):
        click.echo(f"\n### {student}, {rows or 'all'} rows, {epochs} epochs\n")
        present = [arm for arm in arms if arm in set(group["arm"])]
        beside = [arm for arm in present if arm in CONTROLS and arm != best and best in present]
        gains = [compared(group, best, arm) for arm in beside]
        click.echo(tables.headline(by_task(group, present), gains, best) + "\n")
        each = [compared(group, arm, all_arms()[arm].control) for arm in present if all_arms()[arm].control != arm]
        click.echo(tables.arms([one for one in each if one.pairs], {arm: all_arms()[arm].means for arm in present}))
    if pictures is not None:
        drawn = [arm for arm in arms if arm in (*CONTROLS, best)]
        if (found.groupby(["task", "rows"])["epochs"].nunique() > 1).any():
            schedules(found, drawn, pictures / f"{study}_schedules.svg")
        curves(read_curves(results).merge(found[[*PAIR, "arm"]]), drawn, pictures / f"{study}_curves.svg")


@stage
@data_option
@teacher_option
@click.option("--epochs", default=1, show_default=True, type=click.IntRange(min=1), help="Over all train texts.")
@folder_option("--out", "Where to write it.")
def masked_lm(data: Path, teacher: str, epochs: int, out: Path) -> None:
    """Train a masked language model out of the teachers' pretrained one, where no better one is at hand."""
    torch.set_num_threads(1)
    click.echo(f"{out}: {train_masked_lm(data, teacher, epochs, out):.2f} nats a masked token of dev")


def _absolute(model: str) -> str:
    """A folder by its whole path, since every run has a parameter file elsewhere; a hub id as it is."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def of_study(results: pd.DataFrame, study: str) -> pd.DataFrame:
    """The finished runs of a study, those of arms that have changed left out."""
    return current(results, {identity(run) for run in runs_of(study)})


def identity(run: Run) -> tuple[Any, ...]:
    """What of a run is in the table's columns of the same name."""
    settings = canonical_json(run.settings()).decode()
    facts = [run.case.task, run.case.rows, run.case.seed, run.student, run.arm, run.epochs, settings]
    assert len(facts) == len(IDENTITY), "these are the columns of IDENTITY, in their order"
    return tuple(facts)


@contextmanager
def claimed(lock: Path) -> Iterator[bool]:
    """Whether no other process is at this run."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


main.add_command(run, "run")
main.add_command(show, "show")
main.add_command(masked_lm, "masked-lm")

if __name__ == "__main__":
    main()
