import hashlib
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml
from click.testing import CliRunner, Result

from pipeline.corpus.task import Task
from stages.command import RAW
from stages.prepare import checkpoint_of_scout, main
from tests.world import make_task, save_teacher

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


def test_what_dvc_does_not_see_is_noted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    table(elsewhere / "x.csv", ROWS)
    table(folder / RAW / "x.csv", ROWS)
    (folder / RAW / "linked").symlink_to(elsewhere)
    noted = f"note: {elsewhere / 'x.csv'} lies outside data/raw; DVC does not see when it changes\n"
    assert run(folder, files=str(elsewhere / "x.csv")).output.endswith(noted)
    assert "lies outside" not in run(folder, files=f"{RAW}/linked/x.csv").output


def test_the_same_corpus_gives_the_same_bytes_and_replaces_the_folder(folder: Path) -> None:
    table(folder / RAW / "x.csv", ROWS)
    run(folder)
    first = hashes(folder / "out/movies")
    (folder / "out/movies/stale.parquet").write_text("old", encoding="utf-8")
    run(folder)
    assert hashes(folder / "out/movies") == first
    starts = {"start.json", "words_start.json", "scout_start.json"}
    assert set(first) == {"train.parquet", "dev.parquet", "test.parquet", "task.json", *starts}
    assert [path.name for path in (folder / "out").iterdir()] == ["movies"]


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
    ("scout", "found"),
    [
        (None, None),
        ({"layers": 3}, "usual"),
        ({"start": "teacher"}, None),
        ({"start": {"checkpoint": "small"}}, "small"),
    ],
)
def test_a_scout_starts_from_what_its_section_or_else_the_section_distill_says(
    scout: dict[str, Any] | None, found: str | None
) -> None:
    tasks = {"movies": {"aim": "teacher" if scout is None else "scout"}}
    sections = {"scout": scout or {"start": {"checkpoint": "other"}}, "distill": {"start": {"checkpoint": "usual"}}}
    assert checkpoint_of_scout({"tasks": tasks} | sections, "movies") == found
    assert checkpoint_of_scout({"tasks": {}}, "movies") is None


def test_an_error_writes_nothing_and_keeps_the_former_product(folder: Path) -> None:
    table(folder / RAW / "x.csv", [*ROWS, ("", "good")])
    result = run(folder)
    assert result.exit_code == 1
    assert "\n  - data/raw/x.csv, row 42: column 'text' is empty" in result.output
    assert not (folder / "out").exists()
    table(folder / RAW / "x.csv", ROWS)
    run(folder)
    before = hashes(folder / "out/movies")
    (folder / RAW / "x.csv").unlink()
    assert run(folder).exit_code == 1
    assert hashes(folder / "out/movies") == before


def test_errors_of_the_settings_name_their_place(folder: Path) -> None:
    result = run(folder, kind="ranking", dev=2.0)
    assert result.exit_code == 1
    assert "tasks.movies.kind: input should be 'classification' or 'regression', not 'ranking'" in result.output
    assert "tasks.movies.corpus.dev: input should be less than 1, not 2.0" in result.output


def test_values_are_printed_as_a_range_with_what_was_left_out(folder: Path) -> None:
    table(folder / RAW / "x.csv", [(f"text {number}", number / 4) for number in range(40)])
    lines = run(folder, "regression", "spearman", rows={"test": 1}).output.splitlines()
    values = pyarrow.parquet.read_table(folder / "out/movies/train.parquet")["label"].to_pylist()
    assert lines[0].endswith(f"rows: values from {min(values):g} to {max(values):g}")
    assert lines[-1].startswith("note: ")
    assert " left out of test: " in lines[-1]


def test_labels_without_rows_count_zero_and_many_labels_are_summarised(folder: Path) -> None:
    table(folder / RAW / "x.csv", ROWS)
    *splits, note = run(folder, labels=["bad", "good", "mixed"]).output.splitlines()
    assert [line.endswith(", mixed 0") for line in splits] == [True] * 3
    assert note == "note: 1 label(s) without a train row: mixed"
    table(folder / RAW / "x.csv", [*((f"text {number}", number % 13) for number in range(390)), ("bare", "")])
    train = run(folder, dev=0.05, test=0.05).output.splitlines()[0]
    assert "13 labels with " in train
    assert train.endswith("rows each, without label 1")


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


def test_texts_that_the_teacher_does_not_know_are_an_error_and_nothing_is_written(folder: Path) -> None:
    save_teacher(folder / "clf", make_task())
    table(folder / RAW / "x.csv", ROWS)
    result = run(folder, teacher={"model": "clf", "max_length": 8})
    assert result.exit_code == 1
    assert "\n  - the tokenizer of clf: all tokens of the texts are unknown" in result.output
    assert not (folder / "out").exists()


def test_what_looks_like_a_mistake_in_the_tokens_is_noted(folder: Path) -> None:
    save_teacher(folder / "clf", make_task())
    table(folder / RAW / "x.csv", [(f"strange word{number} thing", label) for number, (_, label) in enumerate(ROWS)])
    assert "note: 67 % of the tokens" in run(folder, teacher={"model": "clf", "max_length": 8}).output


def test_a_max_length_that_fits_no_text_is_an_error(folder: Path) -> None:
    save_teacher(folder / "clf", make_task())
    table(folder / RAW / "x.csv", [(f"word{number}", label) for number, (_, label) in enumerate(ROWS)])
    assert "set it to at least 3" in run(folder, teacher={"model": "clf", "max_length": 2}).output
    assert run(folder, teacher={"model": "clf", "max_length": 3}).exit_code == 0


@pytest.mark.parametrize("spoilt", [None, "tokenizer.json", "config.json"])
def test_a_teacher_that_cannot_be_loaded_is_left_to_the_stages_that_need_it(folder: Path, spoilt: str | None) -> None:
    table(folder / RAW / "x.csv", ROWS)
    if spoilt:
        save_teacher(folder / "clf", make_task())
        (folder / "clf" / spoilt).write_text("version https://git-lfs.github.com/spec/v1\n", encoding="utf-8")
    assert run(folder, teacher={"model": "clf", "max_length": 8}).exit_code == 0


def test_a_teacher_of_the_hub_is_read_from_the_cache_without_asking_the_hub(folder: Path, hub: Path) -> None:
    table(folder / RAW / "x.csv", ROWS)
    assert "the tokenizer of org/teacher: all tokens" in run(folder, teacher={"model": "org/teacher", "max_length": 8}).output
    assert run(folder, teacher={"model": "org/other", "max_length": 8}).exit_code == 0
