"""The code behind a result: hashes of this package's syntax trees by room, and the versions of libraries."""

import ast
import importlib.metadata
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipeline.store.hashing import Key, hash_of

LIBRARIES = ("numpy", "tokenizers", "torch", "transformers")
"""Another version of these may give other tokens, other draws or other numbers."""

TRAINING_LIBRARIES = (*LIBRARIES, "accelerate")
"""The libraries that decide the result of a training."""

VALUES_IN_KEYS = frozenset({"config", "store"})
"""Rooms whose code is in no key: what they decide (values, hashes) is in the key itself."""

SHOWN = 5
"""At most so many differences are named in an error."""


class Package:
    """The sources of a package, read once."""

    def __init__(self, folder: Path) -> None:
        """Read all modules below ``folder``, the folder of the package."""
        self.name = folder.name
        self.sources = {
            ".".join(path.relative_to(folder.parent).with_suffix("").parts): path.read_text(encoding="utf-8")
            for path in sorted(folder.rglob("*.py"))
        }
        self._read: dict[str, tuple[str, set[str]]] = {}

    def code_of(self, entry_module: str) -> dict[str, str]:
        """One SHA-256 a room, cut to 32 digits, over the modules that ``entry_module`` imports, directly or not, and itself.

        It covers the syntax trees without docstrings, comments and formatting. The trees, and so the hashes, depend on the
        minor version of Python.

        Raises:
            KeyError: there is no such module.
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
        if module not in self._read:
            tree = ast.parse(self.sources[module])
            imported = {name for node in ast.walk(tree) for name in _names(node, module)} & self.sources.keys()
            self._read[module] = hash_of(ast.dump(without_docstrings(tree))), imported
        return self._read[module]


def _names(node: ast.AST, module: str) -> Iterator[str]:
    """What a node of ``module`` imports, as dotted names, those of a module's members among them."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parent = ".".join(module.split(".")[: -node.level]) if node.level else ""
        start = ".".join(part for part in (parent, node.module) if part)
        yield from (start, *(f"{start}.{alias.name}" for alias in node.names))


def without_docstrings(tree: ast.Module) -> ast.Module:
    """The tree without bare string expressions: docstrings of modules, classes, functions and attributes."""
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            if isinstance(statements := getattr(node, field, None), list):
                setattr(node, field, [statement for statement in statements if not _is_text(statement)])
    return tree


def _is_text(statement: ast.AST) -> bool:
    return (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str)
    )


PACKAGE = Package(Path(__file__).parents[1])
"""Read when the process starts: a file edited later changes nothing that this process computes, and so no key."""


@cache
def code_of(entry_module: str) -> Mapping[str, str]:
    """``Package.code_of`` of this package, as it was when the process started."""
    return PACKAGE.code_of(entry_module)


def libraries_of(names: Sequence[str]) -> dict[str, str]:
    """Public versions of the installed libraries; builds for a processor and for a GPU have the same."""
    return {name: importlib.metadata.version(name).partition("+")[0] for name in names}


def computed_by(entry_module: str, libraries: Sequence[str] = LIBRARIES) -> Key:
    """The part of a key that names what computes: the code behind a module, by room, and the versions of libraries."""
    return {"code": dict(code_of(entry_module)), "libraries": libraries_of(libraries)}


@dataclass(frozen=True)
class Build:
    """What two processes must share to compute the same."""

    sources: Mapping[str, str]
    """A hash of each module's source, by its dotted name."""
    libraries: Mapping[str, str]
    """Versions of TRAINING_LIBRARIES."""

    def differs_from(self, other: "Build") -> list[str]:
        """Names of modules that this process has imported and whose source differs, and of libraries, with both versions."""
        imported = [name for name in sorted(self.sources) if name in sys.modules]
        modules = [name for name in imported if self.sources[name] != other.sources.get(name)]
        pairs = [(name, version, other.libraries[name]) for name, version in self.libraries.items()]
        return [*modules, *(f"{name} {here} in place of {there}" for name, here, there in pairs if here != there)]


BUILD = Build({name: hash_of(source) for name, source in PACKAGE.sources.items()}, libraries_of(TRAINING_LIBRARIES))


def rejection(differing: Sequence[str]) -> str:
    """The error for a process that differs in these from the one that called it."""
    shown = ", ".join(differing[:SHOWN]) + (f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else "")
    return (
        f"a worker computes with other sources or libraries than this process: {shown}; what it made would be kept as if "
        "this process had made it. Install this package with the same constraints on every node, and start again"
    )
