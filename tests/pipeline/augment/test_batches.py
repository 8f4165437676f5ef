import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.augment.batches import Batches, Inputs, out_of_memory
from pipeline.augment.teacher import ModelFolders, ModelSet
from pipeline.augment.variants import LabelledRows, Made, VariantSpec, make_variant
from pipeline.config.errors import PipelineError
from pipeline.config.settings import Recipe
from pipeline.corpus.encoding import EVEN_ROWS, Integers
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
    """Runs out of memory above a number of rows; records the sizes of its batches."""

    def __init__(self, room: Callable[[Inputs, int], bool], error: Exception = ERRORS[0]) -> None:
        self.room, self.error = room, error
        self.batches: list[tuple[int, int]] = []

    def __call__(self, rows: Inputs, positions: Integers, tokens: int) -> list[str]:
        self.batches.append((len(rows), tokens))
        if not self.room(rows, tokens):
            raise self.error
        return [f"{name} at {position}" for name, position in zip(rows.example_ids, positions, strict=True)]

    @property
    def sizes(self) -> list[int]:
        return [rows for rows, _ in self.batches]


def up_to(rows: int, error: Exception = ERRORS[0]) -> Device:
    return Device(lambda batch, tokens: len(batch) <= rows, error)


def run(batches: Batches, inputs: Inputs, batch_rows: int, device: Device) -> list[str]:
    """The result of every row; a row that was computed twice has the same result both times."""
    found: dict[int, str] = {}
    for positions, results in batches.pieces(inputs, batch_rows, device):
        for position, result in zip(positions.tolist(), results, strict=True):
            assert found.setdefault(position, result) == result
    return [found[row] for row in range(len(inputs))]


def of_lengths(lengths: list[int] | npt.NDArray[np.int64]) -> Inputs:
    return Inputs([f"example {i}" for i in range(len(lengths))], [np.ones(length, np.int32) for length in lengths], None)


@given(lengths=st.lists(st.integers(1, 30), max_size=70), batch_rows=st.integers(1, 40), room=st.integers(1, 40))
def test_every_row_gets_its_own_result_whatever_fits(lengths: list[int], batch_rows: int, room: int) -> None:
    found = run(Batches(), of_lengths(lengths), batch_rows, up_to(room))
    assert found == [f"example {row} at {row}" for row in range(len(lengths))]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(error)[-22:])
def test_a_batch_that_does_not_fit_is_halved_and_later_ones_start_at_what_fits(error: Exception) -> None:
    device, batches = up_to(8, error), Batches()
    run(batches, of_lengths([5] * 64), 32, device)
    assert device.sizes == [32, 16, *[8] * 8]
    assert [note[:38] for note in batches.notes()] == [f"memory ran out at {rows} rows of 5 tokens;" for rows in (32, 16)]
    device.batches.clear()
    run(batches, of_lengths([5] * 40), 32, device)
    assert (device.sizes, batches.notes()) == ([8] * 5, ()), "the size that fits is kept between calls"
    run(batches, of_lengths([5] * 8), 8, up_to(4, error))
    assert "last digits may differ" in batches.notes()[0]


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
        run(batches, of_lengths(lengths), 32, device)
    assert device.batches == wanted


@given(rows=st.integers(EVEN_ROWS, 60), room=st.integers(EVEN_ROWS, 60))
def test_no_piece_of_a_batch_is_shorter_than_eight_rows_while_eight_fit(rows: int, room: int) -> None:
    device = up_to(room)
    run(Batches(), of_lengths([5] * rows), 60, device)
    assert min(device.sizes) >= EVEN_ROWS, "the rest of a batch would have other bits"


def test_one_row_that_does_not_fit_is_named_with_its_length() -> None:
    device = Device(lambda rows, tokens: "example 2" not in rows.example_ids)
    with pytest.raises(PipelineError, match=r"^example example 2 with its 9 tokens does not fit .* set a smaller .*max_length"):
        run(Batches(), of_lengths([5, 6, 9, 7]), 4, device)
    assert device.sizes[-1] == 1


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("can't allocate")])
def test_other_errors_are_raised_as_they_are(error: Exception) -> None:
    device, batches = up_to(8, error), Batches()
    with pytest.raises(type(error)) as raised:
        run(batches, of_lengths([5] * 16), 16, device)
    assert raised.value is error
    assert device.sizes == [16]
    assert batches.notes() == ()
    assert not out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_tensors_of_a_failed_batch_are_freed_before_the_next_try() -> None:
    class Held:
        alive = 0

        def __init__(self) -> None:
            Held.alive += 1

        def __del__(self) -> None:
            Held.alive -= 1

    def compute(rows: Inputs, positions: Integers, tokens: int) -> list[int]:
        assert Held.alive == 0, "the previous error still holds its tensors"
        held = Held()
        if len(rows) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        del held
        return [0] * len(rows)

    assert len(list(Batches().pieces(of_lengths([5] * 16), 16, compute))) > 1


def made_with(folder: Path, room: int, recipe: Recipe, rows: int) -> tuple[Made, list[int]]:
    """A variant made with a teacher that runs out of memory above ``room`` rows, and the sizes of its batches."""
    models, many, sizes = ModelSet(ModelFolders(folder), "float32"), make_inputs(10 * rows), []
    inputs = many.take(np.argsort(-many.lengths(), kind="stable")[:rows])  # similar lengths, so that batches are large
    clean = models.teacher.logits(inputs, Batches(), 8)
    whole = models.teacher.logits_at

    def limited(batch: dict[str, torch.Tensor], embeddings: torch.Tensor) -> torch.Tensor:
        sizes.append(len(embeddings))
        if len(embeddings) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(batch, embeddings)

    models.teacher.logits_at = limited  # type: ignore[method-assign]
    settings = augment_settings(recipes=[recipe], batch_size=32, perturbation={"num_steps": 2, "step_size": 0.7})
    labelled = LabelledRows(inputs, clean)
    return make_variant(models, labelled, None, VariantSpec(1, settings, 0.3, None)), sizes


@pytest.mark.parametrize("recipe", [["mask", "perturb"], ["delete"]], ids=" ".join)
@pytest.mark.parametrize(("rows", "room"), [(59, 8), (23, 16)])
def test_a_variant_made_with_less_memory_is_the_same_to_the_bit(teacher: Path, recipe: Recipe, rows: int, room: int) -> None:
    undisturbed, whole = made_with(teacher, 10**6, recipe, rows)
    found, pieces = made_with(teacher, room, recipe, rows)
    assert max(whole) == max(pieces) > 16, "the first batch did not fit"
    assert found.labels == undisturbed.labels
    for one, other in zip(found.inputs.input_ids, undisturbed.inputs.input_ids, strict=True):
        np.testing.assert_array_equal(one, other)


TYPED = make_inputs(5)
UNTYPED = dataclasses.replace(TYPED, token_type_ids=None)


def plain(inputs: Inputs) -> list[Any]:
    """Each row as text."""
    return [repr(dataclasses.astuple(inputs.take(np.array([row])))) for row in range(len(inputs))]


@pytest.mark.parametrize("inputs", [TYPED, UNTYPED], ids=["token types", "no token types"])
@pytest.mark.parametrize("positions", [[2, 0], [0, 0, 2], []])
def test_rows_that_are_taken_and_pickled_are_unchanged(inputs: Inputs, positions: list[int]) -> None:
    found = pickle.loads(pickle.dumps(inputs.take(np.array(positions, dtype=np.int64)), 5))
    assert list(found.example_ids) == [inputs.example_ids[row] for row in positions]
    assert plain(found) == [plain(inputs)[row] for row in positions]


def test_rows_are_padded_on_the_right() -> None:
    ids = [np.array([2, 9, 3], np.int32), np.array([2, 3], np.int32)]
    types = [np.array([0, 0, 1], np.int8), np.array([0, 1], np.int8)]
    assert {name: value.tolist() for name, value in Inputs(["a", "b"], ids, types).padded(5, 4).items()} == {
        "input_ids": [[2, 9, 3, 5], [2, 3, 5, 5]],
        "attention_mask": [[1, 1, 1, 0], [1, 1, 0, 0]],
        "token_type_ids": [[0, 0, 1, 0], [0, 1, 0, 0]],
    }
