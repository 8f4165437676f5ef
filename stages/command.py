"""What every stage's command shares: what went wrong is printed as a sentence, and libraries keep quiet."""

import functools
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from safetensors import SafetensorError

from pipeline.errors import PipelineError, last_line
from pipeline.files import check_replaceable

OUT_OF_MEMORY = "OutOfMemoryError"
"""What torch calls the error of a device that is full; by name, so that a help text does not wait for torch."""

params_option = click.option(
    "--params",
    default="params.yaml",
    show_default=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with the settings.",
)


plan_option = click.option(
    "--plan", is_flag=True, help="Say what would be computed, how much disk and time it takes, and write nothing."
)


def folder_option(flag: str, meaning: str, required: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """An option that names a folder."""
    return click.option(flag, required=required, type=click.Path(path_type=Path, file_okay=False), help=meaning)


def out_option(meaning: str, *marks: str, required: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The option --out of a command that replaces the folder it names; ``marks`` are files that it writes into every one."""

    def unharmed(_: click.Context, __: click.Parameter, out: Path | None) -> Path | None:
        try:
            if out is not None:
                check_replaceable(out, marks)
        except PipelineError as fault:
            raise click.BadParameter(str(fault)) from fault
        return out

    return click.option(
        "--out", required=required, type=click.Path(path_type=Path, file_okay=False), callback=unharmed, help=meaning
    )


def check_task(task: str, place: Path, what: str, found: str) -> None:
    """Refuse the products of another task than that which is named: settings of both would be mixed."""
    if found != task:
        raise PipelineError(f"{place} holds the {what} of {found}, not of {task}")


def stage(function: Callable[..., None]) -> click.Command:
    """Make a click command of a stage; its docstring is the help text."""

    @functools.wraps(function)
    def run(**arguments: Any) -> None:
        _quiet_libraries()
        try:
            _check_out(arguments)
            function(**arguments)
        except (PipelineError, OSError, SafetensorError) as error:
            raise click.ClickException(str(error) or type(error).__name__) from error
        except Exception as error:
            if type(error).__name__ != OUT_OF_MEMORY:
                raise
            raise click.ClickException(f"{last_line(error)}; smaller batches need less memory") from error

    return click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})(run)


def _check_out(arguments: Mapping[str, Any]) -> None:
    """Refuse to write where what is read lies: a folder that is written is replaced as a whole."""
    places = {name: place for name, place in arguments.items() if isinstance(place, Path)}
    out = places.pop("out", None)
    for name, place in places.items():
        if out is not None and place.resolve().is_relative_to(out.resolve()):
            raise PipelineError(f"--out {out} would replace what --{name} names, {place}; name another folder")


def _quiet_libraries() -> None:
    """Progress bars and start-up notes of libraries drown what a stage has to say."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("torch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="torch|transformers|accelerate")
