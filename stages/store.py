"""store: the upkeep of the store of shards and students: what it holds, whether it is sound, what may go (no stage)."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from pipeline.augment.progress import Counter
from pipeline.config import params as config
from pipeline.config.errors import PipelineError
from pipeline.distill import kept
from pipeline.distill.jobs import StudentStore
from pipeline.distill.kept import KeptStudent, StudentUses
from pipeline.shards import upkeep
from pipeline.shards.store import Contents, ShardStore
from pipeline.shards.upkeep import Finding, Garbage, ShardSet
from pipeline.shards.usage import Uses, check_known, look_for_uses
from stages.command import params_option, stage

WIDTH = 200
"""Columns of the printed table at most, on a terminal or not; a table is as wide as it needs to be."""

store_option = click.option(
    "--store",
    "named",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the shard store; left out: runtime.store of the settings.",
)
data_option = click.option(
    "--data",
    multiple=True,
    default=("data",),
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder below which manifests and students say what is in use. Give one for EVERY clone that uses the store.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """Look after the store of shards and students: what it holds, whether it is sound, what may go."""


@stage
@store_option
@params_option
@data_option
def list_sets(named: Path | None, params: Path, data: tuple[Path, ...]) -> None:
    """List the sets of shards and the students in the store, and which folders use them.

    A set is what one pass of a teacher made: its shards differ in examples and variant alone. Nothing there is hashed.
    """
    store = _store(named, params)
    students = StudentStore.below(store.folder)
    contents, uses = store.contents(), look_for_uses(data, store)
    sets = upkeep.sets_of(contents, uses)
    Console(width=WIDTH, highlight=False, markup=False).print(_table(sets, uses))
    for sentence in _doubts(uses):
        click.echo(sentence)
    click.echo(_totals(store, contents, sets))
    found = kept.look_for_students(data, students)
    if stock := kept.take_stock(students, found):
        Console(width=WIDTH, highlight=False, markup=False).print(_student_table(stock, found, time.time()))
        click.echo(f"{students.folder}: {_counted(len(stock), 'folder')}, {_megabytes(sum(one.bytes for one in stock))} MB")


@stage
@store_option
@params_option
@click.option("--delete", is_flag=True, help="Delete what is damaged, so that the next run computes it again.")
def verify(named: Path | None, params: Path, delete: bool) -> None:
    """Hash every shard and every finished student and compare them with what was noted of them.

    Exits with 1 if anything is damaged, also where --delete has removed it.
    """
    store = _store(named, params)
    students = StudentStore.below(store.folder)
    findings, faults = _examined(store.contents()), _examined_students(students)
    for finding in findings:
        if not finding.damaged:
            click.echo(f"left alone, perhaps in use: {_line(finding)}")
    damaged = [finding for finding in findings if finding.damaged]
    if damaged or faults:
        lines = [*map(_line, damaged), *(f"{fault}: {_described(student)}" for student, fault in faults)]
        ending = "the next run that needs what is damaged computes it again; --delete removes what is damaged now"
        if delete:
            gone = [
                *(upkeep.delete(finding.entry.files) for finding in damaged),
                *(kept.delete(students, s) for s, _ in faults),
            ]
            ending = f"{sum(gone)} of {len(gone)} deleted; the next run that needs them computes them again"
        raise PipelineError("\n  - ".join([f"{store.folder}: {len(lines)} damaged", *lines]) + f"\n{ending}")
    click.echo(f"{store.folder}: nothing is damaged")


@stage
@store_option
@params_option
@data_option
@click.option(
    "--min-age-hours",
    default=24.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Keep all of a teacher of which anything was written or asked for since, so that no run in progress is robbed.",
)
@click.option("--everything", is_flag=True, help="Go on although a --data folder has no manifest: nothing there is in use.")
@click.option("--delete", is_flag=True, help="Do it; without it nothing is deleted.")
def gc(named: Path | None, params: Path, data: tuple[Path, ...], min_age_hours: float, everything: bool, delete: bool) -> None:
    """Say what no manifest lists any more, and which students are in no folder, and with --delete delete it.

    Only finished stages have a manifest: finish or repeat a stage that was interrupted before clearing the store, else
    what it had computed counts as unused once it is old enough. Abandoned partial files and the states of trainings that were
    not finished go too, if older than an hour; a student that is being trained on this machine never goes.
    """
    store = _store(named, params)
    students, now, least_age = StudentStore.below(store.folder), time.time(), min_age_hours * 3600
    uses, found = look_for_uses(data, store), kept.look_for_students(data, students)
    check_known(replace(uses, unreadable=uses.unreadable + found.unreadable), everything)
    plan = upkeep.plan(store.contents(), uses, least_age, now)
    doomed, young = kept.spare(kept.take_stock(students, found), least_age, now)
    garbage = [one for one in plan.garbage if upkeep.delete(one.files)] if delete else plan.garbage
    gone = [one for one in doomed if kept.delete(students, one)] if delete else doomed
    lines = [*_grouped(garbage), *map(_student_line, gone)]
    click.echo(f"{store.folder}: {'deleted' if delete else 'would be deleted'}:{'' if lines else ' nothing'}")
    for line in lines:
        click.echo(f"  - {line}")
    click.echo(_gain(garbage, gone, delete))
    if plan.young + young:
        reason = f"too young for --min-age-hours {min_age_hours:g} or perhaps still being written; all of a model age together"
        click.echo(f"kept although not in use: {plan.young + young}, {reason}")
    if left := len(plan.garbage) + len(doomed) - len(garbage) - len(gone):
        click.echo(f"kept: {left}, written or asked for while this command ran")


def _store(named: Path | None, params: Path) -> ShardStore:
    """The store that the command line names, else that of the settings."""
    place = named or config.lookup(config.read_params(params), "runtime.store")
    if not isinstance(place, str | Path):
        raise PipelineError(f"{params} has no runtime.store; name the folder of the shard store with --store")
    folder = Path(place)
    if not folder.is_dir():
        raise PipelineError(
            f"the shard store {folder} does not exist; name its folder with --store, or run a stage that fills it"
        )
    return ShardStore(folder)


def _table(sets: Sequence[ShardSet], uses: Uses) -> Table:
    nobody = "unknown" if uses.unreadable else "unused"
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in ("set", "content", "teacher", "settings"):
        table.add_column(name, no_wrap=True)
    for name in ("shards", "rows", "MB"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("used by")
    for one in sets:
        counts = (f"{one.shards:,}", f"{one.rows:,}", _megabytes(one.bytes))
        used_by = ", ".join(map(str, one.used_by)) or nobody
        table.add_row(one.name[:8], one.content, one.teacher, one.settings, *counts, used_by)
    return table


def _student_table(students: Sequence[KeptStudent], uses: StudentUses, now: float) -> Table:
    nobody = "unknown" if uses.unreadable else "unused"
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in ("student", "task", "teacher", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("MB", "age"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("used by")
    for one in students:
        used_by = ", ".join(map(str, one.used_by)) or nobody
        size, age = _megabytes(one.bytes), _age(now - one.changed_ns / 1e9)
        table.add_row(one.student, one.task or "–", one.teacher, one.state, size, age, used_by)
    return table


def _student_line(student: KeptStudent) -> str:
    return f"1 student, {_megabytes(student.bytes)} MB: {_described(student)}"


def _described(student: KeptStudent) -> str:
    """What a person recognises a student by."""
    task = f" of task {student.task}" if student.task else ""
    return f"{student.student}{task}, teacher {student.teacher}, {student.state}"


def _age(seconds: float) -> str:
    """How long ago, in the largest unit of which there are two."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _doubts(uses: Uses) -> list[str]:
    """Why what is called unused may be in use."""
    return [
        *(f"not read, so what it uses is not known: {sentence}" for sentence in uses.unreadable),
        *(f"no manifest.json below {folder}, so it uses nothing" for folder in uses.without),
    ]


def _totals(store: ShardStore, contents: Contents, sets: Sequence[ShardSet]) -> str:
    faulty = sum(upkeep.visible_fault(entry) is not None for entry in contents.entries)
    counts = [
        _counted(len(sets), "set"),
        _counted(sum(one.shards for one in sets), "shard"),
        _counted(sum(one.rows for one in sets), "row"),
        f"{_megabytes(sum(one.bytes for one in sets))} MB",
        _counted(len(contents.notes), "note"),
        _counted(len(contents.partials), "partial file"),
        f"{faulty} damaged or incomplete as far as sizes tell",
    ]
    return f"{store.folder}: {', '.join(counts)}"


def _examined(contents: Contents) -> list[Finding]:
    findings = []
    with Counter("verify", len(contents.entries), "shards") as counter:
        for entry in contents.entries:
            if finding := upkeep.examine(entry, time.time()):
                findings.append(finding)
            counter.advance(entry.receipt.rows if entry.receipt else 0)
    return findings


def _examined_students(store: StudentStore) -> list[tuple[KeptStudent, str]]:
    stock = kept.take_stock(store, StudentUses({}, ()))
    return [(student, fault) for student in stock if (fault := kept.fault_of(student))]


def _line(finding: Finding) -> str:
    return f"{finding.text}: {upkeep.describe(finding.entry)}"


def _grouped(garbage: Sequence[Garbage]) -> list[str]:
    """One line for all that has the same label."""
    groups: dict[tuple[str, str], list[Garbage]] = {}
    for one in garbage:
        groups.setdefault((one.noun, one.label), []).append(one)
    return [
        f"{_counted(len(ones), noun)}, {_megabytes(sum(one.bytes for one in ones))} MB: {label}"
        for (noun, label), ones in groups.items()
    ]


def _gain(garbage: Sequence[Garbage], students: Sequence[KeptStudent], delete: bool) -> str:
    freed = sum(one.freed for one in garbage) + sum(one.bytes for one in students)
    linked = [file for one in garbage for file in one.linked]
    text = f"{'freed' if delete else 'would free'} {freed:,} bytes ({_megabytes(freed)} MB)"
    if linked:
        held = _megabytes(sum(file.bytes for file in linked))
        text += f"; of {_counted(len(linked), 'shard')}, {held} MB, another folder has a link: they free nothing until it goes"
    return text if delete else f"{text}; nothing was deleted, --delete does it"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.2f}"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


main.add_command(list_sets, "list")
main.add_command(verify, "verify")
main.add_command(gc, "gc")

if __name__ == "__main__":
    main()
