"""Sets of the hub, folders in hub layout and folders of ``save_to_disk``, split by split. Knows datasets, not rows.

``datasets`` says which files make which split. These are then read as ``files`` are, so that a table means the same in both:
csv, tsv, JSON lines, and parquet that lies on this machine. What else datasets can load is taken as it loads it: parquet of
the hub, arrow, text, JSON arrays.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from pipeline.corpus.faults import FoundFaults
from pipeline.corpus.files import ending_of, first_line, read_file, was_saved
from pipeline.corpus.tables import Table, joined, with_classes

ENDINGS = {"csv": {".csv", ".tsv"}, "json": {".jsonl", ".ndjson", ".json"}, "parquet": {".parquet"}}
"""Of the files that are read here, by what datasets calls their kind."""

NO_OPTIONS = {"name", "version", "data_dir", "data_files", "description", "features", "sep", "delimiter", "chunksize"}
"""Of a set's configuration: what changes no cell, and the separator, which is followed."""

SplitReader = Callable[[Sequence[str], FoundFaults], Table | None]
"""Reads the wanted columns of one split, or notes why that cannot be done."""


def open_hub(hub: str, config: str | None, revision: str | None, found: FoundFaults) -> dict[str, SplitReader]:
    """The splits of a set on the hub or in a local folder; empty if it cannot be opened, which is noted."""
    import datasets  # takes seconds, and tables in files do without it

    folder = Path(hub)
    if fault := _no_set(folder, config or revision):
        found.whole(hub, fault)
        return {}
    try:
        if was_saved(folder):
            saved = datasets.load_from_disk(hub)
            return _loaded(hub, {"train": saved} if isinstance(saved, datasets.Dataset) else saved)
        builder = datasets.load_dataset_builder(hub, config, revision=revision)
        if _is_read_here(builder):
            return _files_of(hub, builder, found)
        builder.download_and_prepare()
        return _loaded(hub, builder.as_dataset())
    except Exception as error:  # its own, those of its builders, those of the network
        way_out = "; name its tables as files, in place of hub" if folder.is_dir() else ""
        found.whole(hub, f"datasets cannot load it ({first_line(error)}){way_out}")
        return {}


def _no_set(place: Path, chosen: str | None) -> str | None:
    """Why a place holds no set of which ``chosen`` could be asked for."""
    if place.is_file():
        return "it is a file; name it as files, in place of hub"
    if chosen and was_saved(place):
        return f"it was saved by datasets (save_to_disk) and has no {chosen}; leave config and revision out"
    return None


def _is_read_here(builder: Any) -> bool:
    """Whether the files of a set are such that their cells are read here and not by datasets."""
    kind, files = builder.name, _data_files(builder)
    if kind not in ENDINGS or not files or any(ending_of(Path(file)) not in ENDINGS[kind] for file in files):
        return False
    here = all(Path(file).is_file() for file in files)
    if kind == "csv":
        return True
    if kind == "json":
        return not _options(builder.config) and not any(_may_be_array(Path(file)) for file in files)
    return here and not _options(builder.config)


def _data_files(builder: Any) -> list[str]:
    return [str(file) for files in (builder.config.data_files or {}).values() for file in files]


def _options(config: Any) -> list[str]:
    """The options that a set's README.md gives for reading its files."""
    usual = type(config)()
    names = (field.name for field in fields(config) if field.name not in NO_OPTIONS)
    return [name for name in names if getattr(config, name) != getattr(usual, name)]


def _may_be_array(file: Path) -> bool:
    """Whether a file may be one JSON array; only one on this machine can be looked into."""
    if ending_of(file) != ".json":
        return False
    return not file.is_file() or file.suffix == ".gz" or file.read_bytes().lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _files_of(hub: str, builder: Any, found: FoundFaults) -> dict[str, SplitReader]:
    """The splits of a set whose files are read here."""
    separator = getattr(builder.config, "sep", None)
    if builder.name == "csv" and (fault := _unread(builder.config)):
        found.whole(hub, fault)
        return {}
    features = builder.info.features or {}
    classes = {name: kind.names for name, kind in features.items() if type(kind).__name__ == "ClassLabel"}

    def reader(split: str, files: list[str]) -> SplitReader:
        def read(wanted: Sequence[str], found: FoundFaults) -> Table | None:
            if (local := _fetched(hub, files, found)) is None:
                return None
            tables = [read_file(path, wanted, found, separator) for path in local]
            sound = [with_classes(table, classes) for table in tables if table is not None]
            return joined(f"{hub} ({split})", sound, found) if len(sound) == len(tables) else None

        return read

    return {str(split): reader(str(split), list(map(str, files))) for split, files in builder.config.data_files.items()}


def _unread(config: Any) -> str | None:
    """Why csv files are not read as their set's README.md asks."""
    options = _options(config) + ([] if len(config.sep) == 1 else ["sep"])
    if not options:
        return None
    return (
        f"its README.md asks for csv to be read with {', '.join(options)}, which is not followed here; "
        "write its tables with commas, double quotes and a header, in UTF-8"
    )


def _fetched(hub: str, files: Sequence[str], found: FoundFaults) -> list[Path] | None:
    """The files on this machine, those of a folder named as the folder is; those of the hub are downloaded."""
    import datasets

    if all(Path(file).is_file() for file in files):
        folder = Path(hub).resolve()
        paths = map(Path, files)
        return [Path(hub) / path.relative_to(folder) if path.is_relative_to(folder) else path for path in paths]
    try:
        return list(map(Path, datasets.DownloadManager().download(list(files))))
    except Exception as error:  # its own, those of the network
        found.whole(hub, f"datasets cannot download it ({first_line(error)})")
        return None


def _loaded(hub: str, splits: Mapping[Any, Any]) -> dict[str, SplitReader]:
    """The splits of a set that datasets has loaded."""

    def reader(name: str, data: Any) -> SplitReader:
        def read(wanted: Sequence[str], found: FoundFaults) -> Table | None:
            present = [column for column in wanted if column in data.column_names]
            try:
                content = data.with_format("arrow", columns=present)[:]
                columns = {column: content[column].to_pylist() for column in present}
            except Exception as error:  # its own, those of arrow
                found.whole(name, f"datasets cannot read it ({first_line(error)})")
                return None
            classes = {column: kind.names for column, kind in data.features.items() if type(kind).__name__ == "ClassLabel"}
            return with_classes(Table(name, tuple(data.column_names), columns, range(1, data.num_rows + 1)), classes)

        return read

    return {str(split): reader(f"{hub} ({split})", data) for split, data in splits.items()}
