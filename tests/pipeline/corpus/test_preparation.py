import csv
import json
import re
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.errors import Faults
from pipeline.corpus import preparation
from pipeline.corpus.preparation import Prepared, prepare
from pipeline.corpus.settings import CorpusSettings
from pipeline.corpus.task import Kind, Metric, Task

TRAIN = [(f"train text {number}", ("bad", "good")[number % 2]) for number in range(40)]
DEV = [("dev text 1", "good"), ("dev text 2", "bad")]
TEST = [("test text 1", "bad"), ("test text 2", "good"), ("test text 3", "good")]
SPLITS: dict[str, Any] = {"train": TRAIN, "dev": DEV, "test": TEST}
SHARES: dict[str, Any] = {"dev": 0.2, "test": 0.2}
NUMBERS = [(f"text {number}", number / 10) for number in range(40)]


def settings(**keys: Any) -> CorpusSettings:
    return CorpusSettings.model_validate({"text": "text", "label": "label", "duplicates": "error"} | keys)


def tsv(path: Path, rows: list[tuple[Any, ...]], header: tuple[str, ...] = ("text", "label")) -> str:
    lines = ["\t".join(map(str, row)) for row in [header[: len(rows[0])] if rows else header, *rows]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def tables(folder: Path, splits: dict[str, list[tuple[Any, ...]]]) -> dict[str, str]:
    """A tsv file for each split; one of a single column has no labels."""
    return {split: tsv(folder / f"{split}.tsv", rows) for split, rows in splits.items()}


def prepared(kind: Kind = "classification", metric: Metric = "accuracy", **keys: Any) -> Prepared:
    return prepare("movies", kind, metric, settings(**keys))


def errors_of(kind: Kind = "classification", metric: Metric = "accuracy", name: str = "movies", **keys: Any) -> list[str]:
    """The lines of the error, without folders."""
    with pytest.raises(Faults) as caught:
        prepare(name, kind, metric, settings(**keys))
    return [re.sub(r"/\S*/", "", line) for line in caught.value.faults]


def assert_lines(lines: list[str], wanted: list[tuple[str, str]]) -> None:
    """Each line starts with the place and contains the cause."""
    assert [line[: len(start)] for line, (start, _) in zip(lines, wanted, strict=True)] == [start for start, _ in wanted]
    for line, (start, cause) in zip(lines, wanted, strict=True):
        assert cause in line[len(start) :]


def test_given_splits_are_kept_in_order_with_labels_as_indices(tmp_path: Path) -> None:
    files = tables(tmp_path, SPLITS)
    result = prepared(files=files, **SHARES)
    assert result.task == Task(name="movies", kind="classification", metric="accuracy", labels=("bad", "good"), pair=False)
    assert result.tables["test"].select(["text_a", "label"]).to_pylist() == [
        {"text_a": text, "label": ("bad", "good").index(label)} for text, label in TEST
    ]
    assert str(result.tables["train"].schema).split("\n") == ["id: string", "text_a: string", "label: int32"]
    assert (result.tables["train"].num_rows, result.notes) == (len(TRAIN), {})
    listed = prepared(files=files, labels=["good", "bad"])
    assert listed.task.labels == ("good", "bad")
    assert listed.tables["dev"]["label"].to_pylist() == [0, 1]


def test_tables_are_saved_in_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "ROWS_A_GROUP", 16)
    many = [(f"train text {number}", ("bad", "good")[number % 2]) for number in range(33)]
    result = prepared(files=tables(tmp_path, SPLITS | {"train": many}))
    result.save(tmp_path)
    assert pq.ParquetFile(tmp_path / "train.parquet").metadata.num_row_groups == 3
    assert {split: pq.read_table(tmp_path / f"{split}.parquet") for split in result.tables} == result.tables
    assert Task.read(tmp_path) == result.task


def test_one_table_is_split_by_text(tmp_path: Path) -> None:
    result = prepared(files=tsv(tmp_path / "all.tsv", TRAIN * 2), dev=0.2, test=0.3)
    texts = {split: set(table["text_a"].to_pylist()) for split, table in result.tables.items()}
    assert sum(len(found) for found in texts.values()) == len(TRAIN)
    assert [table.num_rows for table in result.tables.values()] == [2 * len(found) for found in texts.values()]
    ids = [name for table in result.tables.values() for name in table["id"].to_pylist()]
    assert len(set(ids)) == 2 * len(TRAIN)


def test_pairs_have_two_texts_and_labels_may_have_other_names_than_in_the_table(tmp_path: Path) -> None:
    rows = [(f"a {number}", f"b {number}", number % 3) for number in range(60)]
    path = tsv(tmp_path / "pairs.tsv", rows, ("one", "two", "code"))
    names = {1: "billing", 0: "other", 2: "other"}
    result = prepared(metric="f1", files=path, text=["one", "two"], label="code", **SHARES, labels=names)
    assert (result.task.pair, result.task.labels) == (True, ("billing", "other"))
    found = [(row["text_a"], row["text_b"], row["label"]) for table in result.tables.values() for row in table.to_pylist()]
    assert sorted(found) == sorted((one, two, int(code != 1)) for one, two, code in rows)


@pytest.mark.parametrize("labelled", [None, 5])
def test_train_may_lack_labels(tmp_path: Path, labelled: int | None) -> None:
    train = (
        [(text, label if at < 5 else "") for at, (text, label) in enumerate(TRAIN)] if labelled else [row[:1] for row in TRAIN]
    )
    result = prepared(files=tables(tmp_path, SPLITS | {"train": train}))
    assert result.tables["train"]["label"].null_count == len(TRAIN) - (labelled or 0)
    assert result.task.labels == ("bad", "good")


def test_an_unlabelled_copy_of_a_carved_text_is_left_out(tmp_path: Path) -> None:
    result = prepared(files=tsv(tmp_path / "all.tsv", [*TRAIN, *((text, "") for text, _ in TRAIN)]), dev=0.3, test=0.3)
    measured = sum(result.tables[split].num_rows for split in ("dev", "test"))
    assert result.tables["train"].num_rows == 2 * (len(TRAIN) - measured)
    left_out = {note: count for note, count in result.notes.items() if note.startswith("left out")}
    assert set(left_out) == {f"left out of {split}: no label" for split in ("dev", "test")}
    assert sum(left_out.values()) == measured


ALONE = {"dev": None, "test": None}
CODES = [(f"text {number}", number % 3) for number in range(60)]
UNLABELLED = [(text, "") for text, _ in TRAIN]
MANY = "train.tsv, rows 4 ('2'), 7 ('2'), 10 ('2'), 13 ('2'), 16 ('2') and 15 more: "
NAMED = SHARES | {"labels": ["bad", "good"]}
REGRESSION = SHARES | {"kind": "regression", "metric": "pearson"}
ORDERS = 'the positive one last: ["good", "bad"] or ["bad", "good"]'


@pytest.mark.parametrize(
    ("splits", "keys", "wanted"),
    [
        ({}, {"metric": "f1"}, [("metric f1: ", ORDERS)]),
        ({"test": None}, {"dev": 0.2}, [("corpus.test: ", "say which share of train")]),
        ({"test": [*TEST, ("x", "y")]}, {}, [("test.tsv, row 5 ('y'): ", "one of: bad, good")]),
        ({"test": [*TEST, *DEV]}, {"duplicates": "drop"}, [("dev split: ", "(2 left out: the text occurs in a later split)")]),
        ({"train": [("a",)], "dev": DEV[:1], "test": TEST[1:]}, {}, [("corpus.labels: ", "cannot be determined")]),
        (ALONE | {"train": CODES}, SHARES | {"labels": {0: "a", 1: "b"}}, [(MANY, "one of: 0, 1")]),
        (ALONE | {"train": UNLABELLED}, NAMED, [("dev split: ", "no usable row"), ("test split: ", "no usable row")]),
        (ALONE, NAMED | {"label": "lable"}, [("train.tsv: ", "no column 'lable'; it has: text, label")]),
        (ALONE | {"train": []}, SHARES, [("train.tsv: ", "has no rows")]),
        (
            ALONE | {"train": NUMBERS},
            REGRESSION | NAMED | {"metric": "f1"},
            [("metric f1: ", "choose from pearson, spearman"), ("corpus.labels: ", "leave them out")],
        ),
    ],
)
def test_one_mistake_is_one_error_with_its_place(
    tmp_path: Path, splits: dict[str, Any], keys: dict[str, Any], wanted: list[tuple[str, str]]
) -> None:
    files = tables(tmp_path, {split: rows for split, rows in (SPLITS | splits).items() if rows is not None})
    assert_lines(errors_of(files=files, **keys), wanted)


CSV_QUOTING = [('"He said ""so"" twice"', "good"), ('"This film"', "bad"), ('a ""b"" c', "bad")]


@pytest.mark.parametrize(
    ("rows", "labels", "notes"),
    [
        (
            [("the same", "good"), ("the same ", "bad"), ("once", "rare")],
            ["bad", "good", "rare", "never"],
            {
                "row(s) of train have the text of another row of it": 1,
                "text(s) with different labels": 1,
                "label(s) without a train row: never": 1,
                "label(s) without a dev row, so dev does not measure them: rare": 1,
                "label(s) without a test row, so test does not measure them: rare": 1,
                "label(s) with a single train row: rare; if they are quantities, the kind is regression": 1,
            },
        ),
        (CSV_QUOTING, None, {"row(s) of a tsv are quoted as in csv, which tsv does not undo; save such a table as csv": 1}),
    ],
)
def test_what_looks_like_a_mistake_is_noted(tmp_path: Path, rows: Any, labels: Any, notes: dict[str, int]) -> None:
    assert prepared(files=tables(tmp_path, SPLITS | {"train": [*TRAIN, *rows]}), labels=labels).notes == notes


def test_dropped_duplicates_and_capped_rows_are_counted(tmp_path: Path) -> None:
    train, dev = [*TRAIN, ("dev text 1", "good"), (" test text 1", "bad")], [*DEV, ("test text 1", "bad")]
    files = tables(tmp_path, {"train": train, "dev": dev, "test": TEST})
    result = prepared(files=files, duplicates="drop", rows={"train": 30})
    assert {split: table.num_rows for split, table in result.tables.items()} == {"train": 30, "dev": 2, "test": 3}
    assert result.notes == {
        "left out of train: the text occurs in a later split": 2,
        "left out of dev: the text occurs in a later split": 1,
        "left out of train: more than the row limit": 10,
    }
    more = prepared(files=files, duplicates="drop", rows={"train": 35})
    assert set(result.tables["train"]["id"].to_pylist()) < set(more.tables["train"]["id"].to_pylist())


def save(path: Path, rows: list[tuple[str, Any]]) -> None:
    """Write a table in the format of the ending; without one as save_to_disk does, with a byte-order mark for "bom"."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    match path.suffix.lower():
        case ".csv":
            encoding = "utf-8-sig" if "bom" in path.name else "utf-8"
            with path.open("w", encoding=encoding, newline="") as file:
                csv.writer(file).writerows([("text", "label"), *rows])
        case ".tsv":
            tsv(path, [(text, "" if label is None else label) for text, label in rows])
        case ".jsonl":
            path.write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in rows), encoding="utf-8")
        case ".parquet":
            pq.write_table(pa.table(columns), path)
        case _:
            datasets.Dataset.from_dict(columns).save_to_disk(path)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


NAMES = ["None", "NA", "N/A", "nan", "null", "007", "True", "true", "caf\u00e9", "cafe\u0301"]
TEXTS = ["007", "N/A", "NA", "nan", "1e5", "2020-01-01", "True", " leading", '"quoted"', "a, b"]


FORMS = [
    *(["X.CSV"], ["bom.csv"], ["x.tsv"], ["x.jsonl"], ["x.parquet"], ["hub"], ["hub/train-bom.csv"]),
    *(["hub/train-0.csv", "hub/train-1.csv"], ["hub/data/train.jsonl"], ["hub/data/train-00000-of-00001.parquet"]),
]
SOME: list[Any] = [None if number % 13 == 0 else NAMES[number % 10] for number in range(400)]
INDICES: list[Any] = [number % 3 for number in range(400)]
VALUES: list[Any] = [None if number % 13 == 0 else number / 4 for number in range(400)]


@pytest.mark.usefixtures("cache")
def test_splits_of_a_hub_set_are_those_of_the_settings_and_others_are_not_read(tmp_path: Path) -> None:
    save(tmp_path / "ds/train.csv", TRAIN)
    save(tmp_path / "ds/validation.csv", DEV)
    (tmp_path / "ds/test.csv").write_text("text,label\none field\n", encoding="utf-8")
    result = prepared(hub=str(tmp_path / "ds"), test=0.2, splits={"train": "train", "dev": "validation"})
    assert result.tables["dev"]["text_a"].to_pylist() == [text for text, _ in DEV]
    assert (result.tables["train"].num_rows + result.tables["test"].num_rows, result.notes) == (len(TRAIN), {})
    assert errors_of(hub=str(tmp_path / "ds"))[0].endswith("test.csv, row 2 (1 field here): the header has 2 fields")
    (line,) = errors_of(hub=str(tmp_path / "ds"), test=0.2, splits={"train": "train", "dev": "valid"})
    assert "no split 'valid'; it has: train, validation, test; map them with corpus.splits" in line


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("files", "kind", "labels"),
    [
        *((files, "classification", SOME) for files in FORMS),
        *((files, "classification", INDICES) for files in (["x.tsv"], ["x.parquet"], ["hub"])),
        *((files, "regression", VALUES) for files in (["x.tsv"], ["x.jsonl"], ["hub/data/train.jsonl"])),
    ],
)
def test_a_table_means_the_same_in_every_form(tmp_path: Path, files: list[str], kind: Kind, labels: list[Any]) -> None:
    rows = list(zip(TEXTS + [f"{text} {number}" for number in range(39) for text in TEXTS], labels, strict=True))
    metric: Metric = "accuracy" if kind == "classification" else "pearson"
    save(tmp_path / "reference.csv", rows)
    cuts = [0, 30, 400] if len(files) == 2 else [0, 400]
    for name, start, end in zip(files, cuts, cuts[1:], strict=False):
        save(tmp_path / name, rows[start:end])
    place = "hub" if files[0].startswith("hub") else files[0]
    first = prepared(kind, metric, files=str(tmp_path / "reference.csv"), **SHARES)
    second = prepared(kind, metric, **{"hub" if place == "hub" else "files": str(tmp_path / place)}, **SHARES)
    assert second.tables == first.tables
    assert str(first.tables["train"].schema.field("label").type) == ("float" if kind == "regression" else "int32")
    assert (second.task, second.notes) == (first.task, first.notes)
    assert {text for table in first.tables.values() for text in table["text_a"].to_pylist()} == {text for text, _ in rows}
    if labels[1] == "NA":
        assert first.task.labels == ("007", "N/A", "NA", "None", "True", "caf\u00e9", "nan", "null", "true")


def test_all_errors_of_all_files_come_in_one_list(tmp_path: Path) -> None:
    train = [("a", "good"), ("", "good"), ("dev text 1", "good"), ("one field",)]
    files = tables(tmp_path, {"train": train, "dev": [*DEV, ("c", ""), ("d", "godo")], "test": []})
    found = errors_of(metric="pearson", name="My-Task", files=files, labels=["bad", "good"])
    wanted = [
        ("task name 'My-Task': ", "only a-z, 0-9 and _"),
        ("metric pearson: ", "does not fit classification; choose from accuracy, f1, macro_f1, mcc"),
        ("train.tsv, row 5 (1 field here): ", "the header has 2 fields"),
        ("train.tsv, row 3: ", "column 'text' is empty"),
        ("dev.tsv, row 4: ", "the label is empty"),
        ("test.tsv: ", "the table has no rows"),
        ("dev.tsv, row 5 ('godo'): ", "the label must be one of: bad, good"),
        ("train.tsv, row 4 (dev.tsv, row 2): ", "this train text also occurs in the dev split; duplicates: drop"),
        ("train split: ", "all 2 labels are 'good'"),
    ]
    assert_lines(found, wanted)
