import hashlib
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml
from click.testing import CliRunner, Result

from pipeline.corpus.task import Task
from stages.command import RAW
from stages.prepare import checkpoint_of_scout, main

ROOT = Path(__file__).parents[2]
ROWS = [(f"text {number}", ("bad", "good")[number % 2]) for number in range(40)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(path: Path, rows: list[tuple[Any, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{text},{label}\n" for text, label in [("text", "label"), *rows]), encoding="utf-8")


def run(
    folder: Path, kind: str = "classification", metric: str = "accuracy", teacher: dict[str, Any] | None = None, **corpus: Any
) -> Result:
    keys = {"files": f"{RAW}/x.csv", "text": "text", "label": "label", "dev": 0.2, "test": 0.3, "duplicates": "error"}
    task = {"kind": kind, "metric": metric, "corpus": keys | corpus, "teacher": teacher or {"model": "weights"}}
    task |= {"words": {"model": "words"}, "aim": "scout", "augment": {"steps": 1}}
    params = {"tasks": {"movies": task}, "scout": {"start": {"checkpoint": "small"}}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    return CliRunner().invoke(main, ["--task", "movies", "--out", "out/movies"])


def hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def test_the_splits_and_the_task_are_written_and_counted(folder: Path) -> None:
    table(folder / RAW / "x.csv", ROWS)
    result = run(folder)
    assert result.exit_code == 0, result.output
    splits = {name: pyarrow.parquet.read_table(folder / f"out/movies/{name}.parquet") for name in ("train", "dev", "test")}
    assert sum(table.num_rows for table in splits.values()) == len(ROWS)
    for line, (name, content) in zip(result.output.splitlines(), splits.items(), strict=True):
        labels = content["label"].to_pylist()
        counted = f"bad {labels.count(0)}, good {labels.count(1)}"
        assert line.split() == f"{name} {content.num_rows} rows: {counted}".split()
    assert Task.read(folder / "out/movies") == Task(
        name="movies", kind="classification", metric="accuracy", labels=("bad", "good"), pair=False
    )


def test_the_masked_language_model_depends_on_texts_and_not_on_labels(folder: Path) -> None:
    found = []
    files = {split: f"{RAW}/{split}.csv" for split in ("train", "dev", "test")}
    for first in (("text 0", "bad"), ("text 0", "good"), ("text 0 more", "bad")):
        parts = [[first, *ROWS[1:24]], ROWS[24:32], ROWS[32:]]
        for path, part in zip(files.values(), parts, strict=True):
            table(folder / path, part)
        assert run(folder, files=files, dev=None, test=None).exit_code == 0
        found.append(hashes(folder / "out/movies"))
    assert {name for name in found[0] if found[0][name] != found[1][name]} == {"train.parquet"}
    assert {name for name in found[0] if found[0][name] != found[2][name]} == {"train.parquet", "words_start.json"}


@pytest.mark.parametrize(
    ("aim", "sections", "found"),
    [
        ("teacher", {"scout": {"start": {"checkpoint": "other"}}}, None),
        ("scout", {"scout": {"layers": 3}}, "usual"),
        ("scout", {"scout": {"start": "teacher"}}, None),
        ("scout", {"scout": {"start": {"checkpoint": "small"}}}, "small"),
    ],
)
def test_a_scout_starts_from_what_its_section_or_else_the_section_distill_says(
    aim: str, sections: dict[str, Any], found: str | None
) -> None:
    content = {"tasks": {"movies": {"aim": aim}}, "distill": {"start": {"checkpoint": "usual"}}}
    assert checkpoint_of_scout(content | sections, "movies") == found


def test_texts_that_the_teacher_does_not_know_are_an_error_or_noted_and_one_that_is_absent_is_left_to_later_stages(
    folder: Path, teacher: Path, hub: Path
) -> None:
    table(folder / RAW / "x.csv", ROWS)
    for model in (str(teacher), "org/teacher"):
        result = run(folder, teacher={"model": model, "max_length": 8})
        assert result.exit_code == 1
        assert f"\n  - the tokenizer of {model}: all tokens of the texts are unknown" in result.output
        assert not (folder / "out").exists()
    shutil.copytree(teacher, folder / "clf")
    (folder / "clf" / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n", encoding="utf-8")
    for model in ("clf", "org/other"):
        assert run(folder, teacher={"model": model, "max_length": 8}).exit_code == 0
    table(folder / RAW / "x.csv", [(f"strange word{number} thing", label) for number, (_, label) in enumerate(ROWS)])
    assert "note: 67 % of the tokens" in run(folder, teacher={"model": str(teacher), "max_length": 8}).output
    assert "set it to at least 3" in run(folder, teacher={"model": str(teacher), "max_length": 2}).output


def test_an_error_writes_nothing_and_keeps_the_former_product(folder: Path) -> None:
    table(folder / RAW / "x.csv", [*ROWS, ("", "good")])
    result = run(folder)
    assert result.exit_code == 1
    assert "\n  - data/raw/x.csv, row 42: column 'text' is empty" in result.output
    assert not (folder / "out").exists()
    table(folder / RAW / "x.csv", ROWS)
    run(folder)
    before = hashes(folder / "out/movies")
    (folder / "out/movies/stale.parquet").write_text("old", encoding="utf-8")
    run(folder)
    assert hashes(folder / "out/movies") == before, "the same corpus gives the same bytes, and replaces the folder"
    assert [path.name for path in (folder / "out").iterdir()] == ["movies"]
    (folder / RAW / "x.csv").unlink()
    assert run(folder).exit_code == 1
    assert hashes(folder / "out/movies") == before


@pytest.mark.parametrize(
    ("model", "noted", "stage"),
    [("weights", "start.json", "teach"), ("words", "words_start.json", "words"), ("small", "scout_start.json", "scout")],
)
def test_a_local_model_whose_files_change_changes_what_its_stage_alone_depends_on(
    folder: Path, model: str, noted: str, stage: str
) -> None:
    table(folder / RAW / "x.csv", ROWS)
    (folder / model).mkdir()
    found = []
    for name, content in (("model.safetensors", "old"), ("README.md", "new"), ("model.safetensors", "new")):
        (folder / model / name).write_text(content, encoding="utf-8")
        assert run(folder).exit_code == 0
        found.append(hashes(folder / "out/movies"))
    assert found[0] == found[1], "a README.md is not part of a model"
    assert {name for name in found[0] if found[0][name] != found[2][name]} == {noted}
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    deps = {name: content.get("do", content)["deps"] for name, content in stages.items()}
    mentioned = {
        name: [dep for dep in deps[name] if dep in ("data/prepared/${key}", f"data/prepared/${{key}}/{noted}")] for name in deps
    }
    assert [name for name in deps if mentioned[name]] == [stage]
