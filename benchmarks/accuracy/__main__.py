"""Does it work, when, and at what cost: students of every arm, and the tables of what came out."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import click
import torch

from benchmarks.accuracy.arms import PRECISION, Models, Precision, Run, usual_precision
from benchmarks.accuracy.chain import Place, params_of, result_of
from benchmarks.accuracy.corpora import CORPORA
from benchmarks.accuracy.findings import Findings, beside
from benchmarks.accuracy.masked_lm import train_masked_lm
from benchmarks.accuracy.page import filled_in
from benchmarks.accuracy.results import add_result, finished, read_results, timed_again
from benchmarks.accuracy.studies import runs_of
from pipeline.config.errors import PipelineError
from pipeline.store.files import written_whole
from stages.command import folder_option, stage

RESULTS = Path("benchmarks/results/accuracy.csv")
PAGES = (Path("benchmarks/RESULTS.md"), Path("benchmarks/ablations.md"))

results_option = click.option(
    "--results", default=RESULTS, show_default=True, type=click.Path(path_type=Path, dir_okay=False), help="Table of runs."
)
data_option = folder_option("--data", "Folder of the labelled sets, one folder a set with train.tsv, dev.tsv and test.tsv.")
left_out_option = click.option(
    "--without", "left_out", multiple=True, help="Task to leave out, such as one that the arms were chosen on."
)
precision_option = click.option(
    "--precision",
    type=click.Choice(get_args(Precision)),
    default=PRECISION,
    show_default=True,
    help="Of the runs' trainings.",
)
teacher_option = click.option(
    "--teacher",
    default="data/raw/all-MiniLM-L6-v2",
    show_default=True,
    help="Pretrained model of the teachers: folder or hub id.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """The accuracy suite: students of every arm on labelled sets, and the tables of what came out."""


@stage
@data_option
@teacher_option
@folder_option("--masked-lm", "Masked language model, for arms that edit texts with one.", required=False)
@folder_option("--work", "Folder for tables, teachers and shards; may be deleted between two suites.")
@click.option("--study", "studies", multiple=True, required=True, help="Of studies.yaml; give it several times for several.")
@click.option("--precision", type=click.Choice(get_args(Precision)), help="Of the trainings; left out, bfloat16, or float32 "
              "where the processor is slow at it. Runs in either are kept apart.")  # fmt: skip
@results_option
def run(
    data: Path,
    teacher: str,
    masked_lm: Path | None,
    work: Path,
    studies: tuple[str, ...],
    precision: Precision | None,
    results: Path,
) -> None:
    """Make what the table of runs lacks, one run after the other on one thread.

    Started several times on one folder, the processes share the runs. One that was killed is started again and goes on from the
    last epoch of what it was at.
    """
    torch.set_num_threads(1)
    models = Models(_absolute(teacher), None if masked_lm is None else _absolute(str(masked_lm)))
    place = Place(data.resolve(), models, work.resolve())
    precision = precision or usual_precision()
    if precision != PRECISION:
        click.echo(f"trainings in {precision}; `show --precision {precision}` shows these runs")
    wanted = list(dict.fromkeys(run for study in studies for run in runs_of(study, precision)))
    for each in wanted:
        params_of(each, place)  # a run with an error fails before any is made
    failed = [each.name for number, each in enumerate(wanted, 1) if not _made(each, place, results, f"{number}/{len(wanted)}")]
    there = finished(results)
    click.echo(f"{sum(each.identity in there for each in wanted)} of {len(wanted)} runs are finished")
    if failed:
        raise click.ClickException(f"{len(failed)} runs failed, as printed above: {', '.join(failed)}")


def _made(run: Run, place: Place, results: Path, number: str) -> bool:
    """Make a run unless it is finished or another process is at it; false where it failed, which is printed."""
    with claimed(place.work / "claims" / run.name) as free:
        if not free or run.identity in finished(results):
            return True
        click.echo(f"== {number} {run.name}")
        try:
            result, curve = result_of(run, place)
        except (click.ClickException, PipelineError) as error:
            click.echo(f"== {run.name} failed: {error}")
            return False
        add_result(results, result, curve)
        click.echo(f"== {run.name}: {result.value:.4f}, teacher {result.teacher_value:.4f}, {result.seconds:.0f} s")
        return True


@stage
@click.option("--study", default="headline", show_default=True, help="Of studies.yaml.")
@click.option("--best", default="edits", show_default=True, help="Arm whose gains the first table shows.")
@left_out_option
@precision_option
@results_option
@folder_option("--pictures", "Folder to draw what arms gain and how students learn into.", required=False)
def show(study: str, best: str, left_out: tuple[str, ...], precision: Precision, results: Path, pictures: Path | None) -> None:
    """Print what the finished runs of a study say, as Markdown: medians by task, and every arm beside its control."""
    found = Findings.of(study, best, left_out, results, precision)
    click.echo(found.markdown())
    if pictures is not None:
        found.draw(pictures)


@stage
@click.argument("arm")
@click.argument("control")
@left_out_option
@precision_option
@results_option
@click.option(
    "--again",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Table of runs that were made again, to be timed beside others: they stand for those of the first table.",
)
def compare(arm: str, control: str, left_out: tuple[str, ...], precision: Precision, results: Path, again: Path | None) -> None:
    """Print what ARM gains over any other, CONTROL, pair by pair and together, and what it takes of its time."""
    found = read_results(results)
    found = found if again is None else timed_again(found, read_results(again))
    click.echo(beside(arm, control, left_out, found, precision))


@stage
@click.option(
    "--page",
    "pages",
    multiple=True,
    default=PAGES,
    show_default=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="To be filled; give it several times for several.",
)
@results_option
def fill(pages: tuple[Path, ...], results: Path) -> None:
    """Bring the tables of pages up to date: below each line <!-- show STUDY BEST --> what `show` prints of it."""
    for page in pages:
        text = page.read_text(encoding="utf-8")
        filled = filled_in(text, lambda study, best: Findings.of(study, best, (), results).markdown())
        with written_whole(page) as partial:
            partial.write_text(filled, encoding="utf-8")


@stage
@data_option
@teacher_option
@click.option("--epochs", default=1, show_default=True, type=click.IntRange(min=1), help="Over all train texts.")
@click.option("--without", "left_out", multiple=True, help="Set to leave out: its spare train rows are test rows of its cases.")
@folder_option("--out", "Where to write it.")
def masked_lm(data: Path, teacher: str, epochs: int, left_out: tuple[str, ...], out: Path) -> None:
    """Fit a masked language model, begun as the teachers' pretrained one, to all sets, where no better one is at hand."""
    torch.set_num_threads(1)
    facts = train_masked_lm(data, [task for task in CORPORA if task not in left_out], teacher, epochs, out)
    click.echo(f"{out}: {facts.summary()}")


def _absolute(model: str) -> str:
    """A folder by its whole path, since every run has a parameter file elsewhere; a hub id as it is."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


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
main.add_command(compare, "compare")
main.add_command(fill, "fill")
main.add_command(masked_lm, "masked-lm")

if __name__ == "__main__":
    main()
