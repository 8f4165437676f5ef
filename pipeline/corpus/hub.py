"""Sets of the hub, as splits of tables: their files are read like local files, ``datasets`` reads what is not a plain file."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.corpus.files import JSON_LINES, ErrorList, Table, ending_of, first_line, read_file, was_saved, with_class_names

BLANK = b"\xef\xbb\xbf \t\r\n"
"""Bytes before the first value of a JSON file."""

HUB_ENDINGS = {"csv": {".csv", ".tsv"}, "json": {*JSON_LINES}, "parquet": {".parquet"}}
"""Endings of the files of a hub set that ``read_file`` reads, by the name of the builder; ``datasets`` reads all others."""

HARMLESS_OPTIONS = {"name", "version", "data_dir", "data_files", "description", "features", "sep", "delimiter", "chunksize"}
"""Builder options that change no cell, and the separator."""

SplitReader = Callable[[Sequence[str], ErrorList], list[Table]]
"""Reads the wanted columns of one split; the list is empty if a file cannot be read."""


def open_hub(hub: str, config: str | None, revision: str | None, errors: ErrorList) -> dict[str, SplitReader]:
    """The splits of a set on the hub or in a local folder; empty if it cannot be opened."""
    import datasets  # takes seconds, and tables in files do not need it

    folder = Path(hub)
    try:
        if folder.is_file():
            errors.add(hub, "the path is a file, but hub needs a folder or a hub id; use files for files")
            return {}
        if was_saved(folder) and (config or revision):
            errors.add(hub, f"a folder written by save_to_disk has no {config or revision}; leave config and revision out")
            return {}
        if was_saved(folder):
            loaded = datasets.load_from_disk(hub)
        else:
            builder = datasets.load_dataset_builder(hub, config, revision=revision)
            is_read_here = _is_read_here(builder)
            options = _options(builder.config) if is_read_here else []
            if builder.name == "csv" and options:
                message = f"its README.md sets csv options that are not supported ({', '.join(options)}); "
                errors.add(hub, message + "write its tables with commas, double quotes and a header, in UTF-8")
                return {}
            if is_read_here and not options:
                return {str(split): partial(_read_files, hub, builder, split) for split in builder.config.data_files}
            if builder.name == "csv":  # texts such as NA are no missing values
                builder = datasets.load_dataset_builder(hub, config, revision=revision, keep_default_na=False)
            builder.download_and_prepare()
            loaded = builder.as_dataset()
    except Exception as error:  # those of datasets, its builders and the network
        way_out = "; name its tables under files instead" if folder.is_dir() else ""
        errors.add(hub, f"datasets cannot load it ({first_line(error)}){way_out}")
        return {}
    splits = {"train": loaded} if isinstance(loaded, datasets.Dataset) else loaded
    return {str(split): partial(_read_split, f"{hub} ({split})", data) for split, data in splits.items()}


def _is_read_here(builder: Any) -> bool:
    """Whether ``read_file`` can read the files of a set; one JSON array is left to ``datasets``."""
    files = [Path(file) for names in (builder.config.data_files or {}).values() for file in names]
    if not files or not {ending_of(file) for file in files} <= HUB_ENDINGS.get(builder.name, set()):
        return False
    unclear = [file for file in files if ending_of(file) == ".json"]
    return all(file.is_file() and file.read_bytes().lstrip(BLANK).startswith(b"{") for file in unclear)


def _options(config: Any) -> list[str]:
    """The reading options that the README.md of a set changes."""
    usual = vars(type(config)())
    changed = [name for name, value in vars(config).items() if name not in HARMLESS_OPTIONS and value != usual.get(name)]
    return changed + (["sep"] if len(getattr(config, "sep", ",")) != 1 else [])


def _read_files(hub: str, builder: Any, split: Any, wanted: Sequence[str], errors: ErrorList) -> list[Table]:
    """The tables of a split, one per file; files of the hub are downloaded."""
    import datasets

    try:
        names = [str(name) for name in builder.config.data_files[split]]
        paths = names if all(Path(name).is_file() for name in names) else datasets.DownloadManager().download(names)
    except Exception as error:  # those of datasets and the network
        errors.add(hub, f"datasets cannot download it ({first_line(error)})")
        return []
    tables = [read_file(Path(path), wanted, errors, getattr(builder.config, "sep", None)) for path in paths]
    classes = _class_labels(builder.info.features or {})
    read = [with_class_names(table, classes) for table in tables if table is not None]
    return read if len(read) == len(tables) else []


def _class_labels(features: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    return {name: kind.names for name, kind in features.items() if type(kind).__name__ == "ClassLabel"}


def _read_split(name: str, data: Any, wanted: Sequence[str], errors: ErrorList) -> list[Table]:
    header = tuple(data.column_names)
    present = [column for column in wanted if column in header]
    try:
        content = data.with_format("arrow", columns=present)[:]
        columns = {column: content[column].to_pylist() for column in present}
    except Exception as error:  # those of datasets and arrow
        errors.add(name, f"datasets cannot read it ({first_line(error)})")
        return []
    return [with_class_names(Table(name, header, columns, range(1, data.num_rows + 1)), _class_labels(data.features))]
