"""What a process computes with: this package's sources as they were when it began, and the versions of libraries."""

import importlib.metadata
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.store.files import hash_of, sha256_of

LIBRARIES = ("numpy", "tokenizers", "torch", "transformers")
"""Those of which another version may give other tokens, other draws or other numbers."""

TRAINING_LIBRARIES = (*LIBRARIES, "accelerate")
"""Those that decide what a training comes to."""

SHOWN = 5
"""Of what another process has otherwise, so much is named."""


@dataclass(frozen=True)
class Build:
    """What two processes must share to compute the same."""

    sources: Mapping[str, str]
    """SHA-256 of each module's file, by its dotted name."""
    libraries: Mapping[str, str]
    """Public versions of TRAINING_LIBRARIES; builds for a processor and for a GPU have the same."""

    @classmethod
    def below(cls, package: Path) -> "Build":
        """The sources that lie in a package's folder now, beside the libraries that are installed."""
        paths = sorted(package.rglob("*.py"))
        sources = {".".join(path.relative_to(package.parent).with_suffix("").parts): sha256_of(path) for path in paths}
        return cls(sources, {name: importlib.metadata.version(name).partition("+")[0] for name in TRAINING_LIBRARIES})

    def naming(self, *modules: ModuleType, libraries: Sequence[str] = LIBRARIES) -> dict[str, Any]:
        """What stands in keys, so that what other sources or libraries computed is never taken for what these would.

        The hash of the modules' sources as ``code``, and the versions of ``libraries``.
        """
        code = hash_of({module.__name__: self.sources[module.__name__] for module in modules})
        return {"code": code, "libraries": {name: self.libraries[name] for name in libraries}}

    def strange_to(self, other: "Build") -> list[str]:
        """What the other has otherwise: modules that this process has imported, and libraries with both versions."""
        imported = [name for name in sorted(self.sources) if name in sys.modules]
        modules = [name for name in imported if self.sources[name] != other.sources.get(name)]
        pairs = [(name, version, other.libraries[name]) for name, version in self.libraries.items()]
        return [*modules, *(f"{name} {here} in place of {there}" for name, here, there in pairs if here != there)]


def refused(strange: Sequence[str]) -> str:
    """Why a process that has these otherwise than the one that called it may not compute for it."""
    shown = ", ".join(strange[:SHOWN]) + (f" and {len(strange) - SHOWN} more" if len(strange) > SHOWN else "")
    return (
        f"a worker computes with other sources or libraries than this process: {shown}; what it made would be kept as if "
        "this process had made it. Install this package with the same constraints on every node, and start again"
    )


BUILD = Build.below(Path(__file__).parents[1])
"""Read once: a file that is edited later changes nothing that this process computes, so it must change no key either."""
