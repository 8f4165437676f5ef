from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from pipeline.corpus.faults import FoundFaults
from pipeline.corpus.rows import Row, check_known, check_labelled, check_varied, has_columns, names_in, rows_of
from pipeline.corpus.tables import Table
from pipeline.corpus.task import Kind


def labelled(labels: list[Any], kind: Kind = "classification") -> tuple[list[Any], list[str]]:
    found = FoundFaults()
    columns = {"text": ["text"] * len(labels), "label": labels}
    table = Table("x.csv", tuple(columns), columns, range(2, 2 + len(labels)))
    return [row.label for row in rows_of(table, ["text"], "label", kind, found)], found.lines()


def rows(*labels: str | float | None) -> list[Row]:
    return [Row(("text",), label, "x.csv", number) for number, label in enumerate(labels, start=2)]


def faults(check: Any, *arguments: Any) -> list[str]:
    found = FoundFaults()
    check(*arguments, found)
    return found.lines()


def test_names_and_whole_numbers_are_label_names_however_they_are_stored() -> None:
    assert labelled(["good", " bad ", 1, 1.0, -1, "01"]) == (["good", "bad", "1", "1", "-1", "01"], [])


def test_an_empty_cell_a_blank_one_and_a_null_are_no_label() -> None:
    assert labelled(["", "  ", None]) == ([None, None, None], [])
    assert labelled(["", "  ", None], "regression") == ([None, None, None], [])


def test_a_label_name_has_one_form_of_unicode_and_whole_decimals_are_their_digits() -> None:
    assert labelled(["caf\u00e9", " cafe\u0301"]) == (["caf\u00e9"] * 2, [])
    numbers = [Decimal("2.00"), np.float32(2), np.int64(2), Decimal("NaN"), np.float32("nan")]
    assert labelled(numbers) == (["2", "2", "2", None, None], [])


def test_names_that_look_as_if_nothing_stood_there_are_names() -> None:
    names = ["None", "NA", "N/A", "nan", "NaN", "null", "NULL", "007", "#N/A", "-"]
    assert labelled(names) == (names, [])


@pytest.mark.parametrize("label", [1.5, [1], {"a": 1}, b"a", date(2020, 1, 1), Decimal("1.5"), Decimal("Infinity"), "\ud83d"])
def test_what_can_name_nothing_and_is_no_number_is_refused_without_a_traceback(label: Any) -> None:
    (line,) = labelled([label])[1]
    assert line.startswith("x.csv, row 2 (")
    assert line.endswith("): the label must be a name or a whole number")


def test_what_cannot_be_a_label_name_is_shown() -> None:
    assert labelled([1.5, [1]])[1] == ["x.csv, rows 2 (1.5), 3 ([1]): the label must be a name or a whole number"]


def test_a_truth_value_is_called_as_json_spells_it_and_what_is_not_a_number_is_no_label() -> None:
    assert labelled([True, False, float("nan")]) == (["true", "false", None], [])
    assert labelled([1.0, float("nan")], "regression") == ([1.0, None], [])


REFUSED = [
    *("four", "nan", "inf", "infinity", "3_5", "\uff13.\uff15", "3,5", "0x1", "1e400", "."),
    *(1e39, True, [1], 10**39, b"3.5", date(2020, 1, 1), Decimal("Infinity")),
]


def test_numbers_in_ordinary_decimal_notation_are_values_of_a_regression() -> None:
    written = ["-1.5", "2e-3", ".5", "+4", "5.", "1E2", Decimal("2.50"), np.float32(1.5)]
    assert labelled(written, "regression") == ([-1.5, float(np.float32(2e-3)), 0.5, 4.0, 5.0, 100.0, 2.5, 1.5], [])


def test_regression_labels_are_what_float32_holds() -> None:
    values, lines = labelled(["4.2", 3, " -1e-3 "], "regression")
    assert (values, lines) == ([float(np.float32(4.2)), 3.0, float(np.float32(-1e-3))], [])


@pytest.mark.parametrize("label", REFUSED)
def test_a_regression_label_that_is_no_finite_number_is_shown(label: Any) -> None:
    assert labelled([label, 10**400], "regression")[0] == []
    assert labelled([label], "regression")[1] == [f"x.csv, row 2 ({label!r}): the label must be a finite number"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "row 2: column 'b' holds no text; fill or remove these rows"),
        (" \t\n", "row 2: column 'b' holds no text; fill or remove these rows"),
        (None, "row 2: column 'b' holds no text; fill or remove these rows"),
        (7, "row 2 (7): column 'b' holds something other than text"),
        (b"seven", "row 2: column 'b' holds bytes; write the column as text"),
        ("\ud83d", "row 2: column 'b' holds half a surrogate pair, which is not a character"),
    ],
)
def test_texts_that_say_nothing_are_named_with_their_column(text: Any, fault: str) -> None:
    found = FoundFaults()
    table = Table("x.jsonl", ("a", "b"), {"a": ["fine", "fine"], "b": [text, "fine"]}, [2, 3])
    assert [row.number for row in rows_of(table, ["a", "b"], None, "classification", found)] == [3]
    assert found.lines() == [f"x.jsonl, {fault}"]


def test_texts_keep_their_spaces_and_their_key_does_not() -> None:
    (row,) = rows_of(Table("x", ("t",), {"t": [" a\u00a0"]}, [1]), ["t"], None, "classification", FoundFaults())
    assert (row.texts, row.key) == ((" a\u00a0",), ("a",))
    assert Row(("cafe\u0301",), None, "x", 1).key == Row(("caf\u00e9 ",), None, "x", 2).key == ("caf\u00e9",)


def test_rows_of_several_files_keep_their_file() -> None:
    table = Table("ds (train)", ("t",), {"t": ["a", ""]}, [2, 2], sources=["0.csv", "1.csv"])
    found = FoundFaults()
    assert [row.table for row in rows_of(table, ["t"], "", "classification", found)] == ["0.csv"]
    assert found.lines() == ["1.csv, row 2: column 't' holds no text; fill or remove these rows"]
    assert table.faulty(found)


def test_missing_columns_are_named_with_those_there_are() -> None:
    table = Table("x.csv", ("Text", "stars"), {}, [])
    assert faults(has_columns, table, ["text", "label"]) == [
        "x.csv: there is no column 'text'; it has: Text, stars",
        "x.csv: there is no column 'label'; it has: Text, stars",
    ]


def test_a_space_or_nothing_in_the_name_of_a_column_is_seen() -> None:
    (fault,) = faults(has_columns, Table("x.csv", (" text", "label", ""), {}, []), ["text"])
    assert fault == "x.csv: there is no column 'text'; it has: ' text', label, ''"


def test_a_split_for_measuring_needs_every_label() -> None:
    assert faults(check_labelled, rows("a", None, "b"), "x.csv", "dev") == [
        "x.csv, row 3: the label is empty, but dev needs one for every row"
    ]


def test_a_split_without_any_label_is_one_fault_with_a_way_out() -> None:
    assert faults(check_labelled, rows(None, None), "glue (test)", "test") == [
        "glue (test): no row has a label, so nothing can be measured on this test split; "
        "leave it out and give test as a share of train, or take another table"
    ]


def test_unknown_labels_are_shown_beside_the_known_ones() -> None:
    assert faults(check_known, rows("good", "godo", None, "Bad"), ["bad", "good"]) == [
        "x.csv, rows 3 ('godo'), 5 ('Bad'): the label is none of: bad, good"
    ]


def test_many_known_labels_are_cut() -> None:
    (line,) = faults(check_known, rows("x"), [f"n{number}" for number in range(77)])
    assert line.endswith("n18, n19 … (77 names)")


def test_labels_that_are_all_the_same_leave_nothing_to_learn() -> None:
    assert faults(check_varied, rows("good", None, "good"), "train split") == [
        "train split: all its 2 labels are 'good'; there is nothing to tell apart"
    ]
    assert faults(check_varied, rows("good", "bad"), "train split") == []
    assert faults(check_varied, rows(None, None), "train split") == []


def test_names_are_sorted_as_numbers_if_all_of_them_are() -> None:
    assert names_in(rows("10", "9", "-1", None, "9")) == ("-1", "9", "10")
    assert names_in(rows("10", "9", "b")) == ("10", "9", "b")


def test_two_names_of_one_number_have_an_order_too() -> None:
    """Of a set of names each process would otherwise have an order of its own."""
    names = [f"{number:0{width}d}" for number in range(9) for width in range(1, 5)]
    assert names_in(rows(*names)) == tuple(sorted(names, key=lambda name: (int(name), name)))
