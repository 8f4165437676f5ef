"""What benchmarks work on: settings, the first rows of a corpus, random corpora and teachers. Knows no clock."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast, set_seed

from pipeline.config.settings import AugmentSettings, InferenceSettings, RuntimeSettings
from pipeline.corpus.task import Task
from pipeline.models.architectures import head_settings
from pipeline.models.folder import ModelFolder

BATCH_ROWS = 32
EPSILON = 0.05

RANDOM_TASK = Task(name="random", kind="classification", metric="accuracy", labels=("no", "yes"), pair=False)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [f"word{number}" for number in range(60)]
TEXTS = 5000
"""Different texts of a random corpus."""


def settings_of(**changed: Any) -> AugmentSettings:
    """One variant perturbed by the teacher's gradient, with an epsilon that need not be calibrated."""
    search = {"gradient_from": "teacher", "norm": "l2", "epsilon": EPSILON, "num_steps": 1, "step_size": 1.0, "init": 0.5}
    usual: dict[str, Any] = {
        "variants": 1,
        "recipes": [["perturb"]],
        "perturbation": search | changed.pop("perturbation", {}),
        "text_edits": {"mask": 0.1, "delete": 0.1, "swap": 0.1, "span": 0.3},
        "masked_lm": {"replace": 0.4, "candidates": 15},
        "codec": "int8",
        "seed": 1,
        "calibration_rows": 64,
        "inference": inference_of().model_dump() | changed.pop("inference", {}),
    }
    return AugmentSettings.model_validate(usual | changed)


def inference_of(rows_per_shard: int = 256) -> InferenceSettings:
    """How the teacher runs."""
    return InferenceSettings(rows_per_shard=rows_per_shard, batch_size=BATCH_ROWS, precision="float32")


def runtime_of(store: Path, workers: int = 0) -> RuntimeSettings:
    """How stages are run: so many workers of this machine, or none but this process."""
    return RuntimeSettings(
        workers=workers,
        store=str(store),
        max_bytes=None,
        world_size=1,
        cache="~/.cache/ad2",
        cache_bytes=10**11,
        dataloader_num_workers=0,
        save_steps=0,
        report_to=[],
    )


def first_rows(prepared: Path, out: Path, rows: int) -> Path:
    """The first rows of the train split, and little of the others."""
    out.mkdir(parents=True)
    for split, most in (("train", rows), ("dev", 8), ("test", 8)):
        table = pq.read_table(prepared / f"{split}.parquet")
        times = -(-most // table.num_rows)
        repeated = pa.concat_tables([table] * times).slice(0, most)
        names = pa.array([f"{split}{number:08d}" for number in range(most)])
        pq.write_table(repeated.set_column(0, "id", names), out / f"{split}.parquet", row_group_size=4096)
    Task.read(prepared).save(out)
    return out


def small_teacher(folder: Path, tokenizer_of: Path, task: Task) -> Path:
    """A teacher of two narrow layers with random weights, so that memory is that of the rows."""
    tokenizer = ModelFolder(tokenizer_of).tokenizer
    set_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        max_position_embeddings=512, **head_settings(task),
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    task.save(folder)
    return folder


def random_corpus(folder: Path, rows: int) -> Path:
    """Texts of 4 to 12 words, with ids like those of ``prepare``; little of dev and test."""
    generator = np.random.default_rng(0)
    texts = pa.array([" ".join(generator.choice(WORDS, size=generator.integers(4, 13))) for _ in range(TEXTS)])
    folder.mkdir(parents=True)
    for split, count in (("train", rows), ("dev", 8), ("test", 8)):
        labels = pa.array(generator.integers(0, 2, count), type=pa.int32())
        ids = pa.array([f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}" for number in range(count)])  # all different
        chosen = texts.take(pa.array(generator.integers(0, TEXTS, count)))
        table = pa.table({"id": ids, "text_a": chosen, "label": labels})
        pq.write_table(table, folder / f"{split}.parquet", row_group_size=4096)
    RANDOM_TASK.save(folder)
    return folder


def tiny_teacher(folder: Path) -> Path:
    """A teacher of one layer × 8 with random weights for random corpora, so that a row costs little."""
    backend = Tokenizer(WordLevel({word: number for number, word in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=16, **names).save_pretrained(folder)
    set_seed(0)
    config = BertConfig(
        vocab_size=len(SPECIAL + WORDS), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=16, initializer_range=0.5, **head_settings(RANDOM_TASK),
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    RANDOM_TASK.save(folder)
    return folder
