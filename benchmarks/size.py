"""How much there is to read: lines, modules, settings, words of the README, and names that the project has given up.

python -m benchmarks.size
"""

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]

OLD_WORDS = frozenset(
    [
        "untouched",
        "scout",
        "scouts",
        "snapshot",
        "snapshots",
        "aim",
        "aims",
        "aimed",
        "score",
        "scores",
        "scored",
        "scoring",
        "answer",
        "answers",
        "answered",
        "told",
        "heed",
        "conduct",
        "fault",
        "faults",
        "faulty",
        "refuse",
        "refuses",
        "refused",
        "refusals",
        "seat",
        "guest",
        "sight",
        "landmark",
        "radius",
        "wording",
        "proposing",
        "strange",
        "making",
        "by_progress",
        "view",
        "views",
    ]
)
"""What the project calls otherwise, against every word of code, settings and documents; names are split at _ and capitals."""

EXEMPT = {"benchmarks/size.py", "pipeline/config/renamed.py", "tests/pipeline/config/test_renamed.py"}
"""Files whose subject is the old names."""

EXTERNAL = {
    *("pipeline/augment/teacher.py: score", "pipeline/models/loading.py: score", "tests/world.py: snapshots"),
    *("tests/pipeline/corpus/test_task.py: score", "tests/pipeline/evaluation/test_page.py: view"),
}
"""Names of other libraries: heads in transformers, folders of the hub's cache, metrics in scikit-learn, attributes of SVG."""

MOST_PARAMETERS = 6


def files(*folders: str, suffixes: tuple[str, ...] = (".py",)) -> list[Path]:
    """Committed files below some folders of the project, or at its top."""
    listed = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in listed.splitlines() if name.endswith(suffixes) and (path := ROOT / name).exists()]


def lines(paths: list[Path]) -> int:
    """Lines of some files, empty ones included."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def settings(path: Path) -> int:
    """Lines of a parameter file that set something."""
    return sum(bool(re.match(r"\s*[a-z_]+:", line)) for line in path.read_text(encoding="utf-8").splitlines())


def words_in(text: str) -> Iterator[str]:
    """Every word of a text in small letters; names are split at underscores and capitals, and given whole too."""
    for name in re.findall(r"[A-Za-z_]+", text):
        yield name.lower()
        yield from (part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name) if part != name)


def old_words() -> Counter[str]:
    """How often each given-up word stands in code, settings and documents, by file and word."""
    paths = files("pipeline", "stages", "tests", "benchmarks") + files("*.md", "*.yaml", "docs", suffixes=(".md", ".yaml"))
    found = Counter[str]()
    for path in dict.fromkeys(paths):
        name = str(path.relative_to(ROOT))
        if name not in EXEMPT:
            found.update(f"{name}: {word}" for word in words_in(path.read_text(encoding="utf-8")) if word in OLD_WORDS)
    return Counter({entry: count for entry, count in found.items() if entry not in EXTERNAL})


def long_signatures() -> list[str]:
    """Functions with more than six parameters, ``self`` and ``cls`` not counted."""
    found = []
    for path in files("pipeline", "stages"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                count = sum(argument.arg not in ("self", "cls") for argument in arguments)
                if count > MOST_PARAMETERS:
                    found.append(f"{path.relative_to(ROOT)}:{node.name} ({count})")
    return found


def measured() -> dict[str, int]:
    """Each figure by its name."""
    modules = [path for path in files("pipeline") if path.name != "__init__.py"]
    return {
        "lines of pipeline/ and stages/": lines(files("pipeline", "stages")),
        "modules of pipeline/": len(modules),
        "entries at the top of pipeline/": len({path.relative_to(ROOT / "pipeline").parts[0] for path in modules}),
        "lines of tests/": lines(files("tests")),
        "setting lines of params.yaml": settings(ROOT / "params.yaml"),
        "words of README.md": len((ROOT / "README.md").read_text(encoding="utf-8").split()),
        "old words": sum(old_words().values()),
        "functions with more than six parameters": len(long_signatures()),
    }


BARS = (10_000, 62, 10, 15_000, 75, 1_300, 0, 5)


def main() -> None:
    """Print every figure beside its bar."""
    table = Table("figure", "now", "bar")
    for (name, figure), bar in zip(measured().items(), BARS, strict=True):
        table.add_row(name, f"{figure:,}", f"≤ {bar:,}")
    Console().print(table)


if __name__ == "__main__":
    main()
