import gzip
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

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
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
    assert faults(path, "text") == ["x.csv: it has a column twice: text"]
    assert read(path, "label").columns == {"label": ["c"]}
    assert read(written(tmp_path / "y.csv", "text,label,,\na,b,,\n"), "text", "label").columns == {
        "text": ["a"],
        "label": ["b"],
    }


def test_an_empty_file_and_a_missing_one_and_an_unknown_ending_are_told_apart(tmp_path: Path) -> None:
    assert faults(written(tmp_path / "x.csv", ""), "text") == ["x.csv: the file is empty; its first line must name the columns"]
    assert faults(tmp_path / "y.csv", "text") == ["y.csv: there is no such file"]
    assert faults(written(tmp_path / "z.xlsx", "x"), "text") == [
        "z.xlsx: a table's name must end in .csv, .tsv, .jsonl, .ndjson, .json, .parquet; save other tables as csv"
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


@pytest.mark.parametrize("name", ["x.csv.gz", "X.CSV.GZ", "x.tsv.gz", "x.jsonl.gz"])
def test_gzipped_tables_are_read_as_those_within(tmp_path: Path, name: str) -> None:
    content = {".csv": "text\nNA\n", ".tsv": "text\nNA\n", ".jsonl": '{"text": "NA"}\n'}[Path(name.lower()).stem[1:]]
    assert read(written(tmp_path / name, gzip.compress(content.encode())), "text").columns == {"text": ["NA"]}


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("x.csv", LFS, "it is a pointer of git-lfs, not the table; fetch that with git lfs pull"),
        ("x.parquet", LFS, "it is a pointer of git-lfs, not the table; fetch that with git lfs pull"),
        ("x.xlsx", b"PK\x03\x04", "it is an Excel file or a zip archive; save the table as csv"),
        ("x.csv", b"PK\x03\x04", "it is an Excel file or a zip archive; save the table as csv"),
        ("x.csv", "text\nno mark\n".encode("utf-16-le"), "the file is UTF-16; save it as UTF-8"),
        ("x.csv.gz", gzip.compress(b"text\n" * 100, mtime=0)[:-9], "not readable as gzip ("),
        ("x.json", b'[{"text": "a"}]', "the file is one JSON array; write one object a line, without brackets"),
        ("x.parquet", b"", "not readable as parquet ("),
    ],
)
def test_what_is_no_table_is_said_in_one_sentence(tmp_path: Path, name: str, content: bytes, fault: str) -> None:
    (line,) = faults(written(tmp_path / name, content), "text")
    assert line.startswith(f"{name}: {fault}")


def test_a_folder_is_no_file_and_the_way_out_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").mkdir()
    way_out = "and files takes files; name the folder as hub, in place of files"
    assert faults(tmp_path / "x.parquet") == [f"x.parquet: it is a folder, {way_out}"]
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "saved")
    assert faults(tmp_path / "saved") == [f"saved: it is a folder that datasets saved (save_to_disk), {way_out}"]


def test_a_nul_in_a_csv_is_a_character_like_others(tmp_path: Path) -> None:
    assert read(written(tmp_path / "x.csv", b"text,label\na\0b,1\n"), "text").columns["text"] == ["a\0b"]


def test_a_wanted_column_that_is_twice_in_a_parquet_is_refused_and_another_is_not(tmp_path: Path) -> None:
    columns = [pa.array(["a"]), pa.array(["b"]), pa.array(["b"])]
    pa.parquet.write_table(pa.table(columns, names=["text", "label", "label"]), tmp_path / "x.parquet")
    assert faults(tmp_path / "x.parquet", "text", "label") == ["x.parquet: it has a column twice: label"]
    assert read(tmp_path / "x.parquet", "text").columns == {"text": ["a"]}


def test_a_wanted_key_that_is_twice_in_a_json_object_is_refused_with_its_row_and_another_is_not(tmp_path: Path) -> None:
    lines = ['{"text": "a", "more": 1, "more": 2}', '{"text": "b", "text": "c"}', '{"text": {"x": 1, "x": 2}}']
    path = written(tmp_path / "x.jsonl", "\n".join(lines))
    assert faults(path, "text") == ["x.jsonl, row 2: it has a column twice: text"]


def test_an_empty_parquet_and_one_without_columns_are_tables_without_rows(tmp_path: Path) -> None:
    pa.parquet.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "x.parquet")
    pa.parquet.write_table(pa.table({}), tmp_path / "y.parquet")
    assert list(read(tmp_path / "x.parquet", "text").numbers) == []
    assert read(tmp_path / "y.parquet", "text").available == ()


def test_categories_and_long_strings_of_a_parquet_are_texts(tmp_path: Path) -> None:
    columns = {"text": pa.array(["NA", None], pa.large_string()), "label": pa.array(["b", "a"]).dictionary_encode()}
    pa.parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet", "text", "label").columns == {"text": ["NA", None], "label": ["b", "a"]}


def test_a_parquet_of_datasets_brings_its_class_names(tmp_path: Path) -> None:
    features = datasets.Features({"label": datasets.ClassLabel(names=["bad", "good"])})
    datasets.Dataset.from_dict({"label": [1, 0, -1, None]}, features).to_parquet(tmp_path / "x.parquet")
    table = read(tmp_path / "x.parquet", "label")
    assert (table.columns, table.class_names) == ({"label": ["good", "bad", None, None]}, {"label": ("bad", "good")})
