from typing import Any

import pytest

from pipeline.corpus.labels import called, with_truth_values, without_decimals
from pipeline.corpus.rows import Row
from pipeline.corpus.settings import CorpusSettings
from pipeline.corpus.splits import Parts
from pipeline.corpus.tables import Table
from pipeline.corpus.task import Split


def parts(**labels: list[str | float | None]) -> Parts:
    splits: dict[str, Split] = {"train": "train", "test": "test"}
    return {splits[split]: [Row((f"text {n}",), label, split, n) for n, label in enumerate(of)] for split, of in labels.items()}


def labels_of(rows: Parts) -> list[list[str | float | None]]:
    return [[row.label for row in part] for part in rows.values()]


def settings(labels: Any = None) -> CorpusSettings:
    wanted = {"files": "x.csv", "text": "text", "label": "label", "duplicates": "refuse"}
    return CorpusSettings.model_validate(wanted | ({"labels": labels} if labels else {}))


@pytest.mark.parametrize(
    ("declared", "train", "test"),
    [
        (None, ["0", None, "1", "-2"], ["0", "1"]),
        ({0: "bad", 1: "good", -2: "awful"}, ["bad", None, "good", "awful"], ["bad", "good"]),
    ],
)
def test_integers_with_gaps_as_a_text_table_holds_them_are_integers_and_those_of_another(
    declared: Any, train: list[str | None], test: list[str]
) -> None:
    rows = parts(train=["0.0", None, "1.0", "-2.0"], test=["0", "1"])
    assert labels_of(called(without_decimals(rows, settings(declared)), settings(declared))) == [train, test]


@pytest.mark.parametrize(
    ("labels", "declared"),
    [
        (["1.0", "1.5", "2.0"], None),
        (["1.0", "two"], None),
        (["1.0", "2.0"], {"1.0": "bad", "2.0": "good"}),
        (["1.0", "2.0"], ["2.0", "1.0"]),
        (["v1.0", "v2.0"], None),
        ([1.0, 2.5], None),
        ([None, None], None),
    ],
)
def test_other_labels_and_names_that_the_settings_spell_with_decimals_are_left(labels: list[Any], declared: Any) -> None:
    assert labels_of(without_decimals(parts(train=labels), settings(declared))) == [labels]


def test_decimals_of_any_number_of_digits_are_left_out() -> None:
    assert labels_of(without_decimals(parts(train=["1.00", "2.0", "3"]), settings())) == [["1", "2", "3"]]


@pytest.mark.parametrize(
    ("read", "declared", "expected"),
    [
        ([True, "x"], None, ["true", "true", "false", "x", None]),
        (["True", "x"], None, ["true", "True", "FALSE", "x", None]),
        ([False], ["True", "False"], ["True", "True", "False", "x", None]),
        ([False], ["true", "True", "x"], ["true", "True", "false", "x", None]),
    ],
)
def test_texts_are_truth_values_only_where_a_corpus_has_some(read: list[Any], declared: Any, expected: list[Any]) -> None:
    tables: dict[Split, Table | None] = {"train": None, "test": Table("x", ("label",), {"label": read}, [1])}
    rows = parts(train=["true", "True", "FALSE", "x", None])
    assert labels_of(with_truth_values(tables, rows, settings(declared))) == [expected]
