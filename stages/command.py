"""Shared parts of the stages' commands: options, checks of folders, and errors printed as sentences."""

import functools
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from safetensors import SafetensorError

from pipeline.config.errors import PipelineError, last_line
from pipeline.store.files import check_replaceable

RAW = Path("data/raw")
"""The folder of input data that dvc.yaml tracks."""

OUT_OF_MEMORY = "OutOfMemoryError"
"""torch's error for a full device; compared by name, so that help texts do not import torch."""

MARKS = "marks"
"""Attribute of a command's function: files that every folder of its --out has."""

WRITTEN = ("out", "cost")
"""Options that name what is written; all others name what is read."""

Decorator = Callable[[Callable[..., None]], Callable[..., None]]

params_option = click.option(
    "--params",
    default="params.yaml",
    show_default=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with the settings.",
)

plan_option = click.option("--plan", is_flag=True, help="Print the work to do and the disk space it needs; write nothing.")


def folder_option(flag: str, meaning: str, required: bool = True) -> Decorator:
    """An option that names a folder."""
    return click.option(flag, required=required, type=click.Path(path_type=Path, file_okay=False), help=meaning)


def out_option(meaning: str, *marks: str, required: bool = True) -> Decorator:
    """The option --out of a command that replaces the folder it names; ``marks`` are files that it writes into every one."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        setattr(function, MARKS, marks)
        return folder_option("--out", meaning, required)(function)

    return add


def note_unseen(*paths: str | None) -> None:
    """Print a note for each local input outside the folder that DVC tracks."""
    for path in dict.fromkeys(path for path in paths if path is not None and Path(path).exists()):
        if not Path(os.path.abspath(path)).is_relative_to(RAW.absolute()):  # noqa: PTH100 - links are not resolved
            click.echo(f"note: {path} lies outside {RAW}; DVC does not see when it changes")


def check_task(task: str, place: Path, what: str, found: str) -> None:
    """Reject the products of another task."""
    if found != task:
        raise PipelineError(f"{place} holds the {what} of {found}, not of {task}")


def check_apart(out: Path, what: str, place: str | Path) -> None:
    """Reject an --out folder that contains an input."""
    if Path(place).exists() and Path(place).resolve().is_relative_to(out.resolve()):
        raise PipelineError(f"--out {out} would replace {what}, {place}; name another folder")


def stage(function: Callable[..., None]) -> click.Command:
    """Make a click command of a stage; its docstring is the help text."""

    @functools.wraps(function)
    def run(**arguments: Any) -> None:
        _quiet_libraries()
        try:
            if hasattr(function, MARKS) and arguments.get("out") and not arguments.get("plan"):
                _check_out(arguments, getattr(function, MARKS))
            function(**arguments)
        except (PipelineError, OSError, SafetensorError) as error:
            raise click.ClickException(str(error) or type(error).__name__) from error
        except Exception as error:
            if type(error).__name__ != OUT_OF_MEMORY:
                raise
            raise click.ClickException(f"{last_line(error)}; smaller batches need less memory") from error

    return click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})(run)


def _check_out(arguments: Mapping[str, Any], marks: tuple[str, ...]) -> None:
    """Reject an --out folder that contains an input or that this command has not written."""
    for name, place in arguments.items():
        if isinstance(place, Path) and name not in WRITTEN:
            check_apart(arguments["out"], f"what --{name} names", place)
    check_replaceable(arguments["out"], marks)


def _quiet_libraries() -> None:
    """Silence progress bars and start-up notes of libraries."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("torch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="torch|transformers|accelerate")
