"""How near the augment stage is to the arithmetic it must do: every figure a ratio taken in one run.

python -m benchmarks.augment [--json FILE]
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForMaskedLM, set_seed

from benchmarks.memory import memory_figures
from benchmarks.timing import Figure, medians, print_table, timed
from benchmarks.worlds import BATCH_ROWS, EPSILON, first_rows, inference_of, runtime_of, settings_of
from pipeline.augment.jobs import places
from pipeline.augment.passes import open_workers, soft_label
from pipeline.augment.plans import Augmentation
from pipeline.augment.teacher import FrozenTeacher, ModelFolders, ModelSet
from pipeline.augment.variants import LabelledRows, VariantSpec, make_variant, read_labelled
from pipeline.config.settings import CodecName, Precision, RuntimeSettings
from pipeline.corpus.encoding import Batch, encode, length_buckets, ordinary_tokens
from pipeline.models.folder import ModelFolder
from pipeline.models.forward import divergence
from pipeline.perturbation.search import scaled_epsilon
from pipeline.shards.codec import CODECS, dequantise
from pipeline.shards.manifest import put_shards
from pipeline.store.store import Store
from stages.command import stage

TINYBERT_COPIES = 20
"""Augmented copies of each text in TinyBERT."""


class World:
    """Soft labels of the first rows of a prepared task, in a folder of their own."""

    def __init__(self, folder: Path, prepared: Path, teacher: Path, rows: int, shard_rows: int) -> None:
        self.folder, self.teacher = folder, teacher
        self.prepared = first_rows(prepared, folder / "prepared", rows)
        soft_label(self.prepared, teacher, inference_of(shard_rows), self.runtime(0), self.soft_labels)

    @property
    def soft_labels(self) -> Path:
        return self.folder / "soft_labels"

    def runtime(self, workers: int) -> RuntimeSettings:
        """A store that starts empty for every number of workers."""
        return runtime_of(self.folder / f"store-{workers}", workers)

    def labelled(self) -> list[LabelledRows]:
        """The rows of each partition."""
        plan = Augmentation.of(self.soft_labels, self.teacher, settings_of())
        return [read_labelled(plan.source.rows_of(entry)) for entry in plan.entries()]


def bare_loop(teacher: FrozenTeacher, labelled: list[LabelledRows], batch_rows: int = BATCH_ROWS) -> None:
    """What anybody would write by hand: pad, start, one step uphill, back into the ball, code, label. No rows are kept."""
    epsilon = scaled_epsilon(EPSILON, "l2", teacher.table)
    for part in labelled:
        for positions in length_buckets(part.inputs.lengths(), batch_rows):
            rows = part.inputs.take(positions)
            batch = teacher.padded(rows, int(rows.lengths().max()))
            clean = torch.from_numpy(part.logits[positions]).to(teacher.device)
            words = teacher.words(batch["input_ids"])
            where = ordinary_tokens(batch, teacher.tokenizer).unsqueeze(-1)
            delta = torch.randn_like(words) * where
            delta = (delta * (0.5 * epsilon / delta.norm(dim=-1, keepdim=True).clamp(min=1e-12))).requires_grad_(True)
            moved = divergence(clean, teacher.logits_at(batch, words + delta), teacher.task.kind).sum()
            (gradient,) = torch.autograd.grad(moved, delta)
            step = gradient * (epsilon / gradient.norm(dim=-1, keepdim=True).clamp(min=1e-30))
            delta = (delta.detach() + step) * where
            delta = delta * (epsilon / delta.norm(dim=-1, keepdim=True).clamp(min=epsilon))
            with torch.inference_mode():
                teacher.logits_at(batch, words + dequantise(*CODECS["int8"].quantise(delta)))


def arithmetic(teacher: FrozenTeacher, batches: list[tuple[Batch, Tensor]]) -> None:
    """The products alone, on batches that are ready: clean forward, forward and backward to the input, forward."""
    for batch, words in batches:
        with torch.inference_mode():
            teacher.logits_at(batch, words)
        at = words.detach().clone().requires_grad_(True)
        torch.autograd.grad(teacher.logits_at(batch, at).sum(), at)
        with torch.inference_mode():
            teacher.logits_at(batch, words)


def ready_batches(teacher: FrozenTeacher, labelled: list[LabelledRows]) -> list[tuple[Batch, Tensor]]:
    """The batches of the loop with their word embeddings."""
    found = []
    for part in labelled:
        for positions in length_buckets(part.inputs.lengths(), BATCH_ROWS):
            rows = part.inputs.take(positions)
            batch = teacher.padded(rows, int(rows.lengths().max()))
            found.append((batch, teacher.words(batch["input_ids"])))
    return found


def loop_figures(world: World, rounds: int) -> tuple[list[Figure], float]:
    """The bare loop beside its arithmetic; also the loop's rows a second."""
    teacher, labelled = FrozenTeacher(ModelFolder(world.teacher)), world.labelled()
    batches = ready_batches(teacher, labelled)
    work: dict[str, Callable[[], object]] = {
        "loop": partial(bare_loop, teacher, labelled),
        "arithmetic": partial(arithmetic, teacher, batches),
    }
    seconds = medians(work, rounds)
    ratio = seconds["loop"] / seconds["arithmetic"]
    meaning = "bare loop's time ÷ that of clean forward, forward + backward to the input, perturbed forward"
    rows = sum(len(part.inputs) for part in labelled)
    return [Figure("loop_over_arithmetic", ratio, meaning, ("≤", 1.15))], rows / seconds["loop"]


def stage_seconds(world: World, workers: int) -> float:
    """Seconds of a row in the stage, start-up apart: all shards but each worker's first, written and published."""
    settings, runtime = settings_of(), world.runtime(workers)
    plan = Augmentation.of(world.soft_labels, world.teacher, settings)
    store = Store(Path(runtime.store).resolve())
    jobs = plan.jobs(EPSILON)
    put_shards(store, world.soft_labels, plan.entries())
    with open_workers(ModelFolders(world.teacher), "float32", store, runtime) as opened:
        warm, rest = jobs[: max(workers, 1)], jobs[max(workers, 1) :]
        list(opened.run(warm))
        seconds = timed(lambda: list(opened.run(rest)))
    return seconds / sum(job.rows for job in rest)


def stage_figures(world: World, rounds: int) -> list[Figure]:
    """The stage on one and two workers of one thread beside the bare loop, in turns."""
    teacher, labelled = FrozenTeacher(ModelFolder(world.teacher)), world.labelled()
    rows = sum(len(part.inputs) for part in labelled)
    found: dict[str, list[float]] = {"loop": [], "one": [], "two": []}
    for number in range(rounds):
        found["loop"].append(timed(partial(bare_loop, teacher, labelled)) / rows)
        for name, workers in (("one", 1), ("two", 2)):
            fresh(world, workers)
            found[name].append(stage_seconds(world, workers))
        pace = ", ".join(f"{name} {1 / seconds[-1]:.1f} rows/s" for name, seconds in found.items())
        print(f"round {number + 1} of {rounds}: {pace}", flush=True)
    medium = {name: float(np.median(seconds)) for name, seconds in found.items()}
    over = "stage's rows/s ÷ the bare loop's, one worker of one thread on Ray, shards written, start-up apart"
    return [
        Figure("stage_over_loop", medium["loop"] / medium["one"], over, ("≥", 0.90)),
        Figure("two_workers", medium["one"] / medium["two"], "2 workers of 1 thread ÷ 1 worker of 1 thread", ("≥", 1.7)),
        Figure("rows_per_second", 1 / medium["one"], "of one worker, one variant"),
    ]


def fresh(world: World, workers: int) -> None:
    """Forget what a number of workers has computed."""
    store = Path(world.runtime(workers).store)
    if store.exists():
        shutil.rmtree(store)


def padding_figures(world: World, prepared: Path) -> list[Figure]:
    """Tokens computed ÷ real tokens, partitions and batches as in the default run."""
    tokenizer = ModelFolder(world.teacher).tokenizer
    texts = pq.read_table(prepared / "train.parquet").column("text_a").to_pylist()
    runs = [slice(place.start, place.stop) for place in places(prepared, "train", 256)]
    found = []
    for key, second, meaning in (
        ("padding", None, "tokens computed ÷ real tokens, the corpus in shards of about 256 rows"),
        ("padding_pairs", texts[1:] + texts[:1], "the same for pairs of its sentences, about as long as MRPC's"),
    ):
        lengths = np.array([len(ids) for ids in encode(tokenizer, texts, second, 128).input_ids])
        computed = sum(padded_tokens(lengths[run]) for run in runs)
        found.append(Figure(key, computed / lengths.sum(), meaning, ("≤", 1.10)))
    return found


def padded_tokens(lengths: np.ndarray[Any, np.dtype[np.int64]]) -> int:
    """Tokens of all batches of a partition, padding included."""
    return sum(len(bucket) * int(lengths[bucket].max()) for bucket in length_buckets(lengths, BATCH_ROWS))


def codec_figures(world: World) -> list[Figure]:
    """How much of the divergence that the exact δ has is left after coding."""
    found = []
    for codec, norm, bar in (("sign", "linf", 0.95), ("int8", "l2", 0.99)):
        exact = mean_divergence(world, "float16", norm)
        kept = mean_divergence(world, codec, norm) / exact  # type: ignore[arg-type]
        found.append(Figure(f"{codec}_kept", kept, f"divergence of the decoded δ ÷ of δ in float16, {norm}", ("≥", bar)))
    made = variants_of(world, "sign", "linf")
    bits = sum(8 * len(label.delta or b"") + 32 * len(label.delta_scale or ()) for label in made)
    elements = sum(len(label.delta_scale or ()) for label in made) * FrozenTeacher(ModelFolder(world.teacher)).width
    return [Figure("sign_bits", bits / elements, "stored bits an element, scales included", ("≤", 1.1)), *found]


def mean_divergence(world: World, codec: CodecName, norm: str) -> float:
    return float(np.mean([label.divergence for label in variants_of(world, codec, norm)]))


def variants_of(world: World, codec: CodecName, norm: str) -> list[Any]:
    models = ModelSet(ModelFolders(world.teacher), "float32")
    spec = VariantSpec(1, settings_of(codec=codec, perturbation={"norm": norm}), EPSILON, None)
    return make_variant(models, world.labelled()[0], None, spec).labels


def text_edit_figures(world: World, rounds: int) -> list[Figure]:
    """Perturbed variants a second ÷ masked-LM variants a second, the teacher's logits included in both."""
    config = AutoConfig.from_pretrained(world.teacher)
    with tempfile.TemporaryDirectory() as folder:
        set_seed(0)
        AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
        ModelFolder(world.teacher).tokenizer.save_pretrained(folder)
        edits = settings_of(recipes=[["masked_lm"]])
        models = ModelSet(ModelFolders(world.teacher, None, Path(folder), edits), "float32")
        part = world.labelled()[0].take(np.arange(min(64, len(world.labelled()[0].inputs))))
        inputs = part.inputs
        candidates = models.masked_lm.candidates(inputs)
        work: dict[str, Callable[[], object]] = {
            "perturb": lambda: make_variant(models, part, None, VariantSpec(1, settings_of(), EPSILON, None)),
            "replace": lambda: make_variant(models, part, candidates, VariantSpec(1, edits, 0.0, None)),
            "candidates": lambda: models.masked_lm.candidates(inputs),
        }
        seconds = medians(work, rounds)
    found = []
    for key, copies in (("text_edit_ratio", TINYBERT_COPIES), ("text_edit_ratio_3", 3), ("text_edit_ratio_1", 1)):
        ratio = (seconds["candidates"] / copies + seconds["replace"]) / seconds["perturb"]
        found.append(Figure(key, ratio, f"perturbed variants/s ÷ masked-LM variants/s, {copies} of each text"))
    return found


def bf16_figures(world: World, rounds: int) -> list[Figure]:
    """Rows a second and predictions with the encoder's products in bfloat16."""
    part = world.labelled()[0]
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    sets = {precision: ModelSet(ModelFolders(world.teacher), precision) for precision in precisions}
    work: dict[str, Callable[[], object]] = {
        precision: partial(make_variant, models, part, None, VariantSpec(1, settings_of(), EPSILON, None))
        for precision, models in sets.items()
    }
    seconds = medians(work, rounds)
    predictions = [m.teacher.logits(p.inputs, m.batches, BATCH_ROWS).argmax(1) for m in sets.values() for p in world.labelled()]
    half = len(predictions) // 2
    same = float(np.mean(np.concatenate(predictions[:half]) == np.concatenate(predictions[half:])))
    return [
        Figure("bf16_speedup", seconds["float32"] / seconds["bfloat16"], "rows/s in bfloat16 ÷ in float32"),
        Figure("bf16_agreement", same, "share of rows with the same prediction", ("≥", 0.995)),
    ]


@stage
@click.option("--prepared", default="data/prepared/movies", show_default=True, type=click.Path(path_type=Path), help="Corpus.")
@click.option("--teacher", default="data/teacher/movies", show_default=True, type=click.Path(path_type=Path), help="Model.")
@click.option("--rows", default=640, show_default=True, help="Training rows that are timed.")
@click.option("--rounds", default=3, show_default=True, help="Turns of which the median counts.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="Also write the figures to this file.")
def main(prepared: Path, teacher: Path, rows: int, rounds: int, target: Path | None) -> None:
    """Measure the augment stage on this machine; close other programs first."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder) / "world", prepared, teacher, rows, shard_rows=64)
        figures = [*loop_figures(world, rounds)[0], *stage_figures(world, rounds)]
        figures += [*padding_figures(world, prepared), *codec_figures(world)]
        figures += [*text_edit_figures(world, rounds), *bf16_figures(world, rounds), *memory_figures(prepared, teacher, 2000)]
    print_table(f"augment, {rows} rows, {rounds} rounds, one thread a worker", figures)
    if target is not None:
        target.write_text(json.dumps({figure.key: round(figure.value, 4) for figure in figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
