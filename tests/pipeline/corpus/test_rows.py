from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from pipeline.corpus.rows import (
    Parts,
    Row,
    names_in,
    rows_of,
    with_one_spelling,
)
from pipeline.corpus.settings import CorpusSettings
from pipeline.corpus.tables import ErrorList, Table
from pipeline.corpus.task import Kind


def labelled(labels: list[Any], kind: Kind = "classification") -> tuple[list[Any], list[str]]:
    errors = ErrorList()
    columns = {"text": ["text"] * len(labels), "label": labels}
    table = Table("x.csv", tuple(columns), columns, range(2, 2 + len(labels)))
    return [row.label for row in rows_of(table, ["text"], "label", kind, errors)], errors.lines()


def rows(*labels: str | float | None) -> list[Row]:
    return [Row(("text",), label, "x.csv", number) for number, label in enumerate(labels, start=2)]


def errors_of(check: Any, *arguments: Any) -> list[str]:
    errors = ErrorList()
    check(*arguments, errors)
    return errors.lines()


LOOK_ABSENT = ["None", "NA", "N/A", "nan", "NaN", "null", "NULL", "007", "#N/A", "-"]


UNNAMED = [1.5, [1], b"a", date(2020, 1, 1), Decimal("1.5"), "\ud83d"]
NO_VALUES = ["four", "nan", "3_5", "\uff13.\uff15", "3,5", "1e400", 1e39, True, [1], 10**39, b"3.5", Decimal("Infinity")]


@pytest.mark.parametrize(
    ("kind", "label", "wanted"),
    [("classification", label, "a name or a whole number") for label in UNNAMED]
    + [("regression", label, "a finite number") for label in NO_VALUES],
)
def test_what_cannot_be_a_label_is_shown_with_its_row(kind: Kind, label: Any, wanted: str) -> None:
    assert labelled([label], kind) == ([], [f"x.csv, row 2 ({label!r}): the label must be {wanted}"])


@pytest.mark.parametrize(
    ("text", "shown", "message"),
    [
        ("", "", "is empty"),
        (" \t\n", "", "is empty"),
        (None, "", "is empty"),
        (7, " (7)", "contains a value that is not text"),
        (b"seven", "", "contains bytes"),
        ("\ud83d", "", "contains an unpaired surrogate"),
    ],
)
def test_unusable_texts_are_named_with_their_column(text: Any, shown: str, message: str) -> None:
    errors = ErrorList()
    table = Table("x.jsonl", ("a", "b"), {"a": ["fine", "fine"], "b": [text, "fine"]}, [2, 3])
    assert [row.number for row in rows_of(table, ["a", "b"], "absent", "classification", errors)] == [3]
    (line,) = errors.lines()
    assert line.startswith(f"x.jsonl, row 2{shown}: column 'b' {message}")


def test_names_are_sorted_by_value_if_all_are_whole_numbers() -> None:
    assert names_in(rows("10", "9", "-1", None, "9")) == ("-1", "9", "10")
    assert names_in(rows("10", "9", "b")) == ("10", "9", "b")
    names = [f"{number:0{width}d}" for number in range(9) for width in range(1, 5)]
    assert names_in(rows(*names)) == tuple(sorted(names, key=lambda name: (int(name), name))), "1 and 01 have an order too"


def settings(labels: Any = None) -> CorpusSettings:
    wanted = {"files": "x.csv", "text": "text", "label": "label", "duplicates": "error"}
    return CorpusSettings.model_validate(wanted | ({"labels": labels} if labels else {}))


def spelled(labels: list[Any], listed: Any = None, read: list[Any] | None = None) -> Parts:
    """The rows of train and test after the labels have one spelling; ``read`` is the label column of another table."""
    table = Table("x", ("label",), {"label": read or []}, [1])
    parts: Parts = {"train": rows(*labels[:2]), "test": rows(*labels[2:])}
    return with_one_spelling(parts, {"test": [table]}, settings(listed))


@pytest.mark.parametrize(
    ("labels", "listed", "expected"),
    [
        (["0.0", None, "1.00", "-2.0", "3"], None, ["0", None, "1", "-2", "3"]),
        (["1.0", "1.5", "2.0"], None, None),
        (["1.0", "2.0"], {"1.0": "bad", "2.0": "good"}, None),
        ([1.0, 2.5], None, None),
    ],
)
def test_whole_labels_lose_their_decimals_unless_the_settings_list_them(labels: list[Any], listed: Any, expected: Any) -> None:
    assert [row.label for part in spelled(labels, listed).values() for row in part] == (expected or labels)


@pytest.mark.parametrize(
    ("read", "listed", "expected"),
    [
        ([True, "x"], None, ["true", "true", "false", "x", None]),
        (["True", "x"], None, ["true", "True", "FALSE", "x", None]),
        ([False], ["True", "False"], ["True", "True", "False", "x", None]),
        ([False], ["true", "True", "x"], ["true", "True", "false", "x", None]),
    ],
)
def test_texts_are_truth_values_only_if_the_corpus_has_some(read: list[Any], listed: Any, expected: list[Any]) -> None:
    found = spelled(["true", "True", "FALSE", "x", None], listed, read)
    assert [row.label for part in found.values() for row in part] == expected


@pytest.mark.parametrize(
    ("kind", "written", "expected"),
    [
        ("classification", ["good", " bad ", 1, 1.0, -1, "01"], ["good", "bad", "1", "1", "-1", "01"]),
        ("classification", LOOK_ABSENT, LOOK_ABSENT),
        ("classification", ["", "  ", None, float("nan"), np.float32("nan"), Decimal("NaN")], [None] * 6),
        ("classification", ["caf\u00e9", " cafe\u0301"], ["caf\u00e9"] * 2),
        ("classification", [Decimal("2.00"), np.float32(2), np.int64(2)], ["2"] * 3),
        ("classification", [True, False], ["true", "false"]),
        ("regression", ["", "  ", None, float("nan"), 1.0], [None, None, None, None, 1.0]),
        ("regression", ["-1.5", ".5", "+4", "5.", "1E2", Decimal("2.50")], [-1.5, 0.5, 4.0, 5.0, 100.0, 2.5]),
        ("regression", ["4.2", 3, " -1e-3 "], [float(np.float32(4.2)), 3.0, float(np.float32(-1e-3))]),
    ],
)
def test_labels_are_names_or_float32_values_however_they_are_stored(
    kind: Kind, written: list[Any], expected: list[Any]
) -> None:
    assert labelled(written, kind) == (expected, [])
