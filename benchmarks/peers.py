"""Three students from shards beside the same students with the teacher in every step, by transformers and by TextBrewer.

python -m benchmarks.peers --peer-python PATH [--json FILE]

PATH is the Python, 3.11 or newer, of an environment of TextBrewer's own, since the project does not depend on it; INSTALL makes
it. Without PATH TextBrewer is left out. It works with the project's versions of torch and transformers.

There are two kinds of work. ``plain`` is distillation on clean inputs. ``adversarial`` adds to every row of every step its
perturbed copy: ours as params.yaml asks, but of the clean text whatever the recipes, with surrogates and stored variants, as
many however few the epochs; the peers follow the gradient of the student in training, which costs less than the teacher's,
within the epsilon that ours found, and label the result. TextBrewer has nothing for adversarial inputs; they come through two
of its extension points, ``batch_postprocessor`` and a batch's ``teacher_cache``. ``textbrewer_cached`` is what TextBrewer has
against a teacher in every step: it runs once a student, on batches that stay the same.

The same in all ways: the teacher, the students' initial weights, the rows of every step (but for that cache), optimiser,
schedule, clipping and loss; after each epoch dev and a checkpoint. Each way has a process
of its own and one thread. Seconds count everything between the imports and the last student on the disk. To the peers'
advantage, they are given our order of rows, which pads little, and students already cut from the teacher, and their
checkpoints hold weights alone; ours cuts them, can resume, and syncs and hashes its files. Quality is measured on test rows.
Round n adds n - 1 to the seed of every training.

The default size is for a trial of ten minutes: there stage 1 and the fixed costs weigh more than in real work, and quality is
that of students that saw little. Figures to quote take --rows 1600 --epochs 12 --test-rows 2116, which takes hours.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch

from benchmarks.memory import ROOT
from benchmarks.peer_work import OURS, Texts, Work, cut, write_job
from benchmarks.timing import Figure, print_table
from pipeline.config.errors import PipelineError
from pipeline.corpus.encoding import Integers
from pipeline.models.folder import ModelFolder
from stages.command import params_option, stage

CACHED = "textbrewer_cached"
WAYS = {"plain": (OURS, "transformers", "textbrewer", CACHED), "adversarial": (OURS, "transformers", "textbrewer")}
"""Of each kind of work."""

BAR = 1.8
INSTALL = "pip install --constraint libraries.txt textbrewer==0.2.1.post1 torch transformers"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
LOOPS = str(ROOT / "benchmarks" / "peer_loops.py")


@dataclass(frozen=True)
class Run:
    """One way, once."""

    seconds: float
    processor: float
    """Seconds at work, which other programs and the disk do not lengthen."""
    stage_one: float
    """Seconds before the first student; 0 for a peer."""
    start_mb: float
    """Peak memory after the imports."""
    peak_mb: float
    predictions: npt.NDArray[np.int64]
    """[students, test rows]"""

    @classmethod
    def of(cls, way: str, folder: Path, python: str, test: Texts) -> "Run":
        """Train all students in one way in a process of its own, and let them predict.

        Raises:
            PipelineError: it failed, or took other steps than the rows and epochs ask for.
        """
        program = [sys.executable, "-m", "benchmarks.peer_work"] if way == OURS else [python, "-P", LOOPS]
        command = [*program, str(folder), *([] if way == OURS else [way])]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | ONE_THREAD, capture_output=True, text=True)
        if done.returncode:
            raise PipelineError(f"{way} failed: {done.stderr.strip()[-2000:]}")
        said, job = json.loads(done.stdout.splitlines()[-1]), json.loads((folder / "job.json").read_text(encoding="utf-8"))
        wanted = {name: student["steps"] for name, student in job["students"].items()}
        if said["steps"] != wanted:
            raise PipelineError(f"{way} took {said['steps']} steps instead of {wanted}")
        predictions = np.array([test.predictions(folder / way / name) for name in wanted])
        return cls(**{name: said[name] for name in said.keys() - {"steps"}}, predictions=predictions)


def figures_of(
    kind: str, names: Sequence[str], runs: dict[str, list[Run]], labels: Integers, teacher: Integers
) -> list[Figure]:
    """Of one kind of work; each way has as many runs as there were rounds."""
    found, right = [], {}
    seconds, processor, once, start, peak = (
        {way: statistics.median(getattr(run, field) for run in turns) for way, turns in runs.items()}
        for field in ("seconds", "processor", "stage_one", "start_mb", "peak_mb")
    )
    for way, turns in runs.items():
        right[way] = np.mean([run.predictions == labels for run in turns], axis=0)
        agreeing = np.mean([run.predictions == teacher for run in turns], axis=0)
        each = [
            ", ".join(f"{name} {value:.3f}" for name, value in zip(names, of.mean(1), strict=True))
            for of in (right[way], agreeing)
        ]
        before = f"; {once[way]:.1f} s before the first student" if way == OURS else ""
        work = f"{len(names)} students, {processor[way]:.1f} s of processor time{before}"
        found += [
            Figure(f"{kind}_{way}_seconds", seconds[way], work),
            Figure(f"{kind}_{way}_peak_mb", peak[way], f"of the process, {start[way]:.0f} after the imports"),
            Figure(f"{kind}_{way}_accuracy", right[way].mean(), f"on test: {each[0]}"),
            Figure(f"{kind}_{way}_agreement", agreeing.mean(), f"predictions equal to the teacher's: {each[1]}"),
        ]
    for way in [way for way in runs if way != OURS]:
        ahead = (right[OURS] - right[way]).mean(0)
        margin = round(1.96 * ahead.std() / len(ahead) ** 0.5, 3)
        what = f"accuracy of ours - {way}'s; sampling of {len(ahead)} test rows alone: ± {margin}"
        ratio, worked = seconds[way] / seconds[OURS], processor[way] / processor[OURS]
        said = f"seconds of {way} ÷ ours; of processor time {worked:.2f}"
        found += [
            Figure(f"{kind}_ratio_{way}", ratio, said, None if way == CACHED else ("≥", BAR)),
            Figure(f"{kind}_quality_{way}", ahead.mean(), what, ("≥", 0.0 - margin)),
        ]
    return found


def measured(
    folder: Path, work: Work, test: Texts, kinds: Sequence[str], rounds: int, python: str | None, gradient: str
) -> dict[str, dict[str, list[Run]]]:
    """Every way of every kind, in turns."""
    ways = {kind: [way for way in WAYS[kind] if python or not way.startswith("textbrewer")] for kind in kinds}
    found: dict[str, dict[str, list[Run]]] = {kind: {way: [] for way in ways[kind]} for kind in kinds}
    for number in range(rounds):
        for kind, runs in found.items():
            with tempfile.TemporaryDirectory(dir=folder) as name:
                write_job(job := Path(name) / "job", work.turn(kind == "adversarial", number), gradient)
                for way, turns in runs.items():
                    turns.append(Run.of(way, job, str(python) if way.startswith("textbrewer") else sys.executable, test))
                    print(f"round {number + 1} of {rounds}: {kind} {way} {turns[-1].seconds:.1f} s", flush=True)
    return found


@stage
@click.option("--prepared", default="data/prepared/movies", show_default=True, type=click.Path(path_type=Path), help="Corpus.")
@click.option("--teacher", default="data/teacher/movies", show_default=True, type=click.Path(path_type=Path), help="Model.")
@params_option
@click.option("--peer-python", "python", type=click.Path(exists=True), help=f"Python of an environment made by: {INSTALL}")
@click.option("--kind", "kinds", multiple=True, default=list(WAYS), show_default=True, type=click.Choice(list(WAYS)))
@click.option("--gradient", default="student", show_default=True, type=click.Choice(["student", "teacher"]), help="Of peers.")
@click.option("--rows", default=128, show_default=True, help="Training rows.")
@click.option("--test-rows", default=500, show_default=True, help="Most test rows on which quality is measured.")
@click.option("--epochs", default=6, show_default=True, help="Of students and surrogate.")
@click.option("--rounds", default=1, show_default=True, help="Turns of which the median counts.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="Also write the figures to this file.")
def main(
    prepared: Path, teacher: Path, params: Path, python: str | None, kinds: Sequence[str], gradient: str, rows: int,
    test_rows: int, epochs: int, rounds: int, target: Path | None,
) -> None:  # fmt: skip
    """Compare ours with transformers.Trainer and TextBrewer; close other programs first."""
    torch.set_num_threads(1)
    whole = pq.read_metadata(prepared / "train.parquet").num_rows
    rows, test = min(rows, whole), Texts.of(prepared / "test.parquet", ModelFolder(teacher), test_rows)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = Work.of(params, cut(prepared, folder / "prepared", rows), teacher, rows / whole, epochs)
        runs = measured(folder, work, test, kinds, rounds, python and str(Path(python).absolute()), gradient)
    wanted = test.predictions(teacher)
    figures = [Figure("teacher_accuracy", float((wanted == test.labels).mean()), f"on {len(wanted)} test rows")]
    for kind, several in runs.items():
        figures += figures_of(kind, list(work.students), several, test.labels, wanted)
    print_table(f"peers, {rows} rows, {epochs} epochs, {rounds} rounds, one thread", figures)
    if python is None:
        print("TextBrewer was left out: give --peer-python")
    if target is not None:
        target.write_text(json.dumps({figure.key: round(figure.value, 4) for figure in figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
