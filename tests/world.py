"""A tiny world for tests: a task, a tokenizer, a teacher with random weights, a corpus, shards. Nothing is downloaded."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast, set_seed

from pipeline.augment.passes import augment, score
from pipeline.augment.recipes import AugmentSettings, ScoreSettings
from pipeline.augment.workers import RuntimeSettings
from pipeline.models import head_settings
from pipeline.tasks import Split, Task

WORDS = [f"word{number}" for number in range(60)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MAX_LENGTH = 24


def make_task(kind: str = "classification", pair: bool = False, labels: tuple[str, ...] = ("bad", "good")) -> Task:
    """A task of the tiny world."""
    if kind == "regression":
        return Task(name="tiny", kind="regression", metric="pearson", labels=(), pair=pair)
    return Task(name="tiny", kind="classification", metric="accuracy", labels=labels, pair=pair)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words as tokens, BERT's special tokens and pairs."""
    backend = Tokenizer(WordLevel({word: number for number, word in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def save_teacher(folder: Path, task: Task, seed: int = 0) -> Path:
    """A BERT of 4 layers × 32 with random weights, large enough that its answers differ, in a folder as `teach` writes it."""
    set_seed(seed)
    config = BertConfig(
        vocab_size=len(SPECIAL + WORDS),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=0.3,
        **head_settings(task),
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    task.save(folder)
    return folder


def save_prepared(folder: Path, task: Task, rows: dict[Split, int], seed: int = 0) -> Path:
    """Random texts of different lengths in a folder as `prepare` writes it."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)

    def text() -> str:
        return " ".join(generator.choice(WORDS, size=generator.integers(2, 12)))

    for split, count in rows.items():
        labels = generator.normal(size=count) if task.kind == "regression" else generator.integers(0, 2, size=count)
        columns = {
            "id": pa.array([f"{split}{number:05d}" for number in range(count)]),
            "text_a": pa.array([text() for _ in range(count)]),
            **({"text_b": pa.array([text() for _ in range(count)])} if task.pair else {}),
            "label": pa.array(labels, type=pa.float32() if task.kind == "regression" else pa.int32()),
        }
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    task.save(folder)
    return folder


SCORE_SETTINGS = ScoreSettings(rows_per_shard=16, batch_rows=8, precision="float32")
AUGMENT: dict[str, Any] = {
    "variants": 2,
    "recipes": [["perturb"]],
    "perturbation": {
        "objective": "divergence",
        "norm": "l2",
        "radius": 0.2,
        "steps": 1,
        "step_size": 1.0,
        "start": 0.5,
        "special_tokens": False,
    },
    "keep_label": False,
    "text_edits": {"mask": 0.2, "delete": 0.2, "swap": 0.2, "ngram": 3, "span": 0.5},
    "masked_lm": None,
    "mixing": {"alpha": 0.4},
    "codec": "int8",
    "precision": "float32",
    "seed": 1,
    "calibration_rows": 8,
    "batch_rows": 8,
}
"""The section ``augment`` of a params.yaml of the tiny world."""


def augment_settings(perturbation: dict[str, Any] | None = None, **changed: Any) -> AugmentSettings:
    """These settings, some of them changed."""
    search = AUGMENT["perturbation"] | (perturbation or {})
    return AugmentSettings.model_validate(AUGMENT | changed | {"perturbation": search})


AUGMENT_SETTINGS = augment_settings()


def runtime_at(folder: Path, workers: int = 0) -> RuntimeSettings:
    """A store of its own, and this process as the worker."""
    return RuntimeSettings(ray_address=None, workers=workers, store=str(folder / "store"), max_bytes=None)


def make_shards(folder: Path, prepared: Path, teacher: Path, settings: AugmentSettings = AUGMENT_SETTINGS) -> tuple[Path, Path]:
    """Scores and variants of a corpus, made in this process: the folders `score` and `augment` would write."""
    score(prepared, teacher, SCORE_SETTINGS, runtime_at(folder), folder / "scores")
    augment(folder / "scores", teacher, None, settings, runtime_at(folder), folder / "shards")
    return folder / "scores", folder / "shards"
