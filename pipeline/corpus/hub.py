"""Splits of hub sets, folders in hub layout and folders written by ``save_to_disk``.

``datasets`` decides which files belong to which split. csv, tsv, JSON lines and local parquet are then read as under ``files``,
so that a table means the same in both places; ``datasets`` loads everything else (hub parquet, arrow, text, JSON arrays).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.corpus.files import ErrorList, Table, ending_of, first_line, read_file, was_saved, with_class_names

ENDINGS = {"csv": {".csv", ".tsv"}, "json": {".jsonl", ".ndjson", ".json"}, "parquet": {".parquet"}}
"""Endings of the files that are read here, by builder name."""

HARMLESS_OPTIONS = {"name", "version", "data_dir", "data_files", "description", "features", "sep", "delimiter", "chunksize"}
"""Builder options that change no cell, and the separator, which is supported."""

SplitReader = Callable[[Sequence[str], ErrorList], list[Table]]
"""Reads the wanted columns of one split, one table per file; the result is empty if a file cannot be read."""


def open_hub(hub: str, config: str | None, revision: str | None, errors: ErrorList) -> dict[str, SplitReader]:
    """The splits of a set on the hub or in a local folder; empty if it cannot be opened."""
    import datasets  # takes seconds, and tables in files do not need it

    folder = Path(hub)
    try:
        if folder.is_file():
            errors.add(hub, "the path is a file, but hub needs a folder or a hub id; use files for files")
        elif was_saved(folder) and (config or revision):
            errors.add(hub, f"a folder written by save_to_disk has no {config or revision}; leave config and revision out")
        elif was_saved(folder):
            saved = datasets.load_from_disk(hub)
            return _loaded(hub, {"train": saved} if isinstance(saved, datasets.Dataset) else saved)
        else:
            builder = datasets.load_dataset_builder(hub, config, revision=revision)
            if _is_read_here(builder):
                return _splits_of_files(hub, builder, errors)
            builder.download_and_prepare()
            return _loaded(hub, builder.as_dataset())
    except Exception as error:  # those of datasets, its builders and the network
        way_out = "; name its tables under files instead" if folder.is_dir() else ""
        errors.add(hub, f"datasets cannot load it ({first_line(error)}){way_out}")
    return {}


def _is_read_here(builder: Any) -> bool:
    """Whether the files of a set are read here and not by ``datasets``."""
    files = [Path(file) for names in (builder.config.data_files or {}).values() for file in names]
    if not files or not {ending_of(file) for file in files} <= ENDINGS.get(builder.name, set()):
        return False
    if builder.name == "csv":
        return True
    readable = not any(map(_may_be_array, files)) if builder.name == "json" else all(file.is_file() for file in files)
    return readable and not _options(builder.config)


def _options(config: Any) -> list[str]:
    """The reading options that the README.md of a set changes."""
    usual = type(config)()
    names = (field.name for field in fields(config) if field.name not in HARMLESS_OPTIONS)
    return [name for name in names if getattr(config, name) != getattr(usual, name)]


def _may_be_array(file: Path) -> bool:
    """Whether a file may be one JSON array; the content of remote and gzipped files is unknown."""
    if ending_of(file) != ".json":
        return False
    return not file.is_file() or file.suffix == ".gz" or file.read_bytes().lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _splits_of_files(hub: str, builder: Any, errors: ErrorList) -> dict[str, SplitReader]:
    config, separator = builder.config, getattr(builder.config, "sep", None)
    if builder.name == "csv" and (options := _options(config) + ([] if len(config.sep) == 1 else ["sep"])):
        message = f"its README.md sets csv options that are not supported ({', '.join(options)}); "
        errors.add(hub, message + "write its tables with commas, double quotes and a header, in UTF-8")
        return {}
    classes = _class_labels(builder.info.features or {})

    def read(files: list[str], wanted: Sequence[str], errors: ErrorList) -> list[Table]:
        tables = [read_file(path, wanted, errors, separator) for path in _local(hub, files, errors)]
        read = [with_class_names(table, classes) for table in tables if table is not None]
        return read if len(read) == len(tables) else []

    return {str(split): partial(read, list(map(str, files))) for split, files in config.data_files.items()}


def _local(hub: str, files: list[str], errors: ErrorList) -> list[Path]:
    """Local paths of the files: relative to a local folder, or downloaded from the hub."""
    import datasets

    paths = list(map(Path, files))
    if all(path.is_file() for path in paths):
        folder = Path(hub).resolve()
        return [Path(hub) / path.relative_to(folder) if path.is_relative_to(folder) else path for path in paths]
    try:
        return list(map(Path, datasets.DownloadManager().download(files)))
    except Exception as error:  # those of datasets and the network
        errors.add(hub, f"datasets cannot download it ({first_line(error)})")
        return []


def _loaded(hub: str, splits: Mapping[Any, Any]) -> dict[str, SplitReader]:
    """Readers of the splits that ``datasets`` has loaded."""

    def read(name: str, data: Any, wanted: Sequence[str], errors: ErrorList) -> list[Table]:
        header = tuple(data.column_names)
        present = [column for column in wanted if column in header]
        try:
            content = data.with_format("arrow", columns=present)[:]
            columns = {column: content[column].to_pylist() for column in present}
        except Exception as error:  # those of datasets and arrow
            errors.add(name, f"datasets cannot read it ({first_line(error)})")
            return []
        return [with_class_names(Table(name, header, columns, range(1, data.num_rows + 1)), _class_labels(data.features))]

    return {str(split): partial(read, f"{hub} ({split})", data) for split, data in splits.items()}


def _class_labels(features: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    return {name: kind.names for name, kind in features.items() if type(kind).__name__ == "ClassLabel"}
