"""store: the upkeep of the shard store: what it holds, whether it is sound, what may go (no stage)."""

import time
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from pipeline import config
from pipeline.errors import PipelineError
from pipeline.progress import Counter
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
    help="Folder below which manifests say what is in use. Give one for EVERY clone that uses the store.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """Look after the shard store: what it holds, whether it is sound, what may go."""


@stage
@store_option
@params_option
@data_option
def list_sets(named: Path | None, params: Path, data: tuple[Path, ...]) -> None:
    """List the sets of shards in the store, and which folders use them.

    A set is what one pass of a teacher made: its shards differ in examples and variant alone. Nothing is hashed.
    """
    store = _store(named, params)
    contents, uses = store.contents(), look_for_uses(data, store)
    sets = upkeep.sets_of(contents, uses)
    Console(width=WIDTH, highlight=False, markup=False).print(_table(sets, uses))
    for sentence in _doubts(uses):
        click.echo(sentence)
    click.echo(_totals(store, contents, sets))


@stage
@store_option
@params_option
@click.option("--delete", is_flag=True, help="Delete what is damaged, so that the next run computes it again.")
def verify(named: Path | None, params: Path, delete: bool) -> None:
    """Hash every shard and compare it and its key with its receipt.

    Exits with 1 if anything is damaged, also where --delete has removed it.
    """
    store = _store(named, params)
    findings = _examined(store.contents())
    for finding in findings:
        if not finding.damaged:
            click.echo(f"left alone, perhaps in use: {_line(finding)}")
    damaged = [finding for finding in findings if finding.damaged]
    if damaged:
        lines = "\n  - ".join([f"{store.folder}: {len(damaged)} damaged", *map(_line, damaged)])
        raise PipelineError(lines + _ending(damaged, delete))
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
    """Say what no manifest lists any more, and with --delete delete it.

    Only finished stages have a manifest: finish or repeat a stage that was interrupted before clearing the store, else
    what it had computed counts as unused once it is old enough. Abandoned partial files go too, if older than an hour.
    """
    store = _store(named, params)
    uses = look_for_uses(data, store)
    check_known(uses, everything)
    plan = upkeep.plan(store.contents(), uses, min_age_hours * 3600, time.time())
    garbage = [one for one in plan.garbage if upkeep.delete(one.files)] if delete else plan.garbage
    click.echo(f"{store.folder}: {'deleted' if delete else 'would be deleted'}:{'' if garbage else ' nothing'}")
    for line in _grouped(garbage):
        click.echo(f"  - {line}")
    click.echo(_gain(garbage, delete))
    if plan.young:
        reason = f"too young for --min-age-hours {min_age_hours:g}; all shards of a teacher age together"
        click.echo(f"kept although not in use: {plan.young}, {reason}")
    if len(garbage) < len(plan.garbage):
        click.echo(f"kept: {len(plan.garbage) - len(garbage)}, written or asked for while this command ran")


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


def _line(finding: Finding) -> str:
    return f"{finding.text}: {upkeep.describe(finding.entry)}"


def _ending(damaged: Sequence[Finding], delete: bool) -> str:
    if not delete:
        return "\nthe next run that needs a damaged shard computes it again; --delete removes what is damaged now"
    deleted = sum([upkeep.delete(finding.entry.files) for finding in damaged])
    return f"\n{deleted} of {len(damaged)} deleted; the next run that needs them computes them again"


def _grouped(garbage: Sequence[Garbage]) -> list[str]:
    """One line for all that has the same label."""
    groups: dict[tuple[str, str], list[Garbage]] = {}
    for one in garbage:
        groups.setdefault((one.noun, one.label), []).append(one)
    return [
        f"{_counted(len(ones), noun)}, {_megabytes(sum(one.bytes for one in ones))} MB: {label}"
        for (noun, label), ones in groups.items()
    ]


def _gain(garbage: Sequence[Garbage], delete: bool) -> str:
    freed = sum(one.freed for one in garbage)
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
