"""A masked language model where none is at hand: the pretrained encoder, fitted to the texts of many sets.

Knows the sets' texts. It stands in for the one that TinyBERT edits texts with, and knows the tasks' own words better and the
language less well.
"""

import csv
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.accuracy.arms import base, in_precision, usual_precision
from benchmarks.accuracy.corpora import CORPORA
from pipeline.config.settings import MaskedLMSettings, TeacherSettings
from pipeline.corpus.task import Task
from pipeline.training.masked_lm import MaskedLMFacts, prepare_masked_lm

MAX_LENGTH = 48


def texts_of(data: Path, tasks: Iterable[str], split: str) -> list[str]:
    """Every text of a split of these sets, once; a set that is not there has none."""
    found: dict[str, None] = {}
    for task in tasks:
        path, corpus = data / task / f"{split}.tsv", CORPORA[task]
        if path.is_file():
            table = pd.read_csv(path, sep="\t", quoting=csv.QUOTE_NONE, keep_default_na=False, usecols=corpus.columns)
            found |= dict.fromkeys(text for column in corpus.columns for text in table[column])
    return list(found)


def train_masked_lm(data: Path, tasks: Sequence[str], pretrained: str, epochs: int, out: Path) -> MaskedLMFacts:
    """Fit a masked language model to the train texts of these sets, as the stage masked_lm does, and write it to ``out``."""
    changed = {"model": pretrained, "num_train_epochs": epochs}
    settings = MaskedLMSettings(**in_precision(base()["training"] | base()["masked_lm"], usual_precision()) | changed)
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder)
        for split in ("train", "dev"):
            texts = texts_of(data, tasks, split)
            ids = [f"{split}{number}" for number in range(len(texts))]
            pq.write_table(pa.table({"id": ids, "text_a": texts}), prepared / f"{split}.parquet")
        Task(name="texts", kind="regression", metric="pearson", labels=(), pair=False).save(prepared)
        teacher = TeacherSettings(model=pretrained, fine_tune=True, max_length=MAX_LENGTH)
        return prepare_masked_lm(prepared, teacher, settings, out)
