"""Files that are whole or absent: write under another name, sync, rename. Knows bytes and paths, not what they mean."""

import errno
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.config.errors import PipelineError

PARTIAL = ".partial-"
"""Prefix of what is being written; never part of a product, safe to delete when no stage runs."""

PLACEHOLDERS = frozenset({".gitignore", ".gitkeep", ".DS_Store"})
"""What may lie in a folder that counts as empty; another hidden name, such as .git, may be all that somebody has."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; rename it to ``path`` only if the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(path)
    try:
        yield partial
        _sync(partial)
        partial.replace(path)
        _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a plain value as indented JSON, keys in the order given."""
    with written_whole(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


@contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """Give an empty temporary folder; it replaces ``path`` only if the block ends without an error.

    What was there stays whole until the new folder has taken its place; where ``path`` is a link, what it points to is
    replaced. New files become readable for whoever the folder is: some libraries write weights for their owner alone.

    Raises:
        NotADirectoryError: something else than a folder is there; raised before the block begins.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    partial = partial_name(path)
    partial.mkdir()
    try:
        yield partial
        complete(partial)
        _take_place(partial, path)
        _sync(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_replaceable(path: Path, marks: Sequence[str]) -> None:
    """Reject to have a folder replaced that was not written as such a folder is: it may hold what nothing brings back.

    Args:
        path: may be absent, or empty but for ``PLACEHOLDERS``.
        marks: names of files that every folder of its kind has.

    Raises:
        PipelineError: it lacks one of them, or the process works within it.
    """
    if Path.cwd().is_relative_to(path.resolve()):
        raise PipelineError(f"{path} would be replaced as a whole, and this command runs in it; name another folder")
    if not path.is_dir() or {entry.name for entry in path.iterdir()} <= PLACEHOLDERS:
        return
    if missing := [mark for mark in marks if not (path / mark).is_file()]:
        raise PipelineError(
            f"{path} would be replaced as a whole, but it is not empty and was not written by this command (it has no "
            f"{', no '.join(missing)}); nothing in it was touched, name another folder"
        )


def _take_place(folder: Path, path: Path) -> None:
    """Rename a folder to ``path``; the one that is there is moved aside first, and back if that fails, then deleted."""
    aside = partial_name(path)
    try:
        path.replace(aside)
    except FileNotFoundError:
        folder.replace(path)
        return
    try:
        folder.replace(path)
    except OSError:
        aside.replace(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def sync_tree(folder: Path) -> None:
    """See to it that everything in a folder is on the disk."""
    for path in sorted(folder.rglob("*")):
        _sync(path)
    _sync(folder)


def complete(folder: Path) -> None:
    """Flush a new folder to disk; its files get the mode of newly created files, except hard links, which keep theirs."""
    mode = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_nlink == 1:
            path.chmod(mode)
    sync_tree(folder)


def partial_name(path: Path) -> Path:
    """A name of its own for every writer, also for those of other machines on a shared disk."""
    return path.parent / f"{PARTIAL}{secrets.token_hex(6)}-{path.name}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
