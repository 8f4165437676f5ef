from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pipeline.config.errors import PipelineError
from pipeline.corpus.encoding import Batch
from pipeline.corpus.task import Split, Task
from pipeline.distill.dataset import VARIANT, Examples, Use, Variants, WorstOf, aims_in, check_use, chosen
from pipeline.perturbation.surrogate import aims_of
from pipeline.shards import writer
from pipeline.shards.manifest import Coding, Manifest, ShardEntry, ShardMismatch
from pipeline.shards.reader import Shards
from pipeline.shards.schema import FORMAT_VERSION, Content, shard_schema
from pipeline.shards.writer import write_shard
from pipeline.store.hashing import Key
from pipeline.training.order import EpochOrder, MicroBatch, StepSharding

TASK = Task(name="tiny", kind="classification", metric="accuracy", labels=("bad", "good"), pair=False)
KEY: Key = {"format_version": FORMAT_VERSION, "teacher": "ab" * 32}
COUNT, VARIANTS, SNAPSHOTS, EPOCHS, BATCH_SIZE = 37, 5, 3, 4, 8
CONTENT: dict[bool, Content] = {False: "scores", True: "perturbations"}
USES: dict[str, Use] = {"rotate": "rotate", "by_progress": "by_progress", "all": "all", "worst_of": WorstOf(worst_of=3)}
SHOWN = {"rotate": 1, "by_progress": 1, "all": VARIANTS, "worst_of": 3}
"""Variants of an example that one step shows."""

USE: TypeAdapter[Use] = TypeAdapter(Use)

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
        "partner_id": [None] * len(numbers),
        "partner_ids": [None] * len(numbers),
        "own_weight": [None] * len(numbers),
        "delta": [bytes([number, variant] * length) for number, length in zip(numbers, lengths, strict=True)],
        "delta_scale": [[1.0] * length for length in lengths],
        "perturbed_logits": [[number, variant] for number in numbers],
        "divergence": [0.1] * len(numbers),
        "flipped": [False] * len(numbers),
    }


def write(folder: Path, parts: Parts, snapshots: int = SNAPSHOTS) -> Shards:
    """A complete set of shards."""
    perturbed, entries = any(variant for _, variant in parts), []
    for (split, variant), partitions in parts.items():
        for number, examples in enumerate(partitions):
            file, key = f"{split}-{variant}-{number}.arrow", KEY | {"variant": variant, "examples": f"{split} {number}"}
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
        details={"snapshots": snapshots, "recipes": [["perturb"]]} if perturbed else {},
        shards=tuple(entries),
    ).save(folder)
    return Shards(folder)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shards, Shards]:
    """Scores, and variants of which every one lies in another order and in other partitions than the scores."""
    folder, generator = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    variants: Parts = {}
    for variant in range(1, VARIANTS + 1):
        cuts = sorted(generator.choice(np.arange(1, COUNT), 2, replace=False))
        variants["train", variant] = [part.tolist() for part in np.split(generator.permutation(COUNT), cuts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "ROWS_PER_BATCH", 4)
        scores = write(folder / "scores", {("train", 0): [range(20), range(20, COUNT)], ("dev", 0): [range(40, 51)]})
        return scores, write(folder / "shards", variants)


def examples_of(sets: tuple[Shards, Shards], use: Use = "rotate") -> Examples:
    """The train split, with variants unless ``use`` is none."""
    plain = Examples(sets[0], "train")
    return plain if use == "none" else Examples(sets[0], "train", Variants(sets[1], plain.rows, use))


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


def untouched_in(batch: Batch) -> list[int]:
    """The examples whose untouched inputs a batch holds, by what is written into ids and scores alike."""
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


@pytest.mark.parametrize("use", USES)
@given(**any_sharing)
@often
def test_in_an_epoch_every_example_meets_exactly_its_own_variants_and_those_that_are_chosen(
    sets: tuple[Shards, Shards], use: str, processes: int, turns: int, epoch: int
) -> None:
    met: list[Met] = []
    for step in steps_of_epoch(examples_of(sets, USES[use]), epoch, processes, turns):
        for piece, batch in step:
            numbers = chosen(USES[use], aims_in(sets[1].manifest), SNAPSHOTS, epoch, piece.progress)
            found = variants_in(batch)
            untouched = untouched_in(batch)
            assert found == [(example, number) for number in numbers for example in untouched], "all first, then all second"
            met += found
    assert sorted(example for example, _ in met) == sorted([*range(COUNT)] * SHOWN[use])
    assert len(set(met)) == len(met), "none twice"


@pytest.mark.parametrize("use", ["none", "rotate", "all"])
def test_what_comes_with_the_untouched_inputs_is_that_of_the_row(sets: tuple[Shards, Shards], use: Use) -> None:
    piece = MicroBatch(np.array([9, 4, 36, 0]), epoch=2, progress=0.625, weight=1.5)
    batch = examples_of(sets, use).batch(piece)
    assert untouched_in(batch) == [9, 4, 36, 0]
    np.testing.assert_array_equal(batch["labels"].numpy(), np.array([np.nan, np.nan, 0, 0], dtype=np.float32))
    assert batch["labels"].dtype == torch.float32
    assert batch["attention_mask"].sum(dim=1).tolist() == [3 + number % 7 for number in (9, 4, 36, 0)]
    assert any(name.startswith(VARIANT) for name in batch) == (use != "none")


@pytest.mark.parametrize("use", USES)
@given(seed=st.integers(0, 2**63), epochs=st.lists(st.integers(0, EPOCHS - 1), min_size=1, max_size=3))
@settings(max_examples=3)
def test_the_batches_of_an_epoch_are_decided_by_seed_epoch_and_rows_whatever_came_before(
    sets: tuple[Shards, Shards], use: str, seed: int, epochs: list[int]
) -> None:
    def batches(examples: Examples, epoch: int) -> list[Batch]:
        return [batch for step in steps_of_epoch(examples, epoch, 1, 1, seed) for _, batch in step]

    used = examples_of(sets, USES[use])
    for epoch in epochs:
        np.random.default_rng().random(2)
        torch.rand(2)
        again, fresh = batches(used, epoch), batches(examples_of(sets, USES[use]), epoch)
        for one, other in zip(again, fresh, strict=True):
            assert one.keys() == other.keys()
            for name in one:
                torch.testing.assert_close(one[name], other[name], rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize("others", [range(36), [*range(36), 99]], ids=["missing", "another"])
def test_a_variant_that_some_example_lacks_is_refused_when_they_are_opened(
    sets: tuple[Shards, Shards], others: Sequence[int], tmp_path: Path
) -> None:
    broken = write(tmp_path, {("train", 1): [range(COUNT)], ("train", 2): [others]})
    with pytest.raises(ShardMismatch, match="1 of 37 examples have no perturbed row"):
        Variants(broken, Examples(sets[0], "train").rows, "rotate")


@given(st.integers(1, 9), st.integers(0, 40))
def test_rotation_shows_every_variant_once_in_as_many_epochs(variants: int, epoch: int) -> None:
    shown = [chosen("rotate", [None] * variants, 0, epoch + number, 0.0) for number in range(variants)]
    assert sorted(number for numbers in shown for number in numbers) == list(range(1, variants + 1))


@given(st.integers(2, 9), st.integers(0, 40), st.data())
def test_candidates_for_the_worst_differ_and_take_turns(variants: int, epoch: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(2, variants))
    use = USE.validate_python({"worst_of": count})
    found = chosen(use, [None] * variants, 0, epoch, 0.0)
    assert len(set(found)) == len(found) == count
    assert {n for e in range(variants) for n in chosen(use, [None] * variants, 0, e, 0.0)} == set(range(1, variants + 1))


@given(st.lists(st.booleans(), min_size=1, max_size=12).filter(any), st.integers(1, 5), st.integers(0, 20),
       st.floats(0, 1, exclude_max=True))  # fmt: skip
def test_by_progress_shows_only_variants_of_the_nearest_snapshot_in_turn(
    perturbed: list[bool], snapshots: int, epoch: int, progress: float
) -> None:
    aims = aims_of(perturbed, snapshots)
    away = {number: abs(aim - progress * snapshots) for number, aim in enumerate(aims, 1) if aim is not None}
    turns = {chosen("by_progress", aims, snapshots, epoch + turn, progress)[0] for turn in range(len(aims))}
    assert turns == {number for number, distance in away.items() if distance == min(away.values())}


def test_by_progress_takes_turns_where_no_variant_is_aimed_at_a_scout() -> None:
    check_use("by_progress", [None] * 3, 0)
    shown = [chosen("by_progress", [None] * 3, 0, epoch, 0.9) for epoch in range(4)]
    assert shown == [chosen("rotate", [None] * 3, 0, epoch, 0.9) for epoch in range(4)]


def test_by_progress_needs_a_variant_for_every_snapshot() -> None:
    """Else a student would see to its end what misled a scout that had hardly begun."""
    check_use("by_progress", [1, None, 2, 3, 1], 3)
    check_use("rotate", [1, 2, 3], 8)
    with pytest.raises(PipelineError, match=r"its 8 snapshots, but at the last 5 of them no variant is aimed; set .* to 3, or"):
        check_use("by_progress", [1, 2, 3], 8)


@pytest.mark.parametrize("use", ["sometimes", {"worst_of": 1}, {"best_of": 2}, 3])
def test_another_use_is_refused(use: Any) -> None:
    with pytest.raises(ValidationError):
        USE.validate_python(use, strict=True)
