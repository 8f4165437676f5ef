"""What every stage's command shares: what went wrong is printed as a sentence, and libraries keep quiet."""

import functools
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from safetensors import SafetensorError

from pipeline.config.errors import PipelineError, last_line
from pipeline.store.files import check_replaceable

RAW = Path("data/raw")
"""What dvc.yaml names as that which the pipeline is fed from."""

OUT_OF_MEMORY = "OutOfMemoryError"
"""What torch calls the error of a device that is full; by name, so that a help text does not wait for torch."""

MARKS = "marks"
"""Of a command's function: files by which it knows the folders that it replaces."""

WRITTEN = ("out", "cost")
"""Options that name what is written; all others name what is read."""

params_option = click.option(
    "--params",
    default="params.yaml",
    show_default=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with the settings.",
)


plan_option = click.option("--plan", is_flag=True, help="Say what would be computed and how much disk it takes; write nothing.")


def folder_option(flag: str, meaning: str, required: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """An option that names a folder."""
    return click.option(flag, required=required, type=click.Path(path_type=Path, file_okay=False), help=meaning)


def out_option(meaning: str, *marks: str, required: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The option --out of a command that replaces the folder it names; ``marks`` are files that it writes into every one."""
    option = click.option("--out", required=required, type=click.Path(path_type=Path, file_okay=False), help=meaning)

    def add(function: Callable[..., None]) -> Callable[..., None]:
        setattr(function, MARKS, marks)
        return option(function)

    return add


def note_unseen(*paths: str | None) -> None:
    """Tell of what is read that it is on this machine and not below the folder that DVC looks at."""
    local = [path for path in paths if path is not None and Path(path).exists()]
    for path in dict.fromkeys(local):
        if not Path(os.path.abspath(path)).is_relative_to(RAW.absolute()):  # noqa: PTH100 - a link stays
            click.echo(f"note: {path} lies outside {RAW}; DVC does not see when it changes")


def check_task(task: str, place: Path, what: str, found: str) -> None:
    """Reject the products of another task than that which is named: settings of both would be mixed."""
    if found != task:
        raise PipelineError(f"{place} holds the {what} of {found}, not of {task}")


def stage(function: Callable[..., None]) -> click.Command:
    """Make a click command of a stage; its docstring is the help text."""

    @functools.wraps(function)
    def run(**arguments: Any) -> None:
        _quiet_libraries()
        try:
            if not arguments.get("plan"):  # which writes nothing
                _check_out(getattr(function, MARKS, None), arguments)
            function(**arguments)
        except (PipelineError, OSError, SafetensorError) as error:
            raise click.ClickException(str(error) or type(error).__name__) from error
        except Exception as error:
            if type(error).__name__ != OUT_OF_MEMORY:
                raise
            raise click.ClickException(f"{last_line(error)}; smaller batches need less memory") from error

    return click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})(run)


def check_apart(out: Path, what: str, place: str | Path) -> None:
    """Reject to replace a folder in which something lies that is read."""
    if Path(place).exists() and Path(place).resolve().is_relative_to(out.resolve()):
        raise PipelineError(f"--out {out} would replace {what}, {place}; name another folder")


def _check_out(marks: Sequence[str] | None, arguments: Mapping[str, Any]) -> None:
    """Reject a folder that a command would replace and must not; one without ``marks`` replaces none."""
    out = arguments.get("out")
    if marks is None or out is None:
        return
    for name, place in arguments.items():
        if isinstance(place, Path) and name not in WRITTEN:
            check_apart(out, f"what --{name} names", place)
    check_replaceable(out, marks)


def _quiet_libraries() -> None:
    """Progress bars and start-up notes of libraries drown what a stage has to say."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("torch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="torch|transformers|accelerate")
