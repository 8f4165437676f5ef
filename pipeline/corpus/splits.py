"""Division of rows into splits, removal of repeats, row limits and example ids.

The split of a labelled row depends on its text alone: a hash of the text is a number in [0, 1), and each split has an interval
of it. Equal texts therefore share a split, and rows added to a corpus move no labelled row. Row limits work the same way.
Unlabelled texts cannot be evaluated on and become train rows.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from pipeline.config.corpus import SPLITS, Split
from pipeline.corpus.rows import Parts, Row
from pipeline.corpus.seeding import SEED_BITS, seed_of
from pipeline.corpus.tables import ErrorList

ID_DIGITS = 16
TEXT_SEPARATOR = "\x1f"
CARVING_ORDER: tuple[Split, ...] = ("test", "dev")
"""Order of the intervals in [0, 1), so that a new dev share moves no test row; train has the rest."""


def carve(rows: Sequence[Row], shares: Mapping[Split, float]) -> Parts:
    """Divide rows into train and the splits in ``shares``, each text that has a label by its hash."""
    parts: Parts = {split: [] for split in SPLITS if split == "train" or split in shares}
    labelled = {row.key for row in rows if row.label is not None}
    for row in rows:
        parts[_split_of(row, shares) if row.key in labelled else "train"].append(row)
    return parts


def _split_of(row: Row, shares: Mapping[Split, float]) -> Split:
    place, end = seed_of("split", *row.key) / 2**SEED_BITS, 0.0
    for split in CARVING_ORDER:
        end += shares.get(split, 0.0)
        if place < end:
            return split
    return "train"


def without_repeated(parts: Parts, errors: ErrorList) -> Parts:
    """The splits without the rows whose text also occurs in a later split; each of these rows is added to ``errors``."""
    later: dict[tuple[str, ...], tuple[Split, Row]] = {}
    single: Parts = {}
    for split in reversed(SPLITS):
        single[split] = [row for row in parts[split] if row.key not in later]
        for row in parts[split]:
            if row.key in later:
                other, there = later[row.key]
                message = f"this {split} text also occurs in the {other} split; duplicates: drop keeps it only there"
                errors.add(row.table, message, row.number, f"{there.table}, row {there.number}")
        later.update({row.key: (split, row) for row in reversed(parts[split])})
    return {split: single[split] for split in SPLITS}


def with_ids(rows: Sequence[Row]) -> dict[str, Row]:
    """Rows by example id: hash digits of the texts, with suffix ``.2``, ``.3`` … for repeats of a text."""
    seen, examples = Counter[str](), dict[str, Row]()
    for row in rows:
        digits = hashlib.sha256(TEXT_SEPARATOR.join(row.texts).encode()).hexdigest()[:ID_DIGITS]
        seen[digits] += 1
        examples[digits if seen[digits] == 1 else f"{digits}.{seen[digits]}"] = row
    return examples


def capped(examples: Mapping[str, Row], most: int | None) -> dict[str, Row]:
    """At most ``most`` examples in corpus order, labelled ones first; a higher limit only adds examples.

    The lowest ids are kept: ids are hashes of texts, so the choice does not depend on corpus order.
    """
    chosen = set(sorted(examples, key=lambda name: (examples[name].label is None, name))[:most])
    return {name: row for name, row in examples.items() if name in chosen}
