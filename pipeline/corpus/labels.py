"""What the labels of a corpus are called, and in which order. Knows rows, and what settings and hub sets say; no files."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace

from pipeline.corpus.faults import FoundFaults
from pipeline.corpus.rows import Row, check_known, is_integer, names_in
from pipeline.corpus.settings import CorpusSettings
from pipeline.corpus.splits import Parts
from pipeline.corpus.tables import OwnSplits
from pipeline.corpus.task import SPLITS, label_name

NOT_OF_TWO = "it is the F1 of the second of two labels, and there are {}; choose macro_f1"

WHOLE = re.compile(r"-?\d+(\.0+)?", re.ASCII)
"""A whole number, with or without decimals such as a column with gaps gets."""

TRUTH_VALUES = ("true", "false")


def without_decimals(rows: Parts, settings: CorpusSettings) -> Parts:
    """Labels like 2.0 as 2, where all labels of a corpus are like that: text tables hold integers with gaps so.

    Names that the settings spell with their decimals are left.
    """
    found = {row.label for part in rows.values() for row in part if isinstance(row.label, str)}
    whole = {name: name.partition(".")[0] for name in found if "." in name}
    if not all(map(WHOLE.fullmatch, found)) or whole.keys() & set(settings.labels or ()):
        return rows
    return _renamed(rows, whole) if whole else rows


def with_truth_values(tables: OwnSplits, rows: Parts, settings: CorpusSettings) -> Parts:
    """Texts such as True and TRUE as the truth values that they spell, where a corpus has some.

    Names that the settings spell otherwise are spelled so.
    """
    values = (value for table in tables.values() if table is not None for value in table.columns.get(settings.label, ()))
    if not any(isinstance(value, bool) for value in values):
        return rows
    listed = settings.labels or {}
    spelled = {name.lower(): name for name in listed}
    found = {row.label for part in rows.values() for row in part if isinstance(row.label, str)}
    return _renamed(
        rows, {name: spelled.get(name.lower(), name.lower()) for name in found - set(listed) if name.lower() in TRUTH_VALUES}
    )


def label_names(tables: OwnSplits, rows: Parts, settings: CorpusSettings, found: FoundFaults) -> tuple[str, ...]:
    """The names, in the order of the logits: as somebody has chosen them, else sorted; labels that are none are noted."""
    occurring = (names_in(rows.get(split, ())) for split in SPLITS)
    names = _declared(tables, settings) or next(filter(None, occurring), ())
    for split in SPLITS if names else ():
        check_known(rows.get(split, ()), tuple(settings.labels or names), found)
    told = any(table is not None and table.faulty(found) for table in tables.values())
    if len(names) < 2 and not told and not any(row.label for row in rows.get("train", ())) and len(rows) == len(tables) > 0:
        found.whole("corpus.labels", "the rows have no labels that would tell the label names; list them here")
    return names


def _declared(tables: OwnSplits, settings: CorpusSettings) -> tuple[str, ...]:
    """The label names in an order that somebody has chosen; none where they must be found in the rows."""
    declared = (table.class_names.get(settings.label, ()) for table in tables.values() if table is not None)
    return tuple(dict.fromkeys((settings.labels or {}).values())) or tuple(map(label_name, next(filter(None, declared), ())))


def called(rows: Parts, settings: CorpusSettings) -> Parts:
    """The rows with their labels called as the settings say."""
    names = settings.labels or {}
    return _renamed(rows, names) if names else rows


def check_f1(names: tuple[str, ...], tables: OwnSplits, settings: CorpusSettings, found: FoundFaults) -> None:
    """Note label names of which F1 cannot tell which one counts."""
    if len(names) > 2:
        found.whole("metric f1", NOT_OF_TWO.format(len(names)))
    elif len(names) == 2 and not _declared(tables, settings) and not all(map(is_integer, names)):
        found.whole("metric f1", _which_counts(names))


def _renamed(rows: Parts, names: Mapping[str, str]) -> Parts:
    """The rows with other names for labels; what has none there keeps its own."""

    def of(row: Row) -> Row:
        return replace(row, label=names.get(row.label, row.label)) if isinstance(row.label, str) else row

    return {split: [of(row) for row in part] for split, part in rows.items()}


def _which_counts(names: tuple[str, ...]) -> str:
    """Why F1 of labels that were found in the rows measures nothing that somebody has chosen."""
    orders = " or ".join(json.dumps(order, ensure_ascii=False) for order in (names[::-1], names))
    return (
        f"it is the F1 of the second of two labels, and their order is only that of the alphabet; list them in corpus.labels "
        f"with the one that counts last, {orders}, or choose macro_f1"
    )
