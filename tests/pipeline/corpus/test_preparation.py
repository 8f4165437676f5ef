import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.errors import Faults
from pipeline.corpus.preparation import ROWS_A_GROUP, Prepared, prepare
from pipeline.corpus.settings import CorpusSettings
from pipeline.corpus.task import Kind, Metric, Task

TRAIN = [(f"train text {number}", ("bad", "good")[number % 2]) for number in range(40)]
DEV = [("dev text 1", "good"), ("dev text 2", "bad")]
TEST = [("test text 1", "bad"), ("test text 2", "good"), ("test text 3", "good")]


def settings(**keys: Any) -> CorpusSettings:
    return CorpusSettings.model_validate({"text": "text", "label": "label", "duplicates": "error"} | keys)


def tsv(path: Path, rows: list[tuple[Any, ...]], header: tuple[str, ...] = ("text", "label")) -> str:
    lines = ["\t".join(map(str, row)) for row in [header, *rows]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    return {
        "train": tsv(tmp_path / "train.tsv", TRAIN),
        "dev": tsv(tmp_path / "dev.tsv", DEV),
        "test": tsv(tmp_path / "test.tsv", TEST),
    }


def prepared(kind: Kind = "classification", metric: Metric = "accuracy", **keys: Any) -> Prepared:
    return prepare("movies", kind, metric, settings(**keys))


def errors_of(kind: Kind = "classification", metric: Metric = "accuracy", name: str = "movies", **keys: Any) -> list[str]:
    """The lines of the error, without folders."""
    with pytest.raises(Faults) as caught:
        prepare(name, kind, metric, settings(**keys))
    return [re.sub(r"/\S*/", "", line) for line in caught.value.faults]


def assert_lines(lines: list[str], wanted: list[tuple[str, str]]) -> None:
    """Each line starts with the place and goes on with the cause."""
    assert [line[: len(start)] for line, (start, _) in zip(lines, wanted, strict=True)] == [start for start, _ in wanted]
    for line, (start, cause) in zip(lines, wanted, strict=True):
        assert cause in line[len(start) :]


def test_given_splits_are_kept_in_order_with_labels_as_indices(files: dict[str, str]) -> None:
    result = prepared(files=files)
    assert result.task.labels == ("bad", "good")
    assert not result.task.pair
    assert result.tables["test"].select(["text_a", "label"]).to_pylist() == [
        {"text_a": text, "label": ("bad", "good").index(label)} for text, label in TEST
    ]
    listed = prepared(files=files, labels=["good", "bad"])
    assert listed.task.labels == ("good", "bad")
    assert listed.tables["dev"]["label"].to_pylist() == [0, 1]
    assert str(result.tables["train"].schema).split("\n") == ["id: string", "text_a: string", "label: int32"]
    assert result.notes == {}


def test_tables_are_saved_in_row_groups(tmp_path: Path, files: dict[str, str]) -> None:
    many = [(f"train text {number}", ("bad", "good")[number % 2]) for number in range(2 * ROWS_A_GROUP + 1)]
    result = prepared(files=files | {"train": tsv(tmp_path / "many.tsv", many)})
    result.save(tmp_path)
    assert ROWS_A_GROUP <= 4096
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


def test_a_missing_split_is_carved_and_the_others_stay(files: dict[str, str]) -> None:
    del files["dev"]
    result = prepared(files=files, dev=0.3)
    assert result.tables["test"].num_rows == len(TEST)
    assert result.tables["train"].num_rows + result.tables["dev"].num_rows == len(TRAIN)
    assert 0 < result.tables["dev"].num_rows < len(TRAIN) / 2


def test_a_share_is_for_a_corpus_without_that_split(files: dict[str, str]) -> None:
    result = prepared(files=files, dev=0.3, test=0.3)
    assert {split: table.num_rows for split, table in result.tables.items()} == {"train": 40, "dev": 2, "test": 3}


def test_pairs_have_two_texts(tmp_path: Path) -> None:
    rows = [(f"a {number}", f"b {number}", number % 2) for number in range(40)]
    path = tsv(tmp_path / "pairs.tsv", rows, ("one", "two", "same"))
    result = prepared(metric="f1", files=path, text=["one", "two"], label="same", dev=0.2, test=0.2)
    assert result.task.pair
    assert result.task.labels == ("0", "1")
    found = [row for table in result.tables.values() for row in table.to_pylist()]
    assert sorted((row["text_a"], row["text_b"], row["label"]) for row in found) == sorted(rows)


def test_f1_needs_two_labels_in_a_chosen_order(files: dict[str, str]) -> None:
    (line,) = errors_of(metric="f1", files=files)
    assert 'list them in corpus.labels, the positive one last: ["good", "bad"] or ["bad", "good"]' in line
    assert prepared(metric="f1", files=files, labels=["good", "bad"]).task.labels == ("good", "bad")
    (line,) = errors_of(metric="f1", files=files, labels=["good", "bad", "mixed"])
    assert line.endswith("and there are 3; choose macro_f1")
    assert prepared(metric="macro_f1", files=files).task.labels == ("bad", "good")


def test_regression_labels_are_float32_and_have_no_names(tmp_path: Path) -> None:
    path = tsv(tmp_path / "scores.tsv", [(f"text {number}", number / 10) for number in range(40)])
    result = prepared("regression", "pearson", files=path, dev=0.2, test=0.2)
    assert result.task.labels == ()
    assert result.task.outputs == 1
    assert str(result.tables["train"].schema.field("label").type) == "float"
    values = [value for table in result.tables.values() for value in table["label"].to_pylist()]
    assert sorted(values) == pytest.approx([number / 10 for number in range(40)])


def test_train_may_lack_labels(tmp_path: Path, files: dict[str, str]) -> None:
    files["train"] = tsv(tmp_path / "train.tsv", [(text, label if at < 5 else "") for at, (text, label) in enumerate(TRAIN)])
    assert prepared(files=files).tables["train"]["label"].null_count == len(TRAIN) - 5
    files["train"] = tsv(tmp_path / "train.tsv", [(text,) for text, _ in TRAIN], ("text",))
    result = prepared(files=files)
    assert result.tables["train"]["label"].null_count == len(TRAIN)
    assert result.task.labels == ("bad", "good")
    files |= {split: tsv(tmp_path / f"{split}.tsv", [(split, "good")]) for split in ("dev", "test")}
    (line,) = errors_of(files=files)
    assert line.startswith("corpus.labels: the label names cannot be determined"), "of a single name"


SHARES = {"dev": 0.2, "test": 0.2}


@pytest.mark.parametrize(
    ("rows", "keys", "wanted"),
    [
        (TRAIN, {"dev": 0.2}, [("corpus.test: ", "say which share of train")]),
        (
            TRAIN,
            SHARES | {"label": "lable", "labels": ["bad", "good"]},
            [("x.tsv: ", "no column 'lable'; it has: text, label")],
        ),
        ([(text, "") for text, _ in TRAIN], SHARES | {"labels": ["bad", "good"]}, [("dev split: ", ""), ("test split: ", "")]),
        ([], SHARES, [("x.tsv: ", "the table has no rows")]),
    ],
)
def test_a_table_that_gives_no_splits_is_an_error(tmp_path: Path, rows: Any, keys: dict[str, Any], wanted: Any) -> None:
    assert_lines(errors_of(files=tsv(tmp_path / "x.tsv", rows), **keys), wanted)


@pytest.mark.parametrize("labels", [["x", "x"], ["one", "two"]])
def test_rejected_rows_are_not_also_an_empty_split(tmp_path: Path, labels: list[str]) -> None:
    path = tsv(tmp_path / "x.tsv", [(f"text {number}", labels[number % 2]) for number in range(40)])
    wanted = [("x.tsv, rows 2 (", "and 35 more: the label must be a finite number")]
    assert_lines(errors_of("regression", "pearson", files=path, **SHARES), wanted)


def test_a_split_without_rows_says_what_was_left_out(tmp_path: Path, files: dict[str, str]) -> None:
    files["test"] = tsv(tmp_path / "test.tsv", [*TEST, *DEV])
    wanted = [("dev split: no usable row is left (2 left out: the text occurs in a later split); ", "")]
    assert_lines(errors_of(files=files, duplicates="drop"), wanted)


def test_rows_without_a_label_become_train_rows_and_none_is_lost(tmp_path: Path) -> None:
    rows = [(text, label if number % 4 < 2 else "") for number, (text, label) in enumerate(TRAIN)]
    result = prepared(files=tsv(tmp_path / "all.tsv", rows), dev=0.3, test=0.3)
    assert result.tables["train"]["label"].null_count == sum(not label for _, label in rows)
    assert result.tables["dev"]["label"].null_count == result.tables["test"]["label"].null_count == 0
    assert sum(table.num_rows for table in result.tables.values()) == len(rows)
    assert result.notes == {}


def test_an_unlabelled_copy_of_a_carved_text_is_left_out(tmp_path: Path) -> None:
    result = prepared(files=tsv(tmp_path / "all.tsv", [*TRAIN, *((text, "") for text, _ in TRAIN)]), dev=0.3, test=0.3)
    measured = sum(result.tables[split].num_rows for split in ("dev", "test"))
    assert result.tables["train"].num_rows == 2 * (len(TRAIN) - measured)
    left_out = {note: count for note, count in result.notes.items() if note.startswith("left out")}
    assert set(left_out) == {f"left out of {split}: no label" for split in ("dev", "test")}
    assert sum(left_out.values()) == measured


def test_all_errors_of_all_files_come_in_one_list(tmp_path: Path, files: dict[str, str]) -> None:
    files["train"] = tsv(tmp_path / "train.tsv", [("a", "good"), ("", "good"), ("dev text 1", "good"), ("one field",)])
    files["dev"] = tsv(tmp_path / "dev.tsv", [*DEV, ("c", ""), ("d", "godo")])
    files["test"] = tsv(tmp_path / "test.tsv", [])
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


def test_a_file_that_cannot_be_read_does_not_hide_the_errors_of_the_others(tmp_path: Path, files: dict[str, str]) -> None:
    files["train"] = str(tmp_path / "gone.csv")
    files["dev"] = tsv(tmp_path / "dev.tsv", DEV, ("sentence", "label"))
    files["test"] = tsv(tmp_path / "test.tsv", [("", "good")])
    wanted = [
        ("gone.csv: ", "not exist"),
        ("dev.tsv: ", "no column 'text'; it has: sentence, label"),
        ("test.tsv, row 2: ", ""),
    ]
    assert_lines(errors_of(files=files), wanted)


def test_a_label_that_train_does_not_have_is_unknown_in_test_unless_listed(tmp_path: Path, files: dict[str, str]) -> None:
    files["test"] = tsv(tmp_path / "test.tsv", [*TEST, ("x", "mixed")])
    assert_lines(errors_of(files=files), [("test.tsv, row 5 ('mixed'): ", "must be one of: bad, good")])
    assert prepared(files=files, labels=["bad", "good", "mixed"]).tables["test"]["label"].to_pylist()[-1] == 2


def test_labels_may_be_called_otherwise_than_in_the_table(tmp_path: Path) -> None:
    rows = [(f"text {number}", number % 3) for number in range(60)]
    path = tsv(tmp_path / "codes.tsv", rows)
    named = prepared(files=path, dev=0.2, test=0.2, labels={1: "billing", 0: "other", 2: "other"})
    assert named.task.labels == ("billing", "other")
    found = {row["text_a"]: row["label"] for table in named.tables.values() for row in table.to_pylist()}
    assert found == {text: int(code != 1) for text, code in rows}
    found = errors_of(files=path, dev=0.2, test=0.2, labels={0: "a", 1: "b"})
    wanted = "codes.tsv, rows 4 ('2'), 7 ('2'), 10 ('2'), 13 ('2'), 16 ('2') and 15 more: "
    assert_lines(found, [(wanted, "the label must be one of: 0, 1")])


def test_label_names_do_not_belong_to_regression(tmp_path: Path) -> None:
    path = tsv(tmp_path / "x.tsv", [(f"text {number}", number) for number in range(40)])
    found = errors_of("regression", "f1", files=path, **SHARES, labels=["a", "b"])
    assert_lines(found, [("metric f1: ", "choose from pearson, spearman"), ("corpus.labels: ", "leave them out")])


def test_labels_that_contradict_each_other_or_are_rare_are_counted(tmp_path: Path, files: dict[str, str]) -> None:
    files["train"] = tsv(tmp_path / "train.tsv", [*TRAIN, ("the same", "good"), ("the same ", "bad"), ("once", "rare")])
    result = prepared(files=files, labels=["bad", "good", "rare", "never"])
    assert result.notes == {
        "row(s) of train have the text of another row of it": 1,
        "text(s) with different labels": 1,
        "label(s) without a train row: never": 1,
        "label(s) without a dev row, so dev does not measure them: rare": 1,
        "label(s) without a test row, so test does not measure them: rare": 1,
        "label(s) with a single train row: rare; if they are quantities, the kind is regression": 1,
    }


def test_labels_that_differ_only_in_case_are_noted_and_kept(tmp_path: Path, files: dict[str, str]) -> None:
    files["train"] = tsv(tmp_path / "train.tsv", [*TRAIN, ("a", "Good"), ("b", "Good")])
    result = prepared(files=files)
    assert result.task.labels == ("Good", "bad", "good")
    assert result.notes["label(s) that differ from another only in case: Good, good"] == 2


def test_listed_labels_may_have_another_unicode_form(tmp_path: Path) -> None:
    forms = ("caf\u00e9", "cafe\u0301", "th\u00e9", "the\u0301")
    path = tsv(tmp_path / "x.tsv", [(f"text {number}", forms[number % 4]) for number in range(60)])
    assert prepared(files=path, dev=0.2, test=0.2).task.labels == ("caf\u00e9", "th\u00e9")
    assert prepared(files=path, dev=0.2, test=0.2, labels=["the\u0301", "caf\u00e9"]).task.labels == ("th\u00e9", "caf\u00e9")


def test_truth_values_and_their_texts_are_two_classes(tmp_path: Path) -> None:
    path, values = tmp_path / "x.jsonl", (True, "True", False, "FALSE")
    lines = [json.dumps({"text": f"text {number}", "label": values[number % 4]}) for number in range(60)]
    path.write_text("\n".join(lines), encoding="utf-8")
    assert prepared(files=str(path), dev=0.2, test=0.2).task.labels == ("false", "true")


Rows = list[tuple[str, Any]]


def as_dataset(rows: Rows) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": [text for text, _ in rows], "label": [label for _, label in rows]})


def as_csv(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def as_parquet(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": [text for text, _ in rows], "label": [label for _, label in rows]}), path)


def as_jsonl(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in rows), encoding="utf-8")


def two_parts(folder: Path, rows: Rows) -> None:
    as_csv(folder / "train-00000-of-00002.csv", rows[:30])
    as_csv(folder / "train-00001-of-00002.csv", rows[30:])


FORMS: dict[str, tuple[str, str, Callable[[Path, Rows], object]]] = {
    "csv": ("files", "x.csv", as_csv),
    "upper case": ("files", "X.CSV", as_csv),
    "byte-order mark": ("files", "x.csv", lambda path, rows: (as_csv(path, rows), marked(path))),
    "tsv": ("files", "x.tsv", lambda path, rows: tsv(path, [(text, "" if label is None else label) for text, label in rows])),
    "jsonl": ("files", "x.jsonl", as_jsonl),
    "parquet": ("files", "x.parquet", as_parquet),
    "hub csv": ("hub", "ds", lambda folder, rows: as_csv(folder / "train.csv", rows)),
    "hub csv, byte-order mark": (
        "hub",
        "ds",
        lambda folder, rows: (as_csv(folder / "train.csv", rows), marked(folder / "train.csv")),
    ),
    "hub csv in parts": ("hub", "ds", two_parts),
    "hub jsonl": ("hub", "ds", lambda folder, rows: as_jsonl(folder / "data/train.jsonl", rows)),
    "hub parquet": ("hub", "ds", lambda folder, rows: as_parquet(folder / "data/train-00000-of-00001.parquet", rows)),
    "dataset": ("hub", "ds", lambda folder, rows: as_dataset(rows).save_to_disk(folder)),
    "datasets": ("hub", "ds", lambda folder, rows: datasets.DatasetDict(train=as_dataset(rows)).save_to_disk(folder)),
}
"""How a table may be given: the setting, its value, and what writes it."""


def marked(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


NAMES = ["None", "NA", "N/A", "nan", "null", "007", "True", "true", "caf\u00e9", "cafe\u0301"]
TEXTS = ["007", "N/A", "NA", "nan", "1e5", "2020-01-01", "True", " leading", '"quoted"', "a, b"]


@pytest.mark.parametrize("form", [form for form in FORMS if form != "csv"])
@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("classification", [None if number % 13 == 0 else NAMES[number % 10] for number in range(400)]),
        ("classification", [number % 3 for number in range(400)]),
        ("regression", [None if number % 13 == 0 else number / 4 for number in range(400)]),
    ],
)
def test_a_table_means_the_same_in_every_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, kind: Kind, labels: list[Any]
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    texts = TEXTS + [f"{text} {number}" for number in range(39) for text in TEXTS]
    rows, found = list(zip(texts, labels, strict=True)), []
    for name in ("csv", form):
        setting, place, write = FORMS[name]
        (tmp_path / name).mkdir()
        write(tmp_path / name / place, rows)
        metric: Metric = "accuracy" if kind == "classification" else "pearson"
        found.append(prepared(kind, metric, **{setting: str(tmp_path / name / place)}, dev=0.2, test=0.3))
    first, second = found
    assert {split: table.to_pylist() for split, table in second.tables.items()} == {
        split: table.to_pylist() for split, table in first.tables.items()
    }
    assert (second.task, second.notes) == (first.task, first.notes)
    texts_read = {text for table in first.tables.values() for text in table["text_a"].to_pylist()}
    assert texts_read == set(texts)
    if labels[1] == "NA":
        assert first.task.labels == ("007", "N/A", "NA", "None", "True", "caf\u00e9", "nan", "null", "true")


def test_unused_splits_of_a_hub_set_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    as_csv(tmp_path / "ds/train.csv", TRAIN)
    (tmp_path / "ds/test.csv").write_text("text,label\none field\n", encoding="utf-8")
    assert prepared(hub=str(tmp_path / "ds"), dev=0.2, test=0.2, splits={"train": "train"}).notes == {}
    assert errors_of(hub=str(tmp_path / "ds"), dev=0.2)[0].endswith("test.csv, row 2 (1 field here): the header has 2 fields")


def test_csv_quoting_in_a_tsv_is_noted(tmp_path: Path, files: dict[str, str]) -> None:
    quoted = [('"He said ""so"" twice"', "good"), ('"This film"', "bad"), ('a ""b"" c', "bad")]
    files["train"] = tsv(tmp_path / "train.tsv", [*TRAIN, *quoted])
    assert prepared(files=files).notes == {
        "row(s) of a tsv are quoted as in csv, which tsv does not undo; save such a table as csv": 1
    }


@pytest.mark.parametrize(
    ("content", "lines"),
    [("text;label\nfine;1\n", ["it has: text;label; "] * 2), ('text;label\nfine;1\n"some; text";0\n', [""])],
)
def test_a_table_with_another_separator_is_recognised(tmp_path: Path, content: str, lines: list[str]) -> None:
    (tmp_path / "x.csv").write_text(content)
    separated = "the columns are separated by ';'; use commas in csv and tabs in tsv"
    assert_lines(errors_of(files=str(tmp_path / "x.csv"), **SHARES), [("x.csv: ", line + separated) for line in lines])


def test_dropped_duplicates_and_capped_rows_are_counted(tmp_path: Path, files: dict[str, str]) -> None:
    files["train"] = tsv(tmp_path / "train.tsv", [*TRAIN, ("dev text 1", "good"), (" test text 1", "bad")])
    files["dev"] = tsv(tmp_path / "dev.tsv", [*DEV, ("test text 1", "bad")])
    result = prepared(files=files, duplicates="drop", rows={"train": 30})
    assert {split: table.num_rows for split, table in result.tables.items()} == {"train": 30, "dev": 2, "test": 3}
    assert result.notes == {
        "left out of train: the text occurs in a later split": 2,
        "left out of dev: the text occurs in a later split": 1,
        "left out of train: more than the row limit": 10,
    }
    more = prepared(files=files, duplicates="drop", rows={"train": 35})
    assert set(result.tables["train"]["id"].to_pylist()) < set(more.tables["train"]["id"].to_pylist())


@pytest.fixture
def glue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of a folder in hub layout with a pair set whose test labels are kept secret."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "glue"
    (folder / "rte").mkdir(parents=True)
    kinds = {"sentence1": "string", "sentence2": "string"}
    features = datasets.Features(
        {name: datasets.Value(kind) for name, kind in kinds.items()}
        | {"label": datasets.ClassLabel(names=["not_entailment", "entailment"])}
    )
    for split, count in {"train": 40, "validation": 6, "test": 4}.items():
        rows = {
            "sentence1": [f"{split} premise {number}" for number in range(count)],
            "sentence2": [f"{split} hypothesis {number}" for number in range(count)],
            "label": [-1 if split == "test" else number % 2 for number in range(count)],
        }
        datasets.Dataset.from_dict(rows, features).to_parquet(folder / "rte" / f"{split}-0.parquet")
    splits = "".join(f"  - split: {split}\n    path: rte/{split}-*\n" for split in ("train", "validation", "test"))
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: rte\n  data_files:\n{splits}---\n", encoding="utf-8")
    return {"hub": str(folder), "config": "rte", "text": list(kinds)}


def test_a_hub_set_brings_splits_and_label_names(glue: dict[str, Any]) -> None:
    result = prepared(**glue, test=0.2, splits={"train": "train", "dev": "validation"})
    assert result.task.labels == ("not_entailment", "entailment")
    assert result.tables["dev"].num_rows == 6
    assert result.tables["dev"]["text_b"].to_pylist()[0] == "validation hypothesis 0"
    assert result.tables["dev"]["label"].to_pylist() == [0, 1] * 3
    assert result.tables["train"].num_rows + result.tables["test"].num_rows == 40


def test_hidden_test_labels_are_an_error_with_the_way_out(glue: dict[str, Any]) -> None:
    assert_lines(errors_of(**glue), [("test-0.parquet: no row has a label", "set test to a share of train")])


def test_a_split_that_a_hub_set_does_not_have_is_named_with_those_it_has(glue: dict[str, Any]) -> None:
    (line,) = errors_of(**glue, test=0.2, splits={"train": "train", "dev": "validation_matched"})
    assert "no split 'validation_matched'; it has: train, validation, test; map them with corpus.splits" in line


def test_the_files_of_a_split_need_the_same_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    two_parts(tmp_path / "ds", TRAIN)
    tsv(tmp_path / "ds/train-00001-of-00002.csv", [("only text",)], ("text",))
    assert_lines(
        errors_of(hub=str(tmp_path / "ds"), **SHARES), [("train-00001-of-00002.csv: ", "no column 'label'; it has: text")]
    )
