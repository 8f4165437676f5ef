"""The augment stage on one GPU: BERT-base with random weights, texts of one length, bfloat16; without Ray.

python -m benchmarks.gpu [--json FILE]
"""

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast, set_seed

from benchmarks.augment import bare_loop
from benchmarks.timing import Figure, medians, print_table
from benchmarks.worlds import EPSILON, settings_of
from pipeline.augment.batches import Inputs
from pipeline.augment.teacher import ModelFolders, ModelSet
from pipeline.augment.variants import LabelledRows, VariantSpec, make_variant, write_variant
from pipeline.config.settings import Precision
from pipeline.corpus.task import Task
from pipeline.models.architectures import head_settings
from pipeline.models.forward import pick_device
from pipeline.store.store import Store
from stages.command import stage

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CEILING_SIDE = 8192
"""Of the square matrices whose product is the ceiling."""

SIZES = {"base": (768, 12, 12, 3072, 30522), "tiny": (64, 2, 2, 128, 500)}
"""Hidden width, layers, heads, inner width and vocabulary; tiny is for trying the benchmark itself."""


def save_teacher(folder: Path, size: str, tokens: int) -> Path:
    """A BERT with random weights, with a tokenizer of whole words."""
    hidden, layers, heads, inner, vocabulary = SIZES[size]
    task = Task(name="random", kind="classification", metric="accuracy", labels=("no", "yes"), pair=False)
    set_seed(0)
    config = BertConfig(
        vocab_size=vocabulary, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=inner, max_position_embeddings=max(512, tokens), **head_settings(task),
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    words = {word: number for number, word in enumerate(SPECIAL + [f"w{n}" for n in range(vocabulary - len(SPECIAL))])}
    backend = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=tokens, model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    task.save(folder)
    return folder


def random_rows(models: ModelSet, rows: int, tokens: int, vocabulary: int, batch_rows: int) -> LabelledRows:
    """Rows of exactly ``tokens`` tokens with the teacher's logits."""
    generator = np.random.default_rng(0)
    ids = generator.integers(len(SPECIAL), vocabulary, (rows, tokens)).astype(np.int32)
    ids[:, 0], ids[:, -1] = 2, 3
    inputs = Inputs([f"row{n}" for n in range(rows)], list(ids), list(np.zeros((rows, tokens), dtype=np.int8)))
    return LabelledRows(inputs, models.teacher.logits(inputs, models.batches, batch_rows), [None] * rows)


def flops_a_row(size: str, tokens: int) -> float:
    """Products of one variant of one row: forward, backward to the input, forward; attention included."""
    hidden, layers, _, inner, _ = SIZES[size]
    weights = layers * (4 * hidden * hidden + 2 * hidden * inner)
    return 3 * (2 * weights * tokens + layers * 4 * tokens * tokens * hidden)


def ceiling(precision: Precision, side: int) -> float:
    """FLOP a second of a large matrix product in this precision."""
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    matrix = torch.randn(side, side, device=pick_device(), dtype=kind)
    times = 10
    seconds = medians({"product": lambda: [matrix @ matrix for _ in range(times)]}, 3)["product"]
    return times * 2 * side**3 / seconds


def figures_of(folder: Path, size: str, precision: Precision, rows: int, tokens: int, batch_rows: int) -> list[Figure]:
    """Bare loop and stage beside the ceiling."""
    models = ModelSet(ModelFolders(save_teacher(folder / "teacher", size, tokens)), precision)
    settings = settings_of(inference={"batch_size": batch_rows, "precision": precision})
    labelled = random_rows(models, rows, tokens, SIZES[size][4], batch_rows)
    spec = VariantSpec(1, settings, EPSILON, None)
    loop = partial(bare_loop, models.teacher, [labelled], batch_rows)
    seconds = medians(
        {
            "loop": loop,
            "make": lambda: make_variant(models, labelled, None, spec),
            "stage": lambda: write_variant(spec, {"benchmark": 1}, labelled, None, models, Store(folder / "store")),
        },
        3,
    )
    top = ceiling(precision, CEILING_SIDE if torch.cuda.is_available() else 1024)
    used = flops_a_row(size, tokens) * rows
    return [
        Figure("ceiling_tflops", top / 1e12, f"measured product of square matrices, {precision}"),
        Figure("loop_rows_per_second", rows / seconds["loop"], f"bare loop, {tokens} tokens a row"),
        Figure("loop_utilisation", used / seconds["loop"] / top, "products of the bare loop ÷ ceiling", ("≥", 0.45)),
        Figure("stage_rows_per_second", rows / seconds["stage"], "stage without Ray: perturb, label, write shard and receipt"),
        Figure("stage_over_loop", seconds["loop"] / seconds["stage"], "stage's rows/s ÷ the bare loop's", ("≥", 0.90)),
        Figure(
            "copy_share",
            1 - seconds["loop"] / seconds["make"],
            "of the time to make the rows, beyond the loop: draws and copies",
        ),
        Figure("write_share", 1 - seconds["make"] / seconds["stage"], "of the stage's time: building and writing the shard"),
    ]


@stage
@click.option("--size", default="base", show_default=True, type=click.Choice(sorted(SIZES)))
@click.option("--precision", default="bfloat16", show_default=True, type=click.Choice(["float32", "bfloat16"]))
@click.option("--rows", default=4096, show_default=True, help="Rows of the one shard that is made.")
@click.option("--tokens", default=128, show_default=True, help="Of every row.")
@click.option("--batch-rows", default=256, show_default=True)
@click.option("--json", "target", type=click.Path(path_type=Path), help="Also write the figures to this file.")
def main(size: str, precision: Any, rows: int, tokens: int, batch_rows: int, target: Path | None) -> None:
    """Measure the stage on the first GPU, or on the processor where there is none."""
    with tempfile.TemporaryDirectory() as name:
        figures = figures_of(Path(name), size, precision, rows, tokens, batch_rows)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "processor"
    print_table(f"{device}, BERT {size}, {rows} rows of {tokens} tokens, {precision}", figures)
    if target is not None:
        target.write_text(json.dumps({figure.key: round(figure.value, 4) for figure in figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
