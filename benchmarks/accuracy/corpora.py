"""The labelled sets of the suite and the tables that are cut from them for one case. Knows rows, no model and no arm."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.config.errors import PipelineError
from pipeline.store.files import folder_written_whole
from pipeline.store.keys import hash_of, sha256_of

DEV_ROWS = 500
TEST_ROWS = 2000
"""The most rows of dev; and of test, where train rows that are left over may join the official ones."""


@dataclass(frozen=True)
class Corpus:
    """One labelled set."""

    kind: str
    metric: str
    max_length: int
    pairs: bool = False

    @property
    def columns(self) -> list[str]:
        """Those with texts."""
        return ["text_a", "text_b"] if self.pairs else ["text"]


CORPORA = {
    "trec": Corpus("classification", "accuracy", 48),
    "cola": Corpus("classification", "mcc", 48),
    "banking77": Corpus("classification", "accuracy", 64),
    "cr": Corpus("classification", "accuracy", 64),
    "sst2_sent": Corpus("classification", "accuracy", 64),
    "subj": Corpus("classification", "accuracy", 64),
    "stsb": Corpus("regression", "pearson", 96, pairs=True),
    "mrpc": Corpus("classification", "f1", 96, pairs=True),
    "rte": Corpus("classification", "accuracy", 160, pairs=True),
}
"""By name, those with short texts first: they are the quickest."""


@dataclass(frozen=True)
class Case:
    """What all arms of one comparison share: the rows, the teacher, the seed."""

    task: str
    rows: int
    """Train rows; 0 for all."""
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.task}-{self.rows or 'all'}-{self.seed}"

    @property
    def corpus(self) -> Corpus:
        """The set of its task."""
        return CORPORA[self.task]


def cut(data: Path, case: Case, out: Path, unlabelled: int = 0) -> dict[str, int]:
    """Write the case's train, dev and test tables as csv to the folder ``out``; returns their rows.

    The train rows are drawn by the seed. Where that leaves some over, they fill test up to TEST_ROWS: the official test
    splits of small sets tell students apart only by several points. ``unlabelled`` of those still over, at most, join train
    without their labels.

    Raises:
        PipelineError: the data folder lacks the set.
    """
    columns = ["label", *case.corpus.columns]
    official = {split: _read(data / case.task / f"{split}.tsv")[columns] for split in ("train", "dev", "test")}
    shuffled = official["train"].sample(frac=1, random_state=case.seed)
    rows = case.rows or len(shuffled)
    test = official["test"]
    filled = rows + max(TEST_ROWS - len(test), 0)
    spare, further = shuffled[rows:filled], shuffled[filled : filled + unlabelled]
    tables = {
        "train": pd.concat([shuffled[:rows], further.assign(label="")]),
        "dev": official["dev"].sample(frac=1, random_state=case.seed)[:DEV_ROWS],
        "test": pd.concat([test.sample(frac=1, random_state=case.seed)[:TEST_ROWS], spare]),
    }
    with folder_written_whole(out) as folder:
        for split, table in tables.items():
            table.to_csv(folder / f"{split}.csv", index=False)
    return {split: len(table) for split, table in tables.items()}


def corpus_settings(data: Path, case: Case, tables: Path) -> dict[str, Any]:
    """How `prepare` reads what was cut; the labels are those of the whole set, since a small cut may lack some."""
    texts = case.corpus.columns
    known = sorted(set(_read(data / case.task / "train.tsv")["label"]))
    labels = {"labels": known} if case.corpus.kind == "classification" else {}
    return labels | {
        "files": {split: str(tables / f"{split}.csv") for split in ("train", "dev", "test")},
        "text": texts if case.corpus.pairs else texts[0],
        "label": "label",
        "duplicates": "drop",
    }


def data_hash(data: Path, task: str) -> str:
    """Of the tables of a set, in hexadecimal."""
    return hash_of([sha256_of(data / task / f"{split}.tsv") for split in ("train", "dev", "test")])


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise PipelineError(f"there is no {path}; name the folder of labelled sets with --data")
    return pd.read_csv(path, sep="\t", quoting=csv.QUOTE_NONE, keep_default_na=False, dtype={"label": str})
