import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.augment.batches import Batches, Inputs, Partner, half, out_of_memory
from pipeline.augment.recipes import Recipe
from pipeline.augment.teacher import ModelFolders, ModelSet
from pipeline.augment.variants import Made, Making, Scored, make_variant
from pipeline.config.errors import PipelineError
from pipeline.corpus.encoding import EVEN_ROWS, Ids, Integers, Types
from pipeline.perturbation.inputs import OWN_WEIGHT, PARTNER_IDS
from tests.world import augment_settings, make_inputs

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    MemoryError("Unable to allocate 3.0 GiB for an array"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
    ),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


class Device:
    """Computes rows up to a number, and above it runs out of memory; it notes what it was given."""

    def __init__(self, room: Callable[[Inputs, int], bool], error: Exception = ERRORS[0]) -> None:
        self.room, self.error = room, error
        self.asked: list[tuple[int, int]] = []

    def __call__(self, rows: Inputs, positions: Integers, tokens: int) -> list[str]:
        self.asked.append((len(rows), tokens))
        if not self.room(rows, tokens):
            raise self.error
        return [f"{name} at {position}" for name, position in zip(rows.example_ids, positions, strict=True)]

    @property
    def sizes(self) -> list[int]:
        return [rows for rows, _ in self.asked]


def up_to(rows: int, error: Exception = ERRORS[0]) -> Device:
    return Device(lambda asked, tokens: len(asked) <= rows, error)


def of_lengths(lengths: list[int] | npt.NDArray[np.int64]) -> Inputs:
    return Inputs([f"example {i}" for i in range(len(lengths))], [np.ones(length, np.int32) for length in lengths], None)


@given(lengths=st.lists(st.integers(1, 30), max_size=70), batch_rows=st.integers(1, 40), room=st.integers(1, 40))
@settings(deadline=None)
def test_every_row_gets_its_own_result_in_its_own_place_whatever_fits(lengths: list[int], batch_rows: int, room: int) -> None:
    found = Batches().run(of_lengths(lengths), batch_rows, up_to(room))
    assert found == [f"example {row} at {row}" for row in range(len(lengths))]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(error)[-22:])
def test_a_batch_that_does_not_fit_is_halved_and_later_ones_start_at_what_fits(error: Exception) -> None:
    device, batches = up_to(8, error), Batches()
    batches.run(of_lengths([5] * 64), 32, device)
    assert device.sizes == [32, 16, *[8] * 8]
    device.asked.clear()
    batches.run(of_lengths([5] * 40), 32, device)
    assert device.sizes == [8] * 5, "what fits is remembered from one call to the next"


@pytest.mark.parametrize(
    ("rows", "notes"),
    [
        (32, ["memory ran out at 32 rows of 5 tokens; continuing with 16",
              "memory ran out at 16 rows of 5 tokens; continuing with 8"]),
        (8, ["memory ran out at 8 rows of 5 tokens; continuing with 4; with fewer than 8 the last digits may differ from those "
             "of a larger device"]),
    ],
)  # fmt: skip
def test_every_halving_is_noted_once_and_a_loss_of_digits_with_it(rows: int, notes: list[str]) -> None:
    batches = Batches()
    for wanted in (notes, []):
        batches.run(of_lengths([5] * 64), rows, up_to(rows // 4 if rows > 8 else 4))
        assert batches.notes() == wanted


@pytest.mark.parametrize(
    ("room", "calls", "wanted"),
    [
        (16 * 20, [[20] * 32 + [5] * 32], [(32, 20), (16, 20), (16, 20), (32, 5)]),
        (8 * 20, [[13] * 16, [14] * 16], [(16, 13), (8, 13), (8, 13), (8, 14), (8, 14)]),
    ],
    ids=["shorter rows in batches as large in tokens", "longer rows at least eight at once"],
)
def test_batches_after_a_halved_one_are_as_large_as_fit(
    room: int, calls: list[list[int]], wanted: list[tuple[int, int]]
) -> None:
    device, batches = Device(lambda rows, tokens: len(rows) * tokens <= room), Batches()
    for lengths in calls:
        batches.run(of_lengths(lengths), 32, device)
    assert device.asked == wanted


def test_half_is_fewer_rows_and_a_multiple_of_eight_as_long_as_possible() -> None:
    for rows in range(2, 200):
        found = half(rows)
        assert 1 <= found < rows
        assert found % EVEN_ROWS == 0 if rows > EVEN_ROWS else found == rows // 2
        assert found <= rows / 2 + EVEN_ROWS


@given(rows=st.integers(EVEN_ROWS, 60), room=st.integers(EVEN_ROWS, 60))
@settings(deadline=None)
def test_no_piece_of_a_batch_is_shorter_than_eight_rows_while_eight_fit(rows: int, room: int) -> None:
    device = up_to(room)
    Batches().run(of_lengths([5] * rows), 60, device)
    assert min(device.sizes) >= EVEN_ROWS, "the rest of a batch that was cut would have other bits"


def test_the_pieces_of_a_batch_are_padded_as_the_whole_batch_would_be() -> None:
    inputs = of_lengths(np.random.default_rng(0).permutation(np.repeat(np.arange(20, 36), 4)))
    whole, cut = up_to(64), up_to(8)
    Batches().run(inputs, 32, whole)
    Batches().run(inputs, 32, cut)
    assert whole.sizes != cut.sizes
    assert [tokens for rows, tokens in cut.asked if rows == 8] == [
        tokens for rows, tokens in whole.asked for _ in range(rows // 8)
    ]


def test_one_row_that_does_not_fit_is_refused_by_its_name_and_length_and_the_others_are_not_blamed() -> None:
    device = Device(lambda rows, tokens: "example 2" not in rows.example_ids)
    with pytest.raises(PipelineError) as refusal:
        Batches().run(of_lengths([5, 6, 9, 7]), 4, device)
    assert str(refusal.value) == (
        "example example 2 with its 9 tokens does not fit into memory even alone; "
        "set a smaller tasks.<task>.teacher.max_length, or use a larger device"
    )
    assert device.sizes[-1] == 1


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("can't allocate")])
def test_another_error_is_not_taken_for_a_lack_of_memory(error: Exception) -> None:
    device, batches = up_to(8, error), Batches()
    with pytest.raises(type(error)) as raised:
        batches.run(of_lengths([5] * 16), 16, device)
    assert raised.value is error
    assert device.sizes == [16]
    assert batches.notes() == []
    assert not out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_what_a_failed_batch_held_is_let_go_before_the_next_try() -> None:
    class Held:
        alive = 0

        def __init__(self) -> None:
            Held.alive += 1

        def __del__(self) -> None:
            Held.alive -= 1

    def compute(rows: Inputs, positions: Integers, tokens: int) -> list[int]:
        assert Held.alive == 0, "the error of the try before still holds its tensors"
        held = Held()
        if len(rows) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        del held
        return [0] * len(rows)

    Batches().run(of_lengths([5] * 16), 16, compute)


def made_with(folder: Path, room: int, recipe: Recipe, rows: int, batch_rows: int) -> tuple[Made, list[int]]:
    """A variant of rows by a teacher that takes so many rows at once, and the batches it was asked for."""
    models, many, sizes = ModelSet(ModelFolders(folder), "float32"), make_inputs(10 * rows), []
    inputs = many.take(np.argsort(-many.lengths(), kind="stable")[:rows])  # of like length, so that batches are large
    clean = models.teacher.logits(inputs, Batches(), 8)
    whole = models.teacher.logits_at

    def limited(batch: dict[str, torch.Tensor], embeddings: torch.Tensor) -> torch.Tensor:
        sizes.append(len(embeddings))
        if len(embeddings) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(batch, embeddings)

    models.teacher.logits_at = limited  # type: ignore[method-assign]
    settings = augment_settings(recipes=[recipe], batch_rows=batch_rows, perturbation={"steps": 2, "step_size": 0.7})
    scored = Scored(inputs, clean)
    return make_variant(models, scored, None, Making(1, settings, 0.3, None)), sizes


@pytest.mark.parametrize("recipe", [["perturb"], ["mask", "perturb"], ["delete"], ["mix"]], ids=" ".join)
@pytest.mark.parametrize("rows", [64, 59, 23])
@pytest.mark.parametrize("room", [8, 16])
def test_a_variant_made_with_less_memory_is_the_same_to_the_bit(teacher: Path, recipe: Recipe, rows: int, room: int) -> None:
    undisturbed, whole = made_with(teacher, 10**6, recipe, rows, 32)
    found, pieces = made_with(teacher, room, recipe, rows, 32)
    assert max(whole) == max(pieces) > 16, "what was tried first did not fit"
    assert found.labels == undisturbed.labels, "δ, scales, logits and all that is told of them"
    for one, other in zip(found.inputs.input_ids, undisturbed.inputs.input_ids, strict=True):
        np.testing.assert_array_equal(one, other)


PAD = 7


def ids_of(*ids: int) -> Ids:
    return np.array(ids, dtype=np.int32)


def types_of(*types: int) -> Types:
    return np.array(types, dtype=np.int8)


IDS = [ids_of(2, 9, 3), ids_of(2, 3), ids_of(2, 8, 9, 3)]
TYPES = [types_of(0, 0, 1), types_of(0, 1), types_of(0, 0, 1, 1)]
PARTNERS = [Partner("b", ids_of(2, 3, PAD), 0.25), Partner("c", ids_of(5, 6), 0.5), Partner("a", ids_of(2, 9, 3, PAD), 0.75)]
FULL = Inputs(["a", "b", "c"], IDS, TYPES, PARTNERS)
BARE = Inputs(["a", "b", "c"], IDS, None)


def assert_rows(found: Inputs, rows: list[int], of: Inputs) -> None:
    assert list(found.example_ids) == [of.example_ids[row] for row in rows]
    assert [ids.tolist() for ids in found.input_ids] == [of.input_ids[row].tolist() for row in rows]
    types = None if of.token_type_ids is None else [of.token_type_ids[row].tolist() for row in rows]
    assert (None if found.token_type_ids is None else [row.tolist() for row in found.token_type_ids]) == types
    assert found.partners == (None if of.partners is None else [of.partners[row] for row in rows])


@pytest.mark.parametrize("inputs", [FULL, BARE], ids=["full", "bare"])
@pytest.mark.parametrize("positions", [[2, 0], [1], [0, 0, 2]])
def test_rows_that_are_taken_keep_their_ids_types_and_partners(inputs: Inputs, positions: list[int]) -> None:
    assert_rows(inputs.take(np.array(positions)), positions, inputs)


@pytest.mark.parametrize("types", [TYPES, None], ids=["types", "none"])
def test_parts_are_joined_in_their_order_and_are_the_rows_they_were_cut_from(types: list[Types] | None) -> None:
    whole = Inputs(["a", "b", "c"], IDS, types)
    parts = [whole.take(np.array(rows)) for rows in ([2], [0, 1])]
    assert_rows(Inputs.joined(parts), [2, 0, 1], whole)


def test_rows_without_partners_are_padded_to_the_length_asked_for_and_never_mixed() -> None:
    batch = Inputs(["a", "b", "c"], IDS, TYPES).padded(PAD, 5)
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[2, 9, 3, PAD, PAD], [2, 3, PAD, PAD, PAD], [2, 8, 9, 3, PAD]],
        "attention_mask": [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]],
        "token_type_ids": [[0, 0, 1, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 1, 0]],
    }
    assert set(BARE.padded(PAD, 0)) == {"input_ids", "attention_mask"}


def test_rows_with_partners_bring_them_and_their_weights_and_may_read_a_padding_token() -> None:
    batch = FULL.padded(PAD, 5)
    assert batch[PARTNER_IDS].tolist() == [[2, 3, PAD, PAD, PAD], [5, 6, PAD, PAD, PAD], [2, 9, 3, PAD, PAD]]
    assert batch[OWN_WEIGHT].tolist() == [0.25, 0.5, 0.75]
    filled_up = Inputs(["a"], [ids_of(2, 3, PAD)], None, [Partner("b", ids_of(2, 9, 3), 0.5)]).padded(PAD, 4)
    assert filled_up["attention_mask"].tolist() == [[1, 1, 1, 0]], (
        "what fills a row up to its partner is read, what pads it not"
    )


@pytest.mark.parametrize("inputs", [FULL, BARE], ids=["full", "bare"])
@pytest.mark.parametrize("positions", [[0, 1, 2], [1], []])
def test_rows_arrive_in_another_process_as_they_were(inputs: Inputs, positions: list[int]) -> None:
    rows = inputs.take(np.array(positions, dtype=np.int64))
    found = pickle.loads(pickle.dumps(rows, 5))
    assert [ids.dtype for ids in found.input_ids] == [np.int32] * len(positions)
    names = [partner.example_id for partner in found.partners or ()]
    assert names == [partner.example_id for partner in rows.partners or ()]
    assert_rows(Inputs(found.example_ids, found.input_ids, found.token_type_ids, rows.partners), list(range(len(rows))), rows)
