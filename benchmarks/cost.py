"""What students cost when the teacher's work is done once, beside trainings with the teacher in every step.

python -m benchmarks.cost [--json FILE]

Wall-clock seconds of one run on one thread; files that were just written are read back from memory. The students are those of
params.yaml that take stored variants. The reference is as lean as it can be written. Both forms follow the teacher's gradient
with epsilon as a number, and the sample on which augment measures its effect is the same share of the rows as in the whole
corpus.
"""

import itertools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.timing import Figure, medians, print_table, timed
from benchmarks.trainings import (
    VARIANTS,
    BareLoss,
    Loop,
    Needs,
    StageOne,
    World,
    clean_batches,
    from_shards,
    pieces_of,
    train_rows,
    varied_batches,
    with_teacher,
)
from pipeline.config.settings import StudentSettings
from pipeline.corpus.encoding import Batch
from pipeline.distill.dataset import Examples
from pipeline.distill.losses import StudentLoss
from pipeline.distill.student import Student, make_student
from pipeline.models.folder import ModelFolder
from pipeline.shards.reader import Shards
from pipeline.training.order import MicroBatch
from stages.command import params_option, stage

STEPS = 3
"""Steps of each way to use perturbations that are timed at a time."""

GIVEN_UP = (
    "What the offline form gives up: perturbations that are drawn anew in every step, and any that follow the student as it "
    "learns; it has a few of each row, searched once, which come again."
)

USES: dict[str, tuple[dict[str, Any], str]] = {
    "soft_labels": ({"variant_policy": "none"}, "clean inputs alone"),
    "use_rotate": ({}, "one stored variant of each row"),
    "use_all": ({"variant_policy": "all"}, f"{VARIANTS} stored variants of each row"),
}
"""By key: what differs from the student's settings, and in words."""


@dataclass(frozen=True)
class Pace:
    """Seconds of a training: whatever its length (start and end), and of every epoch."""

    once: float
    epoch: float

    def student(self, epochs: int) -> float:
        """Of a whole student."""
        return self.once + epochs * self.epoch


def offline_pace(world: World, made: StageOne) -> Pace:
    """Of a student from shards, by its second epoch, dev and a checkpoint included."""
    with tempfile.TemporaryDirectory(dir=world.folder) as name:
        began = time.perf_counter()
        (epoch,) = from_shards(world, made, 2, Path(name))
        return Pace(time.perf_counter() - began - 2 * epoch, epoch)


def online_pace(world: World, batches: list[Batch], cached: bool) -> Pace:
    """Of a student with the teacher in the loop."""
    with tempfile.TemporaryDirectory(dir=world.folder) as name:
        began = time.perf_counter()
        (epoch,) = with_teacher(world, [batches], cached, Path(name))
        return Pace(time.perf_counter() - began - epoch, epoch)


def bare_pace(world: World, made: StageOne) -> Pace:
    """Of the second epoch by the least loop on ready batches."""
    settings, task = world.student(2), Shards(made.soft_labels).manifest.task
    batches = varied_batches(world, made, 2, epoch=1)
    student = make_student(ModelFolder(world.teacher), settings, settings.training.seed)
    loop = Loop(student.model, settings.training, 2 * len(batches))
    return Pace(0.0, timed(lambda: loop.run(batches, BareLoss(student, settings, task.kind))))


@dataclass(frozen=True)
class Costs:
    """What was measured, put together to any number of students."""

    soft_label: float
    augment: float
    sizes: dict[str, dict[str, Pace]]
    """By student and form; only the first student's teacher was timed with its logits on the clean inputs at hand."""

    def first(self, form: str) -> float:
        """Seconds before the first student: stage 1, or where the logits on the clean inputs are known, one soft_label."""
        return {"offline": self.soft_label + self.augment, "online": 0.0, "cached": self.soft_label}[form]

    def pace(self, name: str, form: str) -> Pace:
        """Of a student; what known logits spare is the teacher's, the same in every student's epoch."""
        paces, (known, *_) = self.sizes[name], self.sizes.values()
        if form in paces or form != "cached":
            return paces[form]
        online, spared = paces["online"], known["online"].epoch - known[form].epoch
        return Pace(online.once, online.epoch - spared)

    def names(self, students: int) -> list[str]:
        """Of so many students: every size in its turn, and from the beginning again."""
        return list(itertools.islice(itertools.cycle(self.sizes), students))

    def total(self, form: str, students: int, epochs: int) -> float:
        """Seconds of so many students, one after the other."""
        return self.first(form) + sum(self.pace(name, form).student(epochs) for name in self.names(students))

    def ratio(self, form: str, students: int, epochs: int) -> float:
        """How many times as long as from shards."""
        return self.total(form, students, epochs) / self.total("offline", students, epochs)

    def break_even(self, form: str) -> float:
        """Epochs of one student, the first, at which the offline form costs as much."""
        (name,) = self.names(1)
        offline, other = self.pace(name, "offline"), self.pace(name, form)
        ahead = self.first("offline") + offline.once - self.first(form) - other.once
        return max(ahead, 0.0) / (other.epoch - offline.epoch) if other.epoch > offline.epoch else math.inf

    def figures(self, epochs: int) -> list[Figure]:
        """All that is composed of measured epochs."""
        found = []
        for students in (1, 2, 3, 5):
            names = f"{', '.join(self.names(students))}, {epochs} epochs each,"
            what = f"composed of measured epochs: {names} with the teacher in every step ÷ (stage 1 + the same from shards)"
            ratio = self.ratio("online", students, epochs)
            found.append(Figure(f"cost_ratio_{students}", ratio, what, ("≥", 1.8) if students == 3 else None))
        name, *others = self.sizes
        alone = replace(self, sizes={name: self.sizes[name]})
        same = f"as cost_ratio_3, but three times {name}, the hardest case: beside large students the teacher's share is small"
        cached = f"as cost_ratio_3, but with soft labels at hand: it perturbs and labels in every step; measured of {name}"
        if others:
            cached += f"; of {', '.join(others)}, what this spares {name} in an epoch, all of it the teacher's, was taken off"
        return [
            *found,
            Figure("cost_ratio_3_same", alone.ratio("online", 3, epochs), same),
            Figure("cost_ratio_3_cached", self.ratio("cached", 3, epochs), cached),
            Figure("break_even", self.break_even("online"), f"epochs of {name} alone after which stage 1 has paid; composed"),
            Figure("break_even_cached", self.break_even("cached"), "the same with soft labels at hand"),
        ]


def kinds_of(world: World, made: StageOne) -> dict[tuple[str, str], Callable[[], Pace]]:
    """Every training that is timed, by student and form; the first student's also in the forms that only it is timed in."""
    kinds: dict[tuple[str, str], Callable[[], Pace]] = {}
    for size in world.sizes():
        (batches,) = clean_batches(size, made, 1)
        kinds[size.name, "offline"] = partial(offline_pace, size, made)
        kinds[size.name, "online"] = partial(online_pace, size, batches, cached=False)
        if size.name == world.name:
            kinds[size.name, "cached"] = partial(online_pace, size, batches, cached=True)
            kinds[size.name, "bare"] = partial(bare_pace, size, made)
    return kinds


def measured(world: World, rounds: int) -> tuple[StageOne, Costs]:
    """Medians of stage 1 and of every kind of training, in turns; also what the first stage 1 made."""
    stages = [world.stage_one("round-1")]
    kinds = kinds_of(world, stages[0])
    found: dict[tuple[str, str], list[Pace]] = {kind: [] for kind in kinds}
    for number in range(1, rounds + 1):
        if number > 1:
            stages.append(world.stage_one(f"round-{number}"))
        for kind, training in kinds.items():
            found[kind].append(training())
        epochs = ", ".join(f"{name} {form} {taken[-1].epoch:.1f} s" for (name, form), taken in found.items())
        once = f"soft_label {stages[-1].soft_label_seconds:.1f} s, augment {stages[-1].augment_seconds:.1f} s"
        print(f"round {number} of {rounds}: {once}; an epoch: {epochs}", flush=True)
    middle, sizes = statistics.median, {size.name: dict[str, Pace]() for size in world.sizes()}
    for (name, form), taken in found.items():
        sizes[name][form] = Pace(middle(pace.once for pace in taken), middle(pace.epoch for pace in taken))
    first, second = (middle(getattr(stage, f"{name}_seconds") for stage in stages) for name in ("soft_label", "augment"))
    return stages[0], Costs(first, second, sizes)


def composition_figures(world: World, made: StageOne, costs: Costs, epochs: int = 2) -> list[Figure]:
    """One whole run of each form and so many epochs, stage 1 anew, beside what was composed for it."""
    batches = clean_batches(world, made, epochs)
    with tempfile.TemporaryDirectory(dir=world.folder) as name:
        folder = Path(name)
        offline = timed(lambda: from_shards(world, world.stage_one("whole"), epochs, folder / "offline"))
        online = timed(lambda: with_teacher(world, batches, False, folder / "online"))
    what = f"one student of {epochs} epochs, measured from start to end ÷ composed:"
    return [
        Figure("composition", offline / costs.total("offline", 1, epochs), f"{what} stage 1 and the training from shards"),
        Figure("composition_online", online / costs.total("online", 1, epochs), f"{what} the teacher in every step"),
    ]


def use_figures(world: World, made: StageOne, rounds: int) -> list[Figure]:
    """A step of every use of perturbations beside one from soft labels alone, reading the shards included."""
    usual = world.student(1)
    student = make_student(ModelFolder(world.teacher), usual, usual.training.seed)
    loop = Loop(student.model, usual.training, 1)  # the learning rate is 0 after a step, so all uses meet the same student
    steps = {key: step_of(made, student, world.student(1, **changed)) for key, (changed, _) in USES.items()}
    work: dict[str, Callable[[], object]] = {
        key: partial(lambda rows, pieces, loss: loop.run(map(rows.batch, pieces), loss), *step) for key, step in steps.items()
    }
    seconds = medians(work, rounds)
    uses = [key for key in USES if key != "soft_labels"]
    what = "time of a step ÷ of one from soft labels alone:"
    return [Figure(key, seconds[key] / seconds["soft_labels"], f"{what} {USES[key][1]}") for key in uses]


def step_of(made: StageOne, student: Student, settings: StudentSettings) -> tuple[Examples, list[MicroBatch], StudentLoss]:
    """Rows, some of an epoch's steps, and the loss, as a training of these settings has them."""
    rows, kind = train_rows(made, settings), Shards(made.soft_labels).manifest.task.kind
    loss = StudentLoss(student.map, settings.loss, kind)
    return rows, pieces_of(rows, settings.training, 0)[:STEPS], loss


def disk_figures(made: StageOne) -> list[Figure]:
    """What stage 1 leaves on the disk."""
    receipts = [entry.receipt for entry in Shards(made.shards).manifest.shards]
    a_row = sum(receipt.bytes for receipt in receipts) / sum(receipt.rows for receipt in receipts)
    return [
        Figure("bytes_per_row", a_row, "of a variant's row in its shard"),
        Figure("disk_mb", made.megabytes(), f"all that stage 1 leaves on the disk: soft labels and {VARIANTS} variants"),
    ]


def figures_of(world: World, epochs: int, rounds: int) -> list[Figure]:
    """All of them."""
    made, costs = measured(world, rounds)
    speed = costs.pace(world.name, "bare").epoch / costs.pace(world.name, "offline").epoch
    what = "steps/s of our training from shards, checkpoints and dev included, ÷ a bare loop's on batches ready in memory"
    return [
        *costs.figures(epochs),
        *composition_figures(world, made, costs),
        Figure("trainer_over_loop", speed, what, ("≥", 0.9)),
        *use_figures(world, made, rounds),
        *disk_figures(made),
    ]


@stage
@click.option("--prepared", default="data/prepared/movies", show_default=True, type=click.Path(path_type=Path), help="Corpus.")
@click.option("--teacher", default="data/teacher/movies", show_default=True, type=click.Path(path_type=Path), help="Model.")
@params_option
@click.option("--rows", default=384, show_default=True, help="Training rows of an epoch.")
@click.option("--epochs", default=6, show_default=True, help="Of every student.")
@click.option("--rounds", default=2, show_default=True, help="Turns of which the median counts.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="Also write the figures to this file.")
def main(prepared: Path, teacher: Path, params: Path, rows: int, epochs: int, rounds: int, target: Path | None) -> None:
    """Measure what students cost with the teacher's work done once; close other programs first."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        world = World.of(Path(folder) / "world", prepared, teacher, rows, Needs.of(params))
        figures = figures_of(world, epochs, rounds)
    print_table(f"cost, {rows} rows, {epochs} epochs a student, {rounds} rounds, one thread", figures)
    print(GIVEN_UP)
    if target is not None:
        target.write_text(json.dumps({figure.key: round(figure.value, 4) for figure in figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
