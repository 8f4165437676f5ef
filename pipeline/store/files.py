"""Files and folders that are complete or absent: write under a temporary name, sync, rename."""

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
"""Prefix of temporary names; safe to delete when no stage runs."""

SKIPPED_FILE = "skipped.json"
"""The only file of a student's folder for a task that ``students.<name>.tasks`` excludes."""

PLACEHOLDERS = frozenset({".gitignore", ".gitkeep", ".DS_Store", SKIPPED_FILE})
"""Files that a folder without results may have; any other hidden name, such as .git, may be a person's work."""


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

    If ``path`` is a link, its target is replaced.

    Raises:
        NotADirectoryError: ``path`` is no folder; raised before the block begins.
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
        _replace(partial, path)
        _sync(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_replaceable(path: Path, marks: Sequence[str]) -> None:
    """Reject the replacement of a folder that is not empty and lacks one of ``marks``, the files that its writer always writes.

    Raises:
        PipelineError: the folder may hold a person's work, or the process works in it.
    """
    if Path.cwd().is_relative_to(path.resolve()):
        raise PipelineError(f"{path} would be replaced as a whole, and this command runs in it; name another folder")
    if not path.is_dir() or {entry.name for entry in path.iterdir()} <= PLACEHOLDERS:
        return
    if missing := [mark for mark in marks if not (path / mark).is_file()]:
        raise PipelineError(
            f"{path} would be replaced as a whole, but it is not empty and was not written by this command (it has no "
            f"{', no '.join(missing)}); nothing was changed, name another folder"
        )


def _replace(folder: Path, path: Path) -> None:
    """Rename a folder to ``path``; an existing folder is moved aside first, and back if that fails."""
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
    """Flush a folder and everything in it to disk."""
    for path in [*sorted(folder.rglob("*")), folder]:
        _sync(path)


def complete(folder: Path) -> None:
    """Flush a new folder to disk; its files get the mode of newly created files, except hard links, which keep theirs.

    Some libraries write weights that only their owner can read.
    """
    mode = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_nlink == 1:
            path.chmod(mode)
    sync_tree(folder)


def link(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it if the file system has no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        with written_whole(target) as partial:
            shutil.copyfile(source, partial)


def partial_name(path: Path) -> Path:
    """A temporary name that is unique among all writers, also among machines that share a disk."""
    return path.parent / f"{PARTIAL}{secrets.token_hex(6)}-{path.name}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
