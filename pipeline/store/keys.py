"""Keys: the named hashes, settings, code and library versions that decide a result, and SHA-256 of files and values."""

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

Key = dict[str, Any]
"""Named hashes and settings that decide a result's bytes; printed, compared and diffed by name."""

LIBRARIES = ("numpy", "tokenizers", "torch", "transformers")
"""Another version of these may give other tokens, draws or numbers."""

TRAINING_LIBRARIES = (*LIBRARIES, "accelerate")

VALUES_IN_KEYS = frozenset({"config", "store"})
"""Rooms whose code is in no key: what they decide (values, hashes) is in the key itself."""

SHOWN = 5
"""Most differences that an error names."""


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces, so that equal values give equal bytes; NaN raises ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def hash_of(value: Any) -> str:
    """The SHA-256 of a plain value's canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def key_hash(key: Key) -> str:
    """The name under which the store keeps the result of a key."""
    return hash_of(key)[:32]


def differences(wanted: Key, found: Key) -> list[str]:
    """One line for each name whose value differs between two keys."""

    def short(value: Any) -> str:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return text[:12] + "…" if isinstance(value, str) and len(text) > 24 else text

    names = [name for name in sorted(wanted.keys() | found.keys()) if wanted.get(name) != found.get(name)]
    return [f"{name}: {short(wanted.get(name))} wanted, {short(found.get(name))} found" for name in names]


class Package:
    """The sources of a package, read once."""

    def __init__(self, folder: Path) -> None:
        self.sources = {
            ".".join(path.relative_to(folder.parent).with_suffix("").parts): path.read_text(encoding="utf-8")
            for path in sorted(folder.rglob("*.py"))
        }
        self._parsed: dict[str, tuple[str, set[str]]] = {}

    def code_of(self, entry_module: str) -> dict[str, str]:
        """One SHA-256 per room, cut to 32 digits, over ``entry_module`` and all modules that it imports, directly or not.

        It covers the syntax trees without docstrings, comments and formatting. The trees depend on the minor version of Python.
        """
        rooms: dict[str, dict[str, str]] = {}
        for module in sorted(self.closure(entry_module)):
            room = module.split(".")[1]
            if room not in VALUES_IN_KEYS:
                rooms.setdefault(room, {})[module] = self._module(module)[0]
        return {room: hash_of(trees)[:32] for room, trees in rooms.items()}

    def closure(self, entry_module: str) -> set[str]:
        """A module and all modules of the package that it imports, anywhere in it, directly or not."""
        found, waiting = {entry_module}, [entry_module]
        while waiting:
            new = self._module(waiting.pop())[1] - found
            found |= new
            waiting += new
        return found

    def _module(self, module: str) -> tuple[str, set[str]]:
        """The hash of a module's tree, and the modules of the package that it imports."""
        if module not in self._parsed:
            tree = ast.parse(self.sources[module])
            imported = {name for node in ast.walk(tree) for name in _imported_names(node, module)} & self.sources.keys()
            self._parsed[module] = hash_of(ast.dump(_WithoutTexts().visit(tree))), imported
        return self._parsed[module]


def _imported_names(node: ast.AST, module: str) -> Iterator[str]:
    """Dotted names that a node of ``module`` imports, those of a module's members among them."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        start = importlib.util.resolve_name("." * node.level + (node.module or ""), module.rpartition(".")[0])
        yield from (start, *(f"{start}.{alias.name}" for alias in node.names))


class _WithoutTexts(ast.NodeTransformer):
    """Removes bare string expressions: docstrings of modules, classes, functions and attributes."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else node


PACKAGE = Package(Path(__file__).parents[1])
"""Read when the process starts: a file edited later changes nothing that this process computes, and so no key."""


@cache
def code_of(entry_module: str) -> dict[str, str]:
    """``Package.code_of`` of this package."""
    return PACKAGE.code_of(entry_module)


def libraries_of(names: Sequence[str]) -> dict[str, str]:
    """Public versions of installed libraries; builds for a CPU and for a GPU have the same."""
    return {name: importlib.metadata.version(name).partition("+")[0] for name in names}


def computed_by(entry_module: str, libraries: Sequence[str] = LIBRARIES) -> Key:
    """The part of a key that names the code behind a module, by room, and the versions of libraries."""
    return {"code": dict(code_of(entry_module)), "libraries": libraries_of(libraries)}


@dataclass(frozen=True)
class Build:
    """What two processes must share to compute the same."""

    sources: Mapping[str, str]
    """A hash of each module's source, by its dotted name."""
    libraries: Mapping[str, str]
    """Versions of TRAINING_LIBRARIES."""

    def differs_from(self, other: "Build") -> list[str]:
        """Names of imported modules whose source differs, and of libraries, with both versions."""
        imported = [name for name in sorted(self.sources) if name in sys.modules]
        modules = [name for name in imported if self.sources[name] != other.sources.get(name)]
        pairs = [(name, version, other.libraries[name]) for name, version in self.libraries.items()]
        return [*modules, *(f"{name} {here} in place of {there}" for name, here, there in pairs if here != there)]


BUILD = Build({name: hash_of(source) for name, source in PACKAGE.sources.items()}, libraries_of(TRAINING_LIBRARIES))


def rejection(differing: Sequence[str]) -> str:
    """The error for a process that differs in these from the one that called it."""
    shown = ", ".join(differing[:SHOWN]) + (f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else "")
    return (
        f"a worker uses other sources or libraries than this process: {shown}; its results would be stored as this process's. "
        "Install this package with the same constraints on every node, and start again"
    )
