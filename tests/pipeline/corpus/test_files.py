import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.faults import FoundFaults
from pipeline.corpus.files import read_file
from pipeline.corpus.tables import Table

EXACT = [
    "NA",
    "null",
    "007",
    "  leading",
    "nan",
    "1e5",
    "-",
    'say "hi"',
    "a, b",
    "two\nlines",
    "naïve ☃",
    "\u2028 inside",
]


def read(path: Path, *wanted: str) -> Table:
    found = FoundFaults()
    table = read_file(path, wanted, found)
    assert found.lines() == []
    assert table is not None
    return table


def faults(path: Path, *wanted: str) -> list[str]:
    found = FoundFaults()
    read_file(path, wanted, found)
    return [line.replace(str(path), path.name) for line in found.lines()]


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def as_csv(texts: list[str]) -> str:
    return "text\n" + "".join('"' + text.replace('"', '""') + '"\n' for text in texts)


def test_csv_texts_stay_exactly_as_they_stand(tmp_path: Path) -> None:
    assert read(written(tmp_path / "x.csv", as_csv(EXACT)), "text").columns["text"] == EXACT


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1))
def test_any_text_survives_csv(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = written(tmp_path_factory.mktemp("csv") / "x.csv", as_csv(texts))
    assert read(path, "text").columns["text"] == texts


def test_csv_rows_are_numbered_by_the_line_they_start_on(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv", 'label,text\r\n1,"two\r\nlines"\r\n\r\n0,next\r\n')
    table = read(path, "text", "label")
    assert table.columns == {"text": ["two\r\nlines", "next"], "label": ["1", "0"]}
    assert table.numbers == [2, 5]


def test_tsv_has_no_quoting(tmp_path: Path) -> None:
    path = written(tmp_path / "x.tsv", 'label\ttext\n1\t"an open quote\n0\tsaid "so", twice\r\n\n')
    assert read(path, "text").columns["text"] == ['"an open quote', 'said "so", twice']


def test_a_line_separator_character_ends_no_line(tmp_path: Path) -> None:
    assert read(written(tmp_path / "x.tsv", "label\ttext\n1\ta\u2028b\x0bc\n"), "text").columns["text"] == ["a\u2028b\x0bc"]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv", b"\xef\xbb\xbftext,label\nfine,1\n")
    assert read(path, "text").available == ("text", "label")


def test_bytes_that_are_not_utf8_are_named_by_offset_and_row_beside_other_faults(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv", b"\xef\xbb\xbftext\nfine\ncaf\xe9\na,b\n")
    assert faults(path, "text") == [
        "x.csv, row 3 (byte 16): not UTF-8; save the file as UTF-8",
        "x.csv, row 4 (2 fields here): the header has 1 field",
    ]
    assert path.read_bytes()[16] == 0xE9


def test_utf16_is_called_by_its_name(tmp_path: Path) -> None:
    path = written(tmp_path / "x.tsv", "text\tlabel\na\tb\n".encode("utf-16"))
    assert faults(path, "text") == ["x.tsv: the file is UTF-16; save it as UTF-8"]


def test_rows_with_too_few_or_too_many_fields_are_named_with_their_count(tmp_path: Path) -> None:
    path = written(tmp_path / "x.tsv", "a\tb\n1\t2\n1\n1\t2\t3\n")
    assert faults(path, "a") == ["x.tsv, rows 3 (1 field here), 4 (3 fields here): the header has 2 fields"]


@pytest.mark.parametrize(
    ("content", "row", "message", "cause"),
    [
        ('text\nfine\n"never closed\nmore\n', 3, "unexpected end of data", "a quote is opened here and never closed"),
        ('text\n"a "word" here"\nfine\n', 2, "',' expected after '\"'", "a quote inside a quoted field must be doubled"),
        ('"text\n', 1, "unexpected end of data", "a quote is opened here and never closed"),
    ],
)
def test_csv_that_cannot_be_parsed_is_named_by_the_row_where_it_starts(
    tmp_path: Path, content: str, row: int, message: str, cause: str
) -> None:
    path = written(tmp_path / "x.csv", content)
    assert faults(path, "text") == [f"x.csv, row {row} ({message}): the csv cannot be parsed from here on; {cause}"]


def test_a_text_longer_than_the_csv_modules_own_limit_is_read(tmp_path: Path) -> None:
    assert len(read(written(tmp_path / "x.csv", "text\n" + "a" * 200_000 + "\n"), "text").columns["text"][0]) == 200_000


def test_a_header_that_names_a_wanted_column_twice_is_refused_and_what_nobody_reads_is_not(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv", "text,text,label\na,b,c\n")
    assert faults(path, "text") == ["x.csv: the header names a column twice: text"]
    assert read(path, "label").columns == {"label": ["c"]}
    assert read(written(tmp_path / "y.csv", "text,label,,\na,b,,\n"), "text", "label").columns == {
        "text": ["a"],
        "label": ["b"],
    }


def test_an_empty_file_and_a_missing_one_and_an_unknown_ending_are_told_apart(tmp_path: Path) -> None:
    assert faults(written(tmp_path / "x.csv", ""), "text") == ["x.csv: the file is empty; its first line must name the columns"]
    assert faults(tmp_path / "y.csv", "text") == ["y.csv: there is no such file"]
    assert faults(written(tmp_path / "z.xlsx", "x"), "text") == [
        "z.xlsx: a table's name must end in .csv, .tsv, .jsonl, .parquet"
    ]


def test_jsonl_rows_may_lack_keys_and_keep_their_types(tmp_path: Path) -> None:
    rows = [{"text": "NA", "label": 1}, {"text": "\u2028"}, {"label": None, "text": "007"}]
    path = written(tmp_path / "x.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n")
    assert read(path, "text", "label").columns == {"text": ["NA", "\u2028", "007"], "label": [1, None, None]}


def test_lines_that_are_not_one_json_object_are_named(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", '{"text": "a"}\n[1]\n\n{"text": \n' + "[" * 100_000)
    assert faults(path, "text") == [
        f"x.jsonl, rows 2 ('[1]'), 4 ('{{\"text\": '), 5 ('{'[' * 39}…'): each line must be one JSON object"
    ]


def test_a_json_array_is_called_so_whatever_its_name_ends_in(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", json.dumps([{"text": "a"}, {"text": "b"}], indent=1))
    assert faults(path, "text") == [
        "x.jsonl: the file is one JSON array; write one object a line, without brackets and commas around them"
    ]


def test_parquet_reads_only_what_is_wanted_and_lists_what_is_there(tmp_path: Path) -> None:
    pa.parquet.write_table(pa.table({"text": ["NA", None], "more": [1, 2], "label": [1, 0]}), tmp_path / "x.parquet")
    table = read(tmp_path / "x.parquet", "text", "label", "absent")
    assert table.columns == {"text": ["NA", None], "label": [1, 0]}
    assert table.available == ("text", "more", "label")
    assert list(table.numbers) == [1, 2]


def test_a_file_that_only_claims_to_be_parquet_is_refused(tmp_path: Path) -> None:
    (fault,) = faults(written(tmp_path / "x.parquet", "text\nno\n"), "text")
    assert fault.startswith("x.parquet: not readable as parquet (")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in hub layout: two configurations, one of them with declared label names."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "hub"
    features = datasets.Features(
        {
            "premise": datasets.Value("string"),
            "hypothesis": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["entailment", "neutral"]),
        }
    )
    for split, labels in {"train": [0, 1], "validation_matched": [1, 0], "test": [-1, -1]}.items():
        rows = {"premise": ["p 1", "p 2"], "hypothesis": ["h 1", "h 2"], "label": labels}
        (folder / "mnli").mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(rows, features).to_parquet(folder / "mnli" / f"{split}-0.parquet")
    written(folder / "plain.csv", "text,label\nfine,1\n")
    splits = "".join(
        f"  - split: {split}\n    path: mnli/{split}-*.parquet\n" for split in ("train", "validation_matched", "test")
    )
    configs = f"- config_name: mnli\n  data_files:\n{splits}- config_name: plain\n  data_files: plain.csv\n"
    written(folder / "README.md", f"---\nconfigs:\n{configs}---\n")
    return folder


def test_a_hub_set_gives_its_splits_with_label_names_and_secret_labels_as_none(hub: Path) -> None:
    found = FoundFaults()
    tables = read_hub(str(hub), "mnli", None, ["premise", "hypothesis", "label"], found)
    assert found.lines() == []
    assert {split: table.columns["label"] for split, table in tables.items()} == {
        "train": ["entailment", "neutral"],
        "validation_matched": ["neutral", "entailment"],
        "test": [None, None],
    }
    assert tables["train"].class_names == {"label": ("entailment", "neutral")}
    assert tables["test"].name == f"{hub} (test)"
    assert list(tables["test"].numbers) == [1, 2]


def test_a_hub_set_that_cannot_be_loaded_is_one_sentence(hub: Path) -> None:
    found = FoundFaults()
    assert read_hub(str(hub), "mnil", None, ["premise"], found) == {}
    (fault,) = found.lines()
    assert fault.startswith(f"{hub}: datasets cannot load it (BuilderConfig 'mnil' not found. Available: ['mnli', 'plain'])")
