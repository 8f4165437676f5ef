"""Who goes where: split, drop, cap and name rows by what their texts are. Knows checked rows, not their origin.

A labelled row's split depends on its own text alone: a hash of the text is a place in [0, 1), and each split has a piece of
it. So equal texts share a split and a growing corpus moves no labelled row. The same holds for the rows that a cap keeps. Texts
without a label, on which nothing can be measured, are train rows.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from pipeline.corpus.faults import FoundFaults
from pipeline.corpus.rows import Row
from pipeline.corpus.seeding import SEED_BITS, seed_of
from pipeline.corpus.task import SPLITS, Split

ID_DIGITS = 16
TEXT_SEPARATOR = "\x1f"
CARVING_ORDER: tuple[Split, ...] = ("test", "dev")
"""Splits take their pieces of [0, 1) in this order, so that a new dev share moves no test row; train has the rest."""

Parts = dict[Split, list[Row]]


def carve(rows: Sequence[Row], shares: Mapping[Split, float]) -> Parts:
    """Divide rows into train and the splits that ``shares`` names, each text that has a label by its hash."""
    parts: Parts = {split: [] for split in SPLITS if split == "train" or split in shares}
    labelled = {row.key for row in rows if row.label is not None}
    for row in rows:
        parts[_split_at(_place(row), shares) if row.key in labelled else "train"].append(row)
    return parts


def _place(row: Row) -> float:
    return float(seed_of("split", *row.key) / 2**SEED_BITS)


def _split_at(place: float, shares: Mapping[Split, float]) -> Split:
    end = 0.0
    for split in CARVING_ORDER:
        end += shares.get(split, 0.0)
        if place < end:
            return split
    return "train"


def measurable(rows: Sequence[Row]) -> list[Row]:
    """The labelled rows of a carved split; nothing can be measured on the others, whose text another row has with a label."""
    return [row for row in rows if row.label is not None]


def repeated_later(parts: Parts) -> dict[Split, dict[int, tuple[Split, Row]]]:
    """For each split the positions of rows whose text also stands in a later split, with one row that has it there."""
    later: dict[tuple[str, ...], tuple[Split, Row]] = {}
    repeated: dict[Split, dict[int, tuple[Split, Row]]] = {}
    for split in reversed(SPLITS):
        repeated[split] = {at: later[row.key] for at, row in enumerate(parts[split]) if row.key in later}
        later.update({row.key: (split, row) for row in reversed(parts[split])})
    return {split: repeated[split] for split in SPLITS}


def refuse_repeated(parts: Parts, found: FoundFaults) -> None:
    """Note rows whose text also stands in a later split."""
    for split, places in repeated_later(parts).items():
        for at, (other, there) in places.items():
            row = parts[split][at]
            meaning = f"this {split} text also stands in the {other} split; duplicates: drop would leave it there alone"
            found.row(row.table, row.number, meaning, f"{there.table}, row {there.number}")


def drop_repeated(parts: Parts) -> Parts:
    """The splits without the rows whose text also stands in a later split."""
    repeated = repeated_later(parts)
    return {split: [row for at, row in enumerate(parts[split]) if at not in repeated[split]] for split in SPLITS}


def named(rows: Sequence[Row]) -> dict[str, Row]:
    """Rows by example id: hash digits of the texts, with ``.2``, ``.3`` … after it where a text comes again."""
    seen, examples = Counter[str](), dict[str, Row]()
    for row in rows:
        digits = hashlib.sha256(TEXT_SEPARATOR.join(row.texts).encode()).hexdigest()[:ID_DIGITS]
        seen[digits] += 1
        examples[digits if seen[digits] == 1 else f"{digits}.{seen[digits]}"] = row
    return examples


def capped(examples: Mapping[str, Row], most: int | None) -> dict[str, Row]:
    """At most so many examples in corpus order, those with a label first; a higher cap only adds examples.

    Of either kind those with the lowest ids are kept: ids are hashes of the texts, so this draw does not follow corpus order.
    """
    chosen = set(sorted(examples, key=lambda name: (examples[name].label is None, name))[:most])
    return {name: row for name, row in examples.items() if name in chosen}
