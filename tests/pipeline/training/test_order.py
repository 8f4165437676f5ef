import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.errors import PipelineError
from pipeline.corpus.encoding import Batch
from pipeline.training.order import (
    DevDataset,
    EpochOrder,
    Lengths,
    MicroBatch,
    StepSharding,
    TrainDataset,
    as_it_is,
    steps_of,
    train_loader,
)

some_lengths = st.lists(st.integers(1, 64), min_size=1, max_size=80).map(lambda lengths: np.array(lengths, dtype=np.int64))


def micro_batches_of(lengths: Lengths, batch_size: int, epoch: int, sharding: StepSharding) -> list[MicroBatch]:
    order = EpochOrder(lengths, batch_size, 9, 0, sharding)
    order.set_epoch(epoch)
    found = list(order)
    assert len(found) == len(order)
    return found


@given(some_lengths, st.integers(1, 9), st.integers(0, 5))
def test_an_epoch_holds_every_row_once_in_steps_of_nearly_one_size(lengths: Lengths, batch_size: int, epoch: int) -> None:
    steps = steps_of(lengths, batch_size, 0, epoch)
    assert sorted(int(row) for rows in steps for row in rows) == list(range(len(lengths)))
    sizes = {len(rows) for rows in steps}
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert len(steps) == -(-len(lengths) // batch_size)


@given(some_lengths, st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), st.integers(0, 5))
def test_every_row_is_taken_once_an_epoch_by_any_number_of_processes_and_micro_batches(
    lengths: Lengths, batch_size: int, world_size: int, turns: int, epoch: int
) -> None:
    steps = steps_of(lengths, batch_size, 0, epoch)
    if min(map(len, steps)) < world_size * turns:
        with pytest.raises(PipelineError, match=rf"cannot be divided among {world_size} processes × {turns} gradient"):
            EpochOrder(lengths, batch_size, 9, 0, StepSharding(world_size, 0, turns))
        return
    taken = [
        micro_batches_of(lengths, batch_size, epoch, StepSharding(world_size, number, turns)) for number in range(world_size)
    ]
    assert {len(pieces) for pieces in taken} == {len(steps) * turns}, "as many steps for every process"
    for number, rows in enumerate(steps):
        of_step = [piece for pieces in taken for piece in pieces[number * turns : (number + 1) * turns]]
        assert sorted(int(row) for piece in of_step for row in piece.rows) == sorted(rows.tolist())
        assert sum(piece.weight for piece in of_step) == pytest.approx(world_size * turns)
        assert {piece.progress for piece in of_step} == {(epoch + number / len(steps)) / 9}
        values = {int(row): float(row) for row in rows}
        mean = sum(piece.weight * np.mean([values[int(row)] for row in piece.rows]) for piece in of_step) / (world_size * turns)
        assert mean == pytest.approx(np.mean(list(values.values()))), "weighted, the mean of means is the mean over the step"


@given(some_lengths, st.integers(-(2**63), 2**63), st.lists(st.integers(0, 5), max_size=4))
def test_seed_and_epoch_decide_the_order_whatever_came_before(lengths: Lengths, seed: int, epochs: list[int]) -> None:
    order = EpochOrder(lengths, 4, 9, seed, StepSharding())
    for epoch in epochs:
        order.set_epoch(epoch)
        next(iter(order))
        assert [piece.rows.tolist() for piece in order] == [rows.tolist() for rows in steps_of(lengths, 4, seed, epoch)]


def test_every_epoch_and_every_seed_has_an_order_of_its_own() -> None:
    lengths = np.random.default_rng(0).integers(1, 64, 200)
    orders = [
        tuple(int(row) for rows in steps_of(lengths, 4, seed, epoch) for row in rows) for seed in range(4) for epoch in range(4)
    ]
    assert len(set(orders)) == len(orders)


def realistic_lengths(rows: int) -> Lengths:
    """Lengths of short texts: log-normal about 22 tokens, cut at 64."""
    drawn = np.random.default_rng(0).lognormal(np.log(22), 0.6, rows)
    return np.clip(drawn, 3, 64).astype(np.int64)


def test_little_of_a_step_is_padding() -> None:
    lengths = realistic_lengths(5000)
    padded = sum(lengths[rows].max() * len(rows) for rows in steps_of(lengths, 16, 0, 0))
    assert padded / lengths.sum() <= 1.10
    unsorted = sum(lengths[start : start + 16].max() * 16 for start in range(0, 5000, 16))
    assert unsorted / lengths.sum() > 1.5, "the distribution is one on which bucketing matters"


def test_no_process_waits_long_for_the_one_with_the_longest_rows() -> None:
    lengths = realistic_lengths(5000)
    taken = [micro_batches_of(lengths, 32, 0, StepSharding(4, number)) for number in range(4)]
    tokens = np.array([[lengths[piece.rows].sum() for piece in pieces] for pieces in taken])
    assert (tokens.max(axis=0) / tokens.mean(axis=0)).mean() < 1.05


def test_steps_do_not_come_by_length_nor_rows_by_position() -> None:
    lengths = realistic_lengths(5000)
    steps = steps_of(lengths, 16, 0, 0)
    for of_step in ([lengths[rows].mean() for rows in steps], [rows.mean() for rows in steps]):
        assert abs(np.corrcoef(of_step, np.arange(len(steps)))[0, 1]) < 0.2
        assert abs(np.corrcoef(of_step[1:], of_step[:-1])[0, 1]) < 0.2


def test_rows_share_a_step_with_others_in_the_next_epoch_even_if_no_two_are_equally_long() -> None:
    lengths = np.random.default_rng(0).permutation(5000) + 1
    together = [{frozenset(rows.tolist()) for rows in steps_of(lengths, 8, 0, epoch)} for epoch in (0, 1)]
    assert len(together[0] & together[1]) <= 2


class Numbers:
    """Rows that consist of their number."""

    def __init__(self, lengths: Lengths) -> None:
        self._lengths = lengths

    def lengths(self) -> Lengths:
        return self._lengths

    def __len__(self) -> int:
        return len(self._lengths)

    def batch(self, rows: MicroBatch) -> Batch:
        return {"rows": torch.from_numpy(rows.rows), "longest": torch.tensor(self._lengths[rows.rows].max())}


def test_a_loader_with_workers_gives_the_micro_batches_in_their_order_with_their_weights() -> None:
    lengths = realistic_lengths(50)
    order = EpochOrder(lengths, 8, 9, 0, StepSharding(2, 1, 2))
    order.set_epoch(3)
    found = list(train_loader(TrainDataset(Numbers(lengths)), order, workers=2))
    assert [batch["rows"].tolist() for batch in found] == [part.rows.tolist() for part in order]
    assert [float(batch["weight"]) for batch in found] == pytest.approx([part.weight for part in order])


@given(some_lengths, st.integers(1, 9))
def test_dev_rows_come_longest_first_and_their_logits_return_to_their_rows(lengths: Lengths, batch_size: int) -> None:
    dataset = DevDataset(Numbers(lengths))
    batches = list(torch.utils.data.DataLoader(dataset, batch_size=batch_size, collate_fn=as_it_is))
    longest = [int(batch["longest"]) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    logits = np.concatenate([batch["rows"].numpy()[:, None] for batch in batches])
    assert dataset.in_row_order(logits)[:, 0].tolist() == list(range(len(lengths)))
