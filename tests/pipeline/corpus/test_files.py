import gzip
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.corpus.files import read_file
from pipeline.corpus.tables import ErrorList, Table

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def read(path: Path, *wanted: str) -> Table:
    errors = ErrorList()
    table = read_file(path, wanted, errors)
    assert errors.lines() == []
    assert table is not None
    return table


def errors_of(path: Path, *wanted: str) -> list[str]:
    errors = ErrorList()
    read_file(path, wanted, errors)
    return [line.replace(str(path), path.name) for line in errors.lines()]


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def as_csv(texts: list[str]) -> str:
    return "text\n" + "".join('"' + text.replace('"', '""') + '"\n' for text in texts)


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1))
@example(["NA", "null", "007", "  leading", "1e5", 'say "hi"', "a, b", "two\nlines", "\u2028 inside", "a\0b", "a" * 200_000])
def test_any_text_survives_csv(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = written(tmp_path_factory.mktemp("csv") / "x.csv", as_csv(texts))
    assert read(path, "text").columns["text"] == texts


def test_csv_rows_are_numbered_by_the_line_they_start_on(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv", 'label,text\r\n1,"two\r\nlines"\r\n\r\n0,next\r\n')
    table = read(path, "text", "label")
    assert table.columns == {"text": ["two\r\nlines", "next"], "label": ["1", "0"]}
    assert table.numbers == [2, 5]


def test_tsv_has_no_quoting_and_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    path = written(tmp_path / "x.tsv", 'label\ttext\n1\t"an open quote\r\n0\tsaid "so", twice\n1\ta\u2028b\x0bc\n\n')
    assert read(path, "text").columns["text"] == ['"an open quote', 'said "so", twice', "a\u2028b\x0bc"]


def test_bytes_that_are_not_utf8_are_named_by_offset_and_row_beside_other_errors(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv", b"\xef\xbb\xbftext\nfine \xef\xbf\xbd\ncaf\xe9\na,b\n")
    assert path.read_bytes()[20] == 0xE9
    first, second = errors_of(path, "text")
    assert first.startswith("x.csv, row 3 (byte 20): not UTF-8")
    assert second.startswith("x.csv, row 4 (2 fields here)")


@pytest.mark.parametrize(
    ("name", "content", "start", "cause"),
    [
        ("x.tsv", "a\tb\n1\t2\n1\n1\t2\t3\n", "x.tsv, rows 3 (1 field here), 4 (3 fields here): ", "the header has 2 fields"),
        ("x.csv", '"a\n', "x.csv, row 1 (unexpected end of data): ", "opened and never closed"),
        ("x.csv", 'a\n"a "word" here"\nfine\n', "x.csv, row 2 (',' expected after '\"'): ", "must be doubled"),
        ("x.csv", "", "x.csv: ", "empty; its first line must name the columns"),
        ("x.csv", "a,a,b\n", "x.csv: ", "column 'a' occurs more than once"),
        ("x.jsonl", '{"a": 1, "b": 1, "b": 2}\n{"a": 1, "a": 2}', "x.jsonl, row 2: ", "column 'a' occurs more than once"),
        ("x.jsonl", '{"a": "a"}\n[1]\n\n{"a": \n', "x.jsonl, rows 2 ('[1]'), 4 ('{\"a\": '): ", "must be one JSON object"),
        pytest.param("x.jsonl", "{}\n" + "[" * 100_000, "x.jsonl, row 2 ('[[[", "must be one JSON object", id="deep"),
        ("x.jsonl", json.dumps([{"a": 1}], indent=1), "x.jsonl: ", "is a JSON array; write one object per line"),
        ("x.parquet", "a\nno\n", "x.parquet: not readable as parquet (", ")"),
        ("x.csv", LFS, "x.csv: ", "run git lfs pull"),
        ("x.xlsx", b"PK\x03\x04", "x.xlsx: ", "is an Excel file or a zip archive; save the table as csv"),
        ("x.xlsx", "x", "x.xlsx: ", "must end in .csv, .tsv, .jsonl, .ndjson, .json, .parquet; save other formats as csv"),
        ("x.tsv", "a\tb\n".encode("utf-16"), "x.tsv: ", "is UTF-16; save it as UTF-8"),
        ("x.csv.gz", gzip.compress(b"a\n" * 100, mtime=0)[:-9], "x.csv.gz: not readable as gzip (", "copy the file again"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_error_with_the_cause(
    tmp_path: Path, name: str, content: str | bytes, start: str, cause: str
) -> None:
    (line,) = errors_of(written(tmp_path / name, content), "a")
    assert line.startswith(start)
    assert line.endswith(cause)


def test_a_missing_file_and_folders_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").mkdir()
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "saved")
    assert errors_of(tmp_path / "y.csv") == ["y.csv: the file does not exist"]
    for name, what in (("x.parquet", "a folder,"), ("saved", "a folder written by save_to_disk,")):
        (line,) = errors_of(tmp_path / name)
        assert what in line
        assert line.endswith("use hub for folders")


def test_parquet_reads_the_wanted_columns_and_lists_all(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    text, label = pa.array(["NA", None], pa.large_string()), pa.array(["b", "a"]).dictionary_encode()
    pa.parquet.write_table(pa.table({"text": text, "more": [1, 2], "label": label}), path)
    table = read(path, "text", "label", "absent")
    assert table.columns == {"text": ["NA", None], "label": ["b", "a"]}
    assert table.header == ("text", "more", "label")
    assert list(table.numbers) == [1, 2]
    pa.parquet.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    assert list(read(path, "text").numbers) == []
    pa.parquet.write_table(pa.table({}), path)
    assert read(path, "text").header == ()


def test_json_rows_may_lack_keys_and_keep_their_types_and_tables_may_be_gzipped(tmp_path: Path) -> None:
    rows = [{"text": "NA", "label": 1}, {"text": "\u2028"}, {"label": None, "text": "007"}]
    content = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n"
    wanted = {"text": ["NA", "\u2028", "007"], "label": [1, None, None]}
    for path in (written(tmp_path / "x.jsonl", content), written(tmp_path / "X.JSONL.GZ", gzip.compress(content.encode()))):
        assert read(path, "text", "label", "absent").columns == wanted
    assert read(written(tmp_path / "x.csv.gz", gzip.compress(b"\xef\xbb\xbftext\nNA\n")), "text").columns == {"text": ["NA"]}


def test_a_parquet_file_of_datasets_brings_its_class_names(tmp_path: Path) -> None:
    features = datasets.Features({"label": datasets.ClassLabel(names=["bad", "good"])})
    datasets.Dataset.from_dict({"label": [1, 0, -1, None]}, features).to_parquet(tmp_path / "x.parquet")
    table = read(tmp_path / "x.parquet", "label")
    assert (table.columns, table.class_names) == ({"label": ["good", "bad", None, None]}, {"label": ("bad", "good")})
