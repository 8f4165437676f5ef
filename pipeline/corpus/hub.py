"""Splits of hub sets, folders in hub layout and folders written by ``save_to_disk``, as ``datasets`` loads them."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.corpus.files import ErrorList, Table, first_line, was_saved, with_class_names

SplitReader = Callable[[Sequence[str], ErrorList], list[Table]]
"""Reads the wanted columns of one split; the result is empty if it cannot be read."""


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
            if builder.name == "csv":  # texts such as NA are no missing values
                builder = datasets.load_dataset_builder(hub, config, revision=revision, keep_default_na=False)
            builder.download_and_prepare()
            loaded = builder.as_dataset()
    except Exception as error:  # those of datasets, its builders and the network
        way_out = "; name its tables under files instead" if folder.is_dir() else ""
        errors.add(hub, f"datasets cannot load it ({first_line(error)}){way_out}")
        return {}
    splits = {"train": loaded} if isinstance(loaded, datasets.Dataset) else loaded
    return {str(split): partial(_read, f"{hub} ({split})", data) for split, data in splits.items()}


def _read(name: str, data: Any, wanted: Sequence[str], errors: ErrorList) -> list[Table]:
    header = tuple(data.column_names)
    present = [column for column in wanted if column in header]
    try:
        content = data.with_format("arrow", columns=present)[:]
        columns = {column: content[column].to_pylist() for column in present}
    except Exception as error:  # those of datasets and arrow
        errors.add(name, f"datasets cannot read it ({first_line(error)})")
        return []
    classes = {column: kind.names for column, kind in data.features.items() if type(kind).__name__ == "ClassLabel"}
    return [with_class_names(Table(name, header, columns, range(1, data.num_rows + 1)), classes)]
