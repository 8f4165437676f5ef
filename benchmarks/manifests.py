"""What a manifest of many shards costs to build, write, read and compare, and what DVC adds for their files."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.timing import Figure, timed
from pipeline.shards.manifest import MANIFEST_FILE, Manifest, ShardEntry, manifest_hash, training_hash
from pipeline.store.collect import stored_as, uses_of
from pipeline.store.keys import differences, hash_of
from pipeline.store.store import Store


def enlarged(manifest: Manifest, shards: int, changed: int = 0) -> Manifest:
    """The manifest with so many shards, as a run over more partitions gives it; ``changed`` of them have other examples."""
    pattern, entries = manifest.shards, []
    for number in range(shards):
        entry, examples = pattern[number % len(pattern)], hash_of([number, number < changed])
        receipt = entry.receipt.model_copy(update={"key": entry.receipt.key | {"examples": examples}, "sha256": examples})
        file = f"train-variant-{entry.variant}-{number:05d}.arrow"
        entries.append(ShardEntry(file=file, split="train", variant=entry.variant, partition=number, receipt=receipt))
    names = stored_as(*(entry.receipt.key for entry in entries))
    return manifest.model_copy(update={"shards": tuple(entries), "stored_as": tuple(names)})


def manifest_figures(folder: Path, pattern: Manifest, shards: int) -> list[Figure]:
    """Processor seconds of each use of a manifest with so many shards, and seconds of DVC's commands."""
    one, other = folder / "data" / "one", folder / "data" / "other"
    made: list[Manifest] = []
    work: dict[str, tuple[str, Callable[[], object]]] = {
        "manifest_build_s": ("entries and names in the store", lambda: made.append(enlarged(pattern, shards))),
        "manifest_write_s": ("written", lambda: made[0].save(one)),
        "manifest_read_s": ("read and validated", lambda: made.append(Manifest.read(one))),
        "manifest_hash_s": ("SHA-256 of the file", lambda: manifest_hash(one)),
        "training_hash_s": ("hash of what a training reads, reading included", lambda: training_hash(one)),
        "manifest_gc_s": ("names of two sets read for garbage collection", lambda: uses_of([folder], Store(folder / "store"))),
        "manifest_diff_s": ("keys of two manifests compared, after reading", lambda: different(made[1], made[2])),
    }
    enlarged(pattern, shards, changed=3).save(other)
    figures = []
    for key, (meaning, piece) in work.items():
        if key == "manifest_diff_s":
            made.append(Manifest.read(other))
        began = time.process_time()
        piece()
        figures.append(Figure(key, time.process_time() - began, meaning))
    assert made[0] == made[1], "what was written is read"
    assert len(different(made[1], made[2])) == min(3, shards)
    size = Figure("manifest_mb", (one / MANIFEST_FILE).stat().st_size / 1e6, "of the file")
    return [size, *figures, *dvc_figures(folder / "dvc", one / MANIFEST_FILE, made[0])]


def different(one: Manifest, other: Manifest) -> list[str]:
    """One line for each shard whose key differs."""
    pairs = zip(one.shards, other.shards, strict=True)
    return [f"{entry.file}: {line}" for entry, new in pairs for line in differences(entry.receipt.key, new.receipt.key)]


def dvc_figures(folder: Path, manifest: Path, listed: Manifest) -> list[Figure]:
    """Seconds of DVC's commands on a folder with a small file for every shard, and on one with the manifest only."""
    figures = []
    for name, files in (("shards", [entry.file for entry in listed.shards]), ("manifest", [])):
        place = folder / name
        (place / "out").mkdir(parents=True)
        for file in files:
            (place / "out" / file).write_text(file)
        (place / "out" / MANIFEST_FILE).write_bytes(manifest.read_bytes())
        dvc(place, "init", "--no-scm")
        dvc(place, "config", "cache.type", "hardlink,copy")  # as in this project
        what = f"{len(files)} files and the manifest" if files else "the manifest alone"
        for command, *rest in (("add", "out"), ("status",), ("commit", "--force")):
            seconds = timed(lambda command=command, rest=rest, place=place: dvc(place, command, *rest))  # type: ignore[misc]
            figures.append(Figure(f"dvc_{command}_{name}_s", seconds, f"dvc {command} of {what}"))
    return figures


def dvc(folder: Path, *arguments: str) -> None:
    """Run a command of DVC."""
    subprocess.run([sys.executable, "-m", "dvc", *arguments, "--quiet"], cwd=folder, check=True)
