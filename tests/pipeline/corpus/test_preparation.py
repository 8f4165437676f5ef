import csv
import json
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
    return CorpusSettings.model_validate({"text": "text", "label": "label", "duplicates": "refuse"} | keys)


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


def faults(kind: Kind = "classification", metric: Metric = "accuracy", name: str = "movies", **keys: Any) -> list[str]:
    with pytest.raises(Faults) as caught:
        prepare(name, kind, metric, settings(**keys))
    files = keys.get("files") or {}
    paths = [files] if isinstance(files, str) else files.values()
    lines = list(caught.value.faults)
    for path in paths:
        lines = [line.replace(path, Path(path).name) for line in lines]
    return lines


def test_a_split_that_repeats_leave_without_a_row_says_so(tmp_path: Path) -> None:
    files = {
        "train": tsv(tmp_path / "train.tsv", TRAIN),
        "dev": tsv(tmp_path / "dev.tsv", DEV),
        "test": tsv(tmp_path / "test.tsv", [*TEST, *DEV]),
    }
    (told,) = faults(files=files, duplicates="drop")
    assert told.startswith("dev split: no usable row is left in it (2 left out: the text stands in a later split); dev chooses")


def test_the_corpus_s_own_splits_are_kept_in_order_with_labels_as_indices(files: dict[str, str]) -> None:
    result = prepared(files=files)
    assert result.task.labels == ("bad", "good")
    assert not result.task.pair
    assert result.tables["test"].select(["text_a", "label"]).to_pylist() == [
        {"text_a": text, "label": ("bad", "good").index(label)} for text, label in TEST
    ]
    assert str(result.tables["train"].schema).split("\n") == ["id: string", "text_a: string", "label: int32"]
    assert result.notes == {}


def test_what_is_saved_can_be_read_a_few_thousand_rows_at_a_time(tmp_path: Path, files: dict[str, str]) -> None:
    many = [(f"train text {number}", ("bad", "good")[number % 2]) for number in range(2 * ROWS_A_GROUP + 1)]
    result = prepared(files=files | {"train": tsv(tmp_path / "many.tsv", many)})
    result.save(tmp_path)
    assert ROWS_A_GROUP <= 4096
    assert pq.ParquetFile(tmp_path / "train.parquet").metadata.num_row_groups == 3
    assert {split: pq.read_table(tmp_path / f"{split}.parquet") for split in result.tables} == result.tables
    assert Task.read(tmp_path) == result.task


def test_listed_labels_decide_the_order(files: dict[str, str]) -> None:
    result = prepared(files=files, labels=["good", "bad"])
    assert result.task.labels == ("good", "bad")
    assert result.tables["dev"]["label"].to_pylist() == [0, 1]


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


def test_a_split_that_is_neither_there_nor_given_a_share_is_a_fault(tmp_path: Path) -> None:
    assert faults(files=tsv(tmp_path / "all.tsv", TRAIN), dev=0.2) == [
        "corpus.test: the corpus has no test split; say which share of train becomes it"
    ]


def test_pairs_have_two_texts(tmp_path: Path) -> None:
    rows = [(f"a {number}", f"b {number}", number % 2) for number in range(40)]
    path = tsv(tmp_path / "pairs.tsv", rows, ("one", "two", "same"))
    result = prepared(metric="f1", files=path, text=["one", "two"], label="same", dev=0.2, test=0.2)
    assert result.task.pair
    assert result.task.labels == ("0", "1")
    found = [row for table in result.tables.values() for row in table.to_pylist()]
    assert sorted((row["text_a"], row["text_b"], row["label"]) for row in found) == sorted(rows)


def test_f1_of_two_labels_wants_to_know_which_of_them_counts(tmp_path: Path, files: dict[str, str]) -> None:
    assert faults(metric="f1", files=files) == [
        "metric f1: it is the F1 of the second of two labels, and their order is only that of the alphabet; list them in "
        'corpus.labels with the one that counts last, ["good", "bad"] or ["bad", "good"], or choose macro_f1'
    ]
    assert prepared(metric="f1", files=files, labels=["good", "bad"]).task.labels == ("good", "bad")
    assert faults(metric="f1", files=files, labels=["good", "bad", "mixed"]) == [
        "metric f1: it is the F1 of the second of two labels, and there are 3; choose macro_f1"
    ]
    assert prepared(metric="macro_f1", files=files).task.labels == ("bad", "good")


def test_regression_labels_are_float32_and_have_no_names(tmp_path: Path) -> None:
    path = tsv(tmp_path / "scores.tsv", [(f"text {number}", number / 10) for number in range(40)])
    result = prepared("regression", "pearson", files=path, dev=0.2, test=0.2)
    assert result.task.labels == ()
    assert result.task.outputs == 1
    assert str(result.tables["train"].schema.field("label").type) == "float"
    values = [value for table in result.tables.values() for value in table["label"].to_pylist()]
    assert sorted(values) == pytest.approx([number / 10 for number in range(40)])


def test_train_may_lack_the_label_column_that_others_have(tmp_path: Path, files: dict[str, str]) -> None:
    files["train"] = tsv(tmp_path / "train.tsv", [(text,) for text, _ in TRAIN], ("text",))
    result = prepared(files=files)
    assert result.tables["train"]["label"].null_count == len(TRAIN)
    assert result.task.labels == ("bad", "good")


def test_one_label_name_in_dev_and_test_alone_does_not_tell_the_label_names(tmp_path: Path, files: dict[str, str]) -> None:
    files["train"] = tsv(tmp_path / "train.tsv", [(text,) for text, _ in TRAIN], ("text",))
    files |= {split: tsv(tmp_path / f"{split}.tsv", [(split, "good")]) for split in ("dev", "test")}
    assert faults(files=files) == ["corpus.labels: the rows have no labels that would tell the label names; list them here"]


def test_a_faulty_label_is_one_fault_and_not_also_a_missing_one(tmp_path: Path, files: dict[str, str]) -> None:
    files = {split: tsv(tmp_path / f"{split}.tsv", [(f"{split} {n}", n) for n in range(4)]) for split in files}
    files["dev"] = tsv(tmp_path / "dev.tsv", [("dev", "four"), ("dev 2", 1)])
    assert faults("regression", "pearson", files=files) == ["dev.tsv, row 2 ('four'): the label must be a finite number"]


def test_train_may_have_labels_in_part(tmp_path: Path, files: dict[str, str]) -> None:
    files["train"] = tsv(tmp_path / "train.tsv", [(text, label if at < 5 else "") for at, (text, label) in enumerate(TRAIN)])
    assert prepared(files=files).tables["train"]["label"].null_count == len(TRAIN) - 5


def test_a_label_column_that_no_table_has_is_a_fault(tmp_path: Path) -> None:
    path = tsv(tmp_path / "all.tsv", TRAIN)
    assert faults(files=path, label="lable", labels=["bad", "good"], dev=0.2, test=0.2) == [
        "all.tsv: there is no column 'lable'; it has: text, label"
    ]


def test_a_corpus_without_any_label_is_refused_since_nothing_could_be_measured(tmp_path: Path) -> None:
    path = tsv(tmp_path / "all.tsv", [(text, "") for text, _ in TRAIN])
    told = faults(files=path, labels=["bad", "good"], dev=0.2, test=0.2)
    assert [line.split(" ")[0] for line in told] == ["dev", "test"]
    sentence = "no usable row is left in it; dev chooses the best epoch and test measures, both by labels"
    assert [line.split(" split: ")[1] for line in told] == [sentence] * 2


def test_rows_without_a_label_are_train_rows_whatever_is_carved_and_none_is_lost(tmp_path: Path) -> None:
    rows = [(text, label if number % 4 < 2 else "") for number, (text, label) in enumerate(TRAIN)]
    result = prepared(files=tsv(tmp_path / "all.tsv", rows), dev=0.3, test=0.3)
    assert result.tables["train"]["label"].null_count == sum(not label for _, label in rows)
    assert result.tables["dev"]["label"].null_count == result.tables["test"]["label"].null_count == 0
    assert sum(table.num_rows for table in result.tables.values()) == len(rows)
    assert result.notes == {}


def test_a_text_with_and_without_a_label_is_no_train_row_where_its_label_measures(tmp_path: Path) -> None:
    result = prepared(files=tsv(tmp_path / "all.tsv", [*TRAIN, *((text, "") for text, _ in TRAIN)]), dev=0.3, test=0.3)
    measured = sum(result.tables[split].num_rows for split in ("dev", "test"))
    assert result.tables["train"].num_rows == 2 * (len(TRAIN) - measured)
    left_out = {note: count for note, count in result.notes.items() if note.startswith("left out")}
    assert set(left_out) == {f"left out of {split}: no label to measure with" for split in ("dev", "test")}
    assert sum(left_out.values()) == measured


def test_all_faults_of_all_files_come_in_one_error(tmp_path: Path, files: dict[str, str]) -> None:
    files["train"] = tsv(tmp_path / "train.tsv", [("a", "good"), ("", "good"), ("dev text 1", "good"), ("one field",)])
    files["dev"] = tsv(tmp_path / "dev.tsv", [*DEV, ("c", ""), ("d", "godo")])
    files["test"] = tsv(tmp_path / "test.tsv", [])
    assert faults(metric="pearson", name="My-Task", files=files, labels=["bad", "good"]) == [
        "task name 'My-Task': only a-z, 0-9 and _ may be used",
        "metric pearson: it does not fit classification; choose from accuracy, f1, macro_f1, mcc",
        "train.tsv, row 5 (1 field here): the header has 2 fields",
        "train.tsv, row 3: column 'text' holds no text; fill or remove these rows",
        "dev.tsv, row 4: the label is empty, but dev needs one for every row",
        "test.tsv: it has no row",
        "dev.tsv, row 5 ('godo'): the label is none of: bad, good",
        "train.tsv, row 4 (dev.tsv, row 2): "
        "this train text also stands in the dev split; duplicates: drop would leave it there alone",
        "train split: all its 2 labels are 'good'; there is nothing to tell apart",
    ]


def test_a_file_that_cannot_be_read_does_not_hide_the_faults_of_the_others(tmp_path: Path, files: dict[str, str]) -> None:
    files["train"] = str(tmp_path / "gone.csv")
    files["dev"] = tsv(tmp_path / "dev.tsv", DEV, ("sentence", "label"))
    files["test"] = tsv(tmp_path / "test.tsv", [("", "good")])
    assert faults(files=files) == [
        "gone.csv: there is no such file",
        "dev.tsv: there is no column 'text'; it has: sentence, label",
        "test.tsv, row 2: column 'text' holds no text; fill or remove these rows",
    ]


def test_a_label_that_train_does_not_have_is_unknown_in_test_unless_listed(tmp_path: Path, files: dict[str, str]) -> None:
    files["test"] = tsv(tmp_path / "test.tsv", [*TEST, ("x", "mixed")])
    assert faults(files=files) == ["test.tsv, row 5 ('mixed'): the label is none of: bad, good"]
    assert prepared(files=files, labels=["bad", "good", "mixed"]).tables["test"]["label"].to_pylist()[-1] == 2


def test_labels_may_be_called_otherwise_than_in_the_table(tmp_path: Path) -> None:
    rows = [(f"text {number}", number % 3) for number in range(60)]
    path = tsv(tmp_path / "codes.tsv", rows)
    named = prepared(files=path, dev=0.2, test=0.2, labels={1: "billing", 0: "other", 2: "other"})
    assert named.task.labels == ("billing", "other")
    found = {row["text_a"]: row["label"] for table in named.tables.values() for row in table.to_pylist()}
    assert found == {text: int(code != 1) for text, code in rows}
    assert faults(files=path, dev=0.2, test=0.2, labels={0: "a", 1: "b"}) == [
        "codes.tsv, rows 4 ('2'), 7 ('2'), 10 ('2'), 13 ('2'), 16 ('2') and 15 more: the label is none of: 0, 1"
    ]


@pytest.mark.parametrize("labels", [["x", "x"], ["one", "two"]])
def test_rows_that_were_refused_are_told_once_and_not_as_an_empty_split(tmp_path: Path, labels: list[str]) -> None:
    path = tsv(tmp_path / "scores.tsv", [(f"text {number}", labels[number % 2]) for number in range(40)])
    assert faults("regression", "pearson", files=path, dev=0.2, test=0.2) == [
        f"scores.tsv, rows {', '.join(f'{n} ({labels[n % 2]!r})' for n in range(2, 7))} and 35 more: "
        "the label must be a finite number"
    ]


def test_a_table_without_rows_is_called_so_and_nothing_else(tmp_path: Path) -> None:
    assert faults(files=tsv(tmp_path / "empty.tsv", []), dev=0.2, test=0.2) == ["empty.tsv: it has no row"]


def test_label_names_do_not_belong_to_regression(tmp_path: Path) -> None:
    path = tsv(tmp_path / "scores.tsv", [(f"text {number}", number) for number in range(40)])
    assert faults("regression", "f1", files=path, dev=0.2, test=0.2, labels=["a", "b"]) == [
        "metric f1: it does not fit regression; choose from pearson, spearman",
        "corpus.labels: label names belong to classification; leave them out",
    ]


def test_labels_that_contradict_each_other_or_are_rare_are_counted(tmp_path: Path, files: dict[str, str]) -> None:
    files["train"] = tsv(tmp_path / "train.tsv", [*TRAIN, ("the same", "good"), ("the same ", "bad"), ("once", "rare")])
    result = prepared(files=files, labels=["bad", "good", "rare", "never"])
    assert result.notes == {
        "row(s) of train have the text of another row of it": 1,
        "text(s) with different labels": 1,
        "label(s) without a train row: never": 1,
        "label(s) without a dev row, of which nothing is measured there: rare": 1,
        "label(s) without a test row, of which nothing is measured there: rare": 1,
        "label(s) with a single train row: rare; if they are quantities, the kind is regression": 1,
    }


def test_labels_that_differ_by_letter_case_alone_are_noted_and_kept(tmp_path: Path, files: dict[str, str]) -> None:
    files["train"] = tsv(tmp_path / "train.tsv", [*TRAIN, ("a", "Good"), ("b", "Good")])
    result = prepared(files=files)
    assert result.task.labels == ("Good", "bad", "good")
    assert result.notes["label(s) that differ from another by letter case alone: Good, good"] == 2


def test_a_listed_label_in_another_form_of_unicode_is_that_of_the_table(tmp_path: Path) -> None:
    forms = ("caf\u00e9", "cafe\u0301", "th\u00e9", "the\u0301")
    path = tsv(tmp_path / "x.tsv", [(f"text {number}", forms[number % 4]) for number in range(60)])
    assert prepared(files=path, dev=0.2, test=0.2).task.labels == ("caf\u00e9", "th\u00e9")
    assert prepared(files=path, dev=0.2, test=0.2, labels=["the\u0301", "caf\u00e9"]).task.labels == ("th\u00e9", "caf\u00e9")


def test_truth_values_and_texts_that_spell_them_are_two_classes_and_not_four(tmp_path: Path) -> None:
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


def test_splits_of_a_hub_set_that_nobody_asked_for_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    as_csv(tmp_path / "ds/train.csv", TRAIN)
    (tmp_path / "ds/test.csv").write_text("text,label\none field\n", encoding="utf-8")
    assert prepared(hub=str(tmp_path / "ds"), dev=0.2, test=0.2, splits={"train": "train"}).notes == {}
    assert faults(hub=str(tmp_path / "ds"), dev=0.2)[0].endswith("test.csv, row 2 (1 field here): the header has 2 fields")


def test_a_tsv_that_was_written_with_the_quotes_of_a_csv_is_noted(tmp_path: Path, files: dict[str, str]) -> None:
    quoted = [('"He said ""so"" twice"', "good"), ('"This film"', "bad"), ('a ""b"" c', "bad")]
    files["train"] = tsv(tmp_path / "train.tsv", [*TRAIN, *quoted])
    note = "row(s) of a tsv have a text in quotes with doubled quotes within, which stay in it; write such a table as csv"
    assert prepared(files=files).notes == {note: 1}


def test_a_table_that_is_separated_by_something_else_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("text;label\nfine;1\n")
    separated = "its columns are separated by ';', where commas are read in csv and tabs in tsv"
    assert faults(files=str(path), dev=0.2, test=0.2) == [
        f"x.csv: there is no column 'text'; it has: text;label; {separated}",
        f"x.csv: there is no column 'label'; it has: text;label; {separated}",
    ]


def test_a_quote_that_breaks_such_a_table_is_not_taken_for_its_fault(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('text;label\nfine;1\n"some; text";0\n')
    separated = "its columns are separated by ';', where commas are read in csv and tabs in tsv"
    assert faults(files=str(path), dev=0.2, test=0.2) == [f"x.csv: {separated}"]


def test_dropped_duplicates_and_capped_rows_are_counted(tmp_path: Path, files: dict[str, str]) -> None:
    files["train"] = tsv(tmp_path / "train.tsv", [*TRAIN, ("dev text 1", "good"), (" test text 1", "bad")])
    files["dev"] = tsv(tmp_path / "dev.tsv", [*DEV, ("test text 1", "bad")])
    result = prepared(files=files, duplicates="drop", rows={"train": 30})
    assert {split: table.num_rows for split, table in result.tables.items()} == {"train": 30, "dev": 2, "test": 3}
    assert result.notes == {
        "left out of train: the text stands in a later split": 2,
        "left out of dev: the text stands in a later split": 1,
        "left out of train: above the most rows": 10,
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


def test_secret_test_labels_are_a_fault_with_the_way_out(glue: dict[str, Any]) -> None:
    assert faults(**glue) == [
        f"{glue['hub']}/rte/test-0.parquet: no row has a label, so nothing can be measured on this test split; "
        "leave it out and give test as a share of train, or take another table"
    ]


def test_a_split_that_a_hub_set_does_not_have_is_named_with_those_it_has(glue: dict[str, Any]) -> None:
    assert faults(**glue, test=0.2, splits={"train": "train", "dev": "validation_matched"}) == [
        f"{glue['hub']}: there is no split 'validation_matched'; it has: train, validation, test; "
        "say with splits which is which"
    ]
