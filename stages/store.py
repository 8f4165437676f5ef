"""store: lists, verifies and cleans the store of results (not a DVC stage)."""

import time
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

import click
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from pipeline.config import params as config
from pipeline.config.errors import PipelineError
from pipeline.config.params import Settings
from pipeline.config.settings import RuntimeSettings
from pipeline.store import collect
from pipeline.store.collect import Item, Uses
from pipeline.store.store import Store, open_store
from stages.command import params_option, stage


class Needs(Settings):
    runtime: RuntimeSettings


WIDTH = 200
"""Most columns of the printed table, on a terminal or not."""

store_option = click.option(
    "--store",
    "named",
    help="Folder or URL of the store; default: runtime.store of the settings.",
)
data_option = click.option(
    "--data",
    multiple=True,
    default=("data",),
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder with the manifests, lineages and notes that list the entries in use; give one for EVERY clone of the project.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """List, verify and clean the store of results."""


@stage
@store_option
@params_option
@data_option
def list_items(named: str | None, params: Path, data: tuple[Path, ...]) -> None:
    """List the entries of the store and the folders that use them; hashes nothing."""
    store = _store(named, params)
    uses = collect.uses_of(data, store)
    items = collect.items_of(store, uses)
    table = Table("entries", "MB", "last used", "state", "content", "used by", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for (state, label, used_by), group in groupby(items, key=lambda item: (item.state, item.label, item.used_by)):
        ones = list(group)
        age = f"{(time.time() - max(item.size.touched for item in ones)) / 3600:.1f} h ago"
        users = ", ".join(map(str, used_by)) or ("unknown" if uses.unreadable else "unused")
        table.add_row(str(len(ones)), _megabytes(ones), age, state, label, users)
    Console(width=WIDTH, highlight=False, markup=False).print(table)
    for error in uses.unreadable:
        click.echo(f"not read, so the entries that it uses are not known: {error}")
    for folder in uses.without:
        click.echo(f"no {collect.MANIFEST_FILE} below {folder}, so it uses nothing")
    click.echo(f"{store}: {len(items)} entries, {_megabytes(items)} MB")


@stage
@store_option
@params_option
@click.option("--delete", is_flag=True, help="Delete damaged entries, so that the next run computes them again.")
def verify(named: str | None, params: Path, delete: bool) -> None:
    """Hash every file of every entry and compare it with its receipt.

    Exits with 1 if an entry is damaged, even if --delete has removed it.
    """
    store = _store(named, params)
    items = collect.items_of(store, Uses({}, (), ()))
    damaged = [(item, error) for item in items if (error := collect.error_of(store, item))]
    if damaged:
        lines = "".join(f"\n  - {error}: {item.label}" for item, error in damaged)
        ending = "the next run that needs a damaged entry computes it again; --delete removes them now"
        if delete:
            gone = sum(collect.delete(store, item) for item, _ in damaged)
            ending = f"{gone} of {len(damaged)} deleted; the next run that needs them computes them again"
        raise PipelineError(f"{store}: {len(damaged)} damaged{lines}\n{ending}")
    click.echo(f"{store}: nothing is damaged")


@stage
@store_option
@params_option
@data_option
@click.option(
    "--min-age-hours",
    default=24.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Keep entries written or read within this many hours; must exceed the longest run, since entries that a running job "
    "reads but no manifest lists yet (models, texts, probes) count as unused.",
)
@click.option("--everything", is_flag=True, help="Continue although a --data folder has no manifest: nothing there is in use.")
@click.option("--delete", is_flag=True, help="Delete; without it nothing is deleted.")
def gc(named: str | None, params: Path, data: tuple[Path, ...], min_age_hours: float, everything: bool, delete: bool) -> None:
    """List the entries that no output uses, and delete them with --delete.

    Only finished stages have a manifest: finish or repeat an interrupted stage first; otherwise its results count as unused
    once they are old enough. Abandoned partial folders and checkpoints of unfinished trainings are included if older than an
    hour; a training that runs on this machine is never deleted.
    """
    store = _store(named, params)
    uses = collect.uses_of(data, store)
    collect.check_known(uses, everything)
    doomed, young = collect.garbage(collect.items_of(store, uses), min_age_hours * 3600)
    gone = [item for item in doomed if collect.delete(store, item)] if delete else doomed
    click.echo(f"{store}: {'deleted' if delete else 'would be deleted'}:{'' if gone else ' nothing'}")
    for (state, label), group in groupby(gone, key=lambda item: (item.state, item.label)):
        ones = list(group)
        click.echo(f"  - {len(ones)} {state}, {_megabytes(ones)} MB: {label}")
    freed = sum(item.size.bytes - item.size.shared for item in gone)
    click.echo(f"{'freed' if delete else 'would free'} {freed:,} bytes{'' if delete else '; --delete deletes them'}")
    if shared := sum(item.size.shared for item in gone):
        click.echo(f"{shared:,} more bytes are hard links of another folder and are freed with it")
    if young:
        click.echo(f"kept although unused: {young}, younger than --min-age-hours {min_age_hours:g} or being written")
    if left := len(doomed) - len(gone):
        click.echo(f"kept: {left}, written, read or locked while this command ran")


def _store(named: str | None, params: Path) -> Store:
    """The store that the command line names, else that of the settings."""
    place = named or config.lookup(config.read_params(params), "runtime.store")
    if not isinstance(place, str):
        raise PipelineError(f"{params} has no runtime.store; name the folder of the store with --store")
    if "://" in place:
        runtime = config.load(params, Needs, runtime="runtime").runtime
        try:
            return open_store(RuntimeSettings.model_validate(runtime.model_dump() | {"store": place}))
        except ValidationError as error:
            raise PipelineError(f"--store {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    if not Path(place).is_dir():
        raise PipelineError(f"the store {place} does not exist; name its folder with --store, or run a stage that fills it")
    return Store(Path(place))


def _megabytes(items: Iterable[Item]) -> str:
    return f"{sum(item.size.bytes for item in items) / 1e6:,.2f}"


main.add_command(list_items, "list")
main.add_command(verify, "verify")
main.add_command(gc, "gc")

if __name__ == "__main__":
    main()
