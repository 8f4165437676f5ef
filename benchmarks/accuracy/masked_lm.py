"""A masked language model where none is at hand: the pretrained encoder with a head, trained on the texts of the sets.

Knows texts and transformers. It stands in for the one that TinyBERT edits texts with, and knows the tasks' own words better
and the language less well.
"""

import csv
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch.utils.data import Dataset
from transformers import (
    AutoTokenizer,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from benchmarks.accuracy.corpora import CORPORA
from pipeline.files import folder_written_whole

MAX_LENGTH = 48
MASKED = 0.15


class Texts(Dataset[dict[str, list[int]]]):
    """Token ids of texts."""

    def __init__(self, texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> None:
        self._ids = tokenizer(list(texts), truncation=True, max_length=MAX_LENGTH)["input_ids"]

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, row: int) -> dict[str, list[int]]:
        return {"input_ids": self._ids[row]}


def texts_of(data: Path, tasks: Iterable[str], split: str) -> list[str]:
    """Every text of a split of these sets, once; a set that is not there has none."""
    found: dict[str, None] = {}
    for task in tasks:
        path, corpus = data / task / f"{split}.tsv", CORPORA[task]
        if path.is_file():
            table = pd.read_csv(path, sep="\t", quoting=csv.QUOTE_NONE, keep_default_na=False, usecols=corpus.columns)
            found |= dict.fromkeys(text for column in corpus.columns for text in table[column])
    return list(found)


def train_masked_lm(data: Path, tasks: Sequence[str], pretrained: str, epochs: int, out: Path) -> float:
    """Train BERT's masked language model on the train texts of these sets and write it to ``out``.

    Returns its loss on dev in nats a masked token. The head's hidden layer starts as the identity, so that it begins by asking
    which word is like the encoder's output.
    """
    set_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    model = BertForMaskedLM.from_pretrained(pretrained)
    hidden = model.cls.predictions.transform.dense
    torch.nn.init.eye_(hidden.weight)
    torch.nn.init.zeros_(hidden.bias)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=64,
            learning_rate=2e-4,
            warmup_steps=100,
            weight_decay=0.01,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            train_sampling_strategy="group_by_length",
            save_strategy="no",
            report_to=[],
            logging_steps=100,
            disable_tqdm=True,
            seed=1,
        )
        trainer = Trainer(
            model,
            arguments,
            DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKED),
            Texts(texts_of(data, tasks, "train"), tokenizer),
            Texts(texts_of(data, tasks, "dev"), tokenizer),
        )
        trainer.train()
        loss = float(trainer.evaluate()["eval_loss"])
    with folder_written_whole(out) as made:
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
    return loss
