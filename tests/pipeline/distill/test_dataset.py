import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pipeline.config.corpus import Split
from pipeline.config.errors import PipelineError
from pipeline.config.settings import VariantPolicy
from pipeline.corpus.encoding import Batch
from pipeline.corpus.task import Task
from pipeline.distill.dataset import VARIANT, Examples, Variants, check_policy, chosen, followed_in, shown
from pipeline.perturbation.surrogate import checkpoints_followed
from pipeline.shards import reader, writer
from pipeline.shards.manifest import Coding, Manifest, ShardEntry
from pipeline.shards.reader import Shards
from pipeline.shards.schema import FORMAT_VERSION, Content, shard_schema
from pipeline.shards.writer import write_shard
from pipeline.store.keys import Key
from pipeline.training.order import EpochOrder, MicroBatch, StepSharding
from tests.stored import RemoteStore, only_in

TASK = Task(name="tiny", kind="classification", metric="accuracy", labels=("bad", "good"), pair=False)
KEY: Key = {"format_version": FORMAT_VERSION, "teacher": "ab" * 32}
COUNT, VARIANTS, CHECKPOINTS, EPOCHS, BATCH_SIZE = 37, 5, 3, 4, 8
CONTENT: dict[bool, Content] = {False: "soft_labels", True: "variants"}
SHOWN: dict[VariantPolicy, int] = {"rotate": 1, "curriculum": 1, "all": VARIANTS}
"""Variants of an example that one step shows."""

USE: TypeAdapter[VariantPolicy] = TypeAdapter(VariantPolicy)

Parts = dict[tuple[Split, int], list[Sequence[int]]]
"""Of each variant of each split the numbers of the examples in each partition."""
Met = tuple[int, int]
"""Number of an example, and of the variant of it that was met."""


def columns(numbers: Sequence[int], variant: int) -> dict[str, Any]:
    """Rows whose every value tells the example and the variant; every fifth example has no label."""
    lengths = [3 + number % 7 for number in numbers]
    shared: dict[str, Any] = {
        "example_id": [f"row-{number}" for number in numbers],
        "variant": [variant] * len(numbers),
        "input_ids": [[number, *[variant] * (length - 1)] for number, length in zip(numbers, lengths, strict=True)],
        "label": [None if number % 5 == 4 else number % 2 for number in numbers],
        "teacher_logits": [[number, 0.0] for number in numbers],
    }
    if not variant:
        return shared
    return shared | {
        "delta": [bytes([number, variant] * length) for number, length in zip(numbers, lengths, strict=True)],
        "delta_scale": [[1.0] * length for length in lengths],
        "perturbed_logits": [[number, variant] for number in numbers],
        "divergence": [0.1] * len(numbers),
        "flipped": [False] * len(numbers),
    }


def write(folder: Path, parts: Parts, checkpoints: int = CHECKPOINTS) -> Shards:
    """A complete set of shards."""
    perturbed, entries = any(variant for _, variant in parts), []
    for (split, variant), partitions in parts.items():
        for number, examples in enumerate(partitions):
            file, key = f"{split}-{variant}-{number}.arrow", KEY | {"variant": variant, "examples": f"{split} {min(examples)}"}
            schema = shard_schema(CONTENT[perturbed], TASK.kind, token_types=False)
            receipt = write_shard(folder / file, schema, columns(examples, variant), key, {}, {})
            entries.append(ShardEntry(file=file, split=split, variant=variant, partition=number, receipt=receipt))
    Manifest(
        format_version=FORMAT_VERSION,
        content=CONTENT[perturbed],
        task=TASK,
        key=KEY,
        token_types=False,
        pad_token_id=0,
        coding=Coding(codec="int8", width=2) if perturbed else None,
        variants=max(variant for _, variant in parts),
        details={"checkpoints": checkpoints, "recipes": [["perturb"]]} if perturbed else {},
        shards=tuple(entries),
    ).save(folder)
    return Shards(folder)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shards, Shards]:
    """Soft labels, and variants that have the partitions of the soft labels, each in another order."""
    folder, generator = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    parts = [part.tolist() for part in np.split(np.arange(COUNT), [9, 20, 31])]
    orders = {variant: generator.permutation(len(parts)).tolist() for variant in range(1, VARIANTS + 1)}
    variants: Parts = {("train", variant): [parts[number] for number in order] for variant, order in orders.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "ROWS_PER_BATCH", 4)
        soft_labels = write(folder / "soft_labels", {("train", 0): parts, ("dev", 0): [range(40, 51)]})
        return soft_labels, write(folder / "shards", variants)


def examples_of(sets: tuple[Shards, Shards], use: VariantPolicy = "rotate") -> Examples:
    """The train split, with variants unless ``use`` is none."""
    plain = Examples(sets[0], "train")
    return plain if use == "none" else Examples(sets[0], "train", Variants(sets[1], sets[0], use))


def steps_of_epoch(
    examples: Examples, epoch: int, processes: int, turns: int, seed: int = 3
) -> list[list[tuple[MicroBatch, Batch]]]:
    """Of each step the pieces of all processes and turns, with their batches."""
    taken = []
    for process in range(processes):
        order = EpochOrder(examples.lengths(), BATCH_SIZE, EPOCHS, seed, StepSharding(processes, process, turns))
        order.set_epoch(epoch)
        taken.append([(piece, examples.batch(piece)) for piece in order])
    return [
        [found for mine in taken for found in mine[step * turns : (step + 1) * turns]] for step in range(len(taken[0]) // turns)
    ]


def clean_in(batch: Batch) -> list[int]:
    """The examples whose clean inputs a batch holds, by what is written into ids and logits alike."""
    numbers: list[int] = batch["input_ids"][:, 0].tolist()
    assert batch["teacher_logits"].tolist() == [[number, 0.0] for number in numbers]
    assert (batch["input_ids"][:, 1:] == 0).all(), "they are of variant 0, or padding"
    return numbers


def variants_in(batch: Batch) -> list[Met]:
    """The variants that a batch holds, by what is written into ids, logits and δ alike."""
    held = {name.removeprefix(VARIANT): value for name, value in batch.items() if name.startswith(VARIANT)}
    met: list[Met] = [(int(number), int(variant)) for number, variant in held["logits"].tolist()]
    assert held["input_ids"][:, :2].tolist() == [list(one) for one in met]
    assert held["codes"][:, 0].tolist() == held["codes"][:, 2].tolist() == [list(one) for one in met]
    assert held["attention_mask"].sum(dim=1).tolist() == [3 + number % 7 for number, _ in met]
    return met


any_sharing = {"processes": st.integers(1, 3), "turns": st.integers(1, 2), "epoch": st.integers(0, EPOCHS - 1)}
often = settings(max_examples=8)


@pytest.mark.parametrize("use", SHOWN)
@given(**any_sharing)
@often
def test_in_an_epoch_every_example_meets_exactly_its_own_variants_and_those_that_are_chosen(
    sets: tuple[Shards, Shards], use: VariantPolicy, processes: int, turns: int, epoch: int
) -> None:
    met: list[Met] = []
    for step in steps_of_epoch(examples_of(sets, use), epoch, processes, turns):
        for piece, batch in step:
            numbers = chosen(use, followed_in(sets[1].manifest), CHECKPOINTS, epoch, piece.progress)
            found = variants_in(batch)
            clean = clean_in(batch)
            assert found == [(example, number) for number in numbers for example in clean], "all first, then all second"
            met += found
    assert sorted(example for example, _ in met) == sorted([*range(COUNT)] * SHOWN[use])
    assert len(set(met)) == len(met), "none twice"


@pytest.mark.parametrize("use", ["none", "rotate", "all"])
def test_what_comes_with_the_clean_inputs_is_that_of_the_row(sets: tuple[Shards, Shards], use: VariantPolicy) -> None:
    piece = MicroBatch(np.array([9, 4, 36, 0]), epoch=2, progress=0.625, weight=1.5)
    batch = examples_of(sets, use).batch(piece)
    assert clean_in(batch) == [9, 4, 36, 0]
    np.testing.assert_array_equal(batch["labels"].numpy(), np.array([np.nan, np.nan, 0, 0], dtype=np.float32))
    assert batch["labels"].dtype == torch.float32
    assert batch["attention_mask"].sum(dim=1).tolist() == [3 + number % 7 for number in (9, 4, 36, 0)]
    assert any(name.startswith(VARIANT) for name in batch) == (use != "none")


@pytest.mark.parametrize("use", SHOWN)
@given(seed=st.integers(0, 2**63), epochs=st.lists(st.integers(0, EPOCHS - 1), min_size=1, max_size=3))
@settings(max_examples=3)
def test_the_batches_of_an_epoch_are_decided_by_seed_epoch_and_rows_whatever_came_before(
    sets: tuple[Shards, Shards], use: VariantPolicy, seed: int, epochs: list[int]
) -> None:
    def batches(examples: Examples, epoch: int) -> list[Batch]:
        return [batch for step in steps_of_epoch(examples, epoch, 1, 1, seed) for _, batch in step]

    used = examples_of(sets, use)
    for epoch in epochs:
        np.random.default_rng().random(2)
        torch.rand(2)
        again, fresh = batches(used, epoch), batches(examples_of(sets, use), epoch)
        for one, other in zip(again, fresh, strict=True):
            assert one.keys() == other.keys()
            for name in one:
                torch.testing.assert_close(one[name], other[name], rtol=0, atol=0, equal_nan=True, msg=name)


def test_a_batch_waits_for_its_own_shards_while_the_rest_of_this_and_the_next_variant_is_fetched_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "THREADS", 1)
    others, parts = threading.Event(), [range(10), range(10, 20), range(20, 30)]
    store = RemoteStore(tmp_path / "store", wait=lambda key: key["examples"] == "train 10" or others.wait(60))
    soft_labels = write(tmp_path / "soft_labels", {("train", 0): parts})
    write(tmp_path / "shards", {("train", number): parts for number in range(1, 5)}, checkpoints=0)
    variants = Variants(shards := only_in(store, tmp_path / "shards"), soft_labels, "rotate")

    def shown_logits(rows: Sequence[int], epoch: int) -> Any:
        return variants.batch(MicroBatch(np.array(rows), epoch, progress=0.0, weight=1.0))["logits"].tolist()

    assert shown_logits([15], epoch=0) == [[15, 1]]
    others.set()
    assert shown_logits(range(30), epoch=1) == [[number, 2] for number in range(30)]
    shards.close()
    fetched = [(key["variant"], int(key["examples"].removeprefix("train "))) for key in store.fetched]
    assert fetched[:6] == [(1, 10), (1, 0), (1, 20), (2, 0), (2, 10), (2, 20)]
    assert len(set(fetched)) == len(fetched), "none twice"
    assert shown_logits([5], epoch=3) == [[5, 4]], "it can still be read"
    shards.close()


def test_a_curriculum_needs_its_variants_in_the_order_of_their_checkpoints() -> None:
    assert shown("curriculum", [2, None, 1]) == [3, 1]
    assert shown("rotate", [2, None, 1]) == shown("curriculum", [None] * 3) == [1, 2, 3]


@given(st.integers(1, 9), st.integers(0, 40))
def test_rotation_shows_every_variant_once_in_as_many_epochs(variants: int, epoch: int) -> None:
    shown = [chosen("rotate", [None] * variants, 0, epoch + number, 0.0) for number in range(variants)]
    assert sorted(number for numbers in shown for number in numbers) == list(range(1, variants + 1))


@given(st.lists(st.booleans(), min_size=1, max_size=12).filter(any), st.integers(1, 5), st.integers(0, 20),
       st.floats(0, 1, exclude_max=True))  # fmt: skip
def test_curriculum_shows_only_variants_of_the_nearest_checkpoint_in_turn(
    perturbed: list[bool], checkpoints: int, epoch: int, progress: float
) -> None:
    followed = checkpoints_followed(perturbed, checkpoints)
    away = {number: abs(checkpoint - progress * checkpoints) for number, checkpoint in enumerate(followed, 1) if checkpoint}
    turns = {chosen("curriculum", followed, checkpoints, epoch + turn, progress)[0] for turn in range(len(followed))}
    assert turns == {number for number, distance in away.items() if distance == min(away.values())}


def test_curriculum_takes_turns_where_no_variant_follows_a_surrogate() -> None:
    check_policy("curriculum", [None] * 3, 0)
    shown = [chosen("curriculum", [None] * 3, 0, epoch, 0.9) for epoch in range(4)]
    assert shown == [chosen("rotate", [None] * 3, 0, epoch, 0.9) for epoch in range(4)]


def test_curriculum_needs_a_variant_for_every_checkpoint() -> None:
    """Else a student would see to its end what misled a surrogate that had hardly begun."""
    check_policy("curriculum", [1, None, 2, 3, 1], 3)
    check_policy("rotate", [1, 2, 3], 8)
    with pytest.raises(
        PipelineError, match=r"surrogate's 8 checkpoints, but 5 have none; set surrogate.checkpoints to 3, or raise"
    ):
        check_policy("curriculum", [1, 2, 3], 8)


@pytest.mark.parametrize("use", ["sometimes", {"best_of": 2}, 3])
def test_another_use_is_rejected(use: Any) -> None:
    with pytest.raises(ValidationError):
        USE.validate_python(use, strict=True)
