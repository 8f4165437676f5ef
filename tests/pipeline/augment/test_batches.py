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

from pipeline.augment.batches import Batches, Inputs, Partner, out_of_memory
from pipeline.augment.recipes import Recipe
from pipeline.augment.teacher import ModelFolders, ModelSet
from pipeline.augment.variants import Made, Making, Scored, make_variant
from pipeline.config.errors import PipelineError
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
def test_every_row_gets_its_own_result_in_its_own_place_whatever_fits(lengths: list[int], batch_rows: int, room: int) -> None:
    found = Batches().run(of_lengths(lengths), batch_rows, up_to(room))
    assert found == [f"example {row} at {row}" for row in range(len(lengths))]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(error)[-22:])
def test_a_batch_that_does_not_fit_is_halved_and_later_ones_start_at_what_fits(error: Exception) -> None:
    device, batches = up_to(8, error), Batches()
    batches.run(of_lengths([5] * 64), 32, device)
    assert device.sizes == [32, 16, *[8] * 8]
    assert [note[:38] for note in batches.notes()] == [f"memory ran out at {rows} rows of 5 tokens;" for rows in (32, 16)]
    device.asked.clear()
    batches.run(of_lengths([5] * 40), 32, device)
    assert (device.sizes, batches.notes()) == ([8] * 5, []), "what fits is remembered from one call to the next"
    batches.run(of_lengths([5] * 8), 8, up_to(4, error))
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
        batches.run(of_lengths(lengths), 32, device)
    assert device.asked == wanted


@given(rows=st.integers(EVEN_ROWS, 60), room=st.integers(EVEN_ROWS, 60))
def test_no_piece_of_a_batch_is_shorter_than_eight_rows_while_eight_fit(rows: int, room: int) -> None:
    device = up_to(room)
    Batches().run(of_lengths([5] * rows), 60, device)
    assert min(device.sizes) >= EVEN_ROWS, "the rest of a batch that was cut would have other bits"


def test_one_row_that_does_not_fit_is_refused_by_its_name_and_length_and_the_others_are_not_blamed() -> None:
    device = Device(lambda rows, tokens: "example 2" not in rows.example_ids)
    with pytest.raises(PipelineError, match=r"^example example 2 with its 9 tokens does not fit .* set a smaller .*max_length"):
        Batches().run(of_lengths([5, 6, 9, 7]), 4, device)
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


def made_with(folder: Path, room: int, recipe: Recipe, rows: int) -> tuple[Made, list[int]]:
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
    settings = augment_settings(recipes=[recipe], batch_rows=32, perturbation={"steps": 2, "step_size": 0.7})
    scored = Scored(inputs, clean)
    return make_variant(models, scored, None, Making(1, settings, 0.3, None)), sizes


@pytest.mark.parametrize("recipe", [["mask", "perturb"], ["delete"], ["mix"]], ids=" ".join)
@pytest.mark.parametrize(("rows", "room"), [(59, 8), (23, 16)])
def test_a_variant_made_with_less_memory_is_the_same_to_the_bit(teacher: Path, recipe: Recipe, rows: int, room: int) -> None:
    undisturbed, whole = made_with(teacher, 10**6, recipe, rows)
    found, pieces = made_with(teacher, room, recipe, rows)
    assert max(whole) == max(pieces) > 16, "what was tried first did not fit"
    assert found.labels == undisturbed.labels, "δ, scales, logits and all that is told of them"
    for one, other in zip(found.inputs.input_ids, undisturbed.inputs.input_ids, strict=True):
        np.testing.assert_array_equal(one, other)


PARTNERS = [Partner(f"example {(row + 1) % 5}", np.array([2, 3, 7], np.int32), 0.25 * row) for row in range(5)]
FULL = dataclasses.replace(make_inputs(5), partners=PARTNERS)
BARE = dataclasses.replace(FULL, token_type_ids=None, partners=None)


def plain(inputs: Inputs) -> list[Any]:
    """Each row as it prints, types and partner included."""
    return [repr(dataclasses.astuple(inputs.take(np.array([row])))) for row in range(len(inputs))]


@pytest.mark.parametrize("inputs", [FULL, BARE], ids=["full", "bare"])
@pytest.mark.parametrize("positions", [[2, 0], [0, 0, 2], []])
def test_rows_that_are_taken_and_sent_to_another_process_keep_all_that_they_have(inputs: Inputs, positions: list[int]) -> None:
    found = pickle.loads(pickle.dumps(inputs.take(np.array(positions, dtype=np.int64)), 5))
    assert list(found.example_ids) == [inputs.example_ids[row] for row in positions]
    assert plain(found) == [plain(inputs)[row] for row in positions]
