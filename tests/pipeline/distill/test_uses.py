from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pipeline.config.errors import PipelineError
from pipeline.distill.uses import Use, check_use, chosen
from pipeline.perturbation.surrogate import aims_of

USE: TypeAdapter[Use] = TypeAdapter(Use)


@given(st.integers(1, 9), st.integers(0, 40))
def test_rotation_shows_every_variant_once_in_as_many_epochs(variants: int, epoch: int) -> None:
    shown = [chosen("rotate", [None] * variants, 0, epoch + number, 0.0) for number in range(variants)]
    assert sorted(number for numbers in shown for number in numbers) == list(range(1, variants + 1))


def test_all_are_all() -> None:
    assert chosen("all", [None] * 4, 0, 7, 0.3) == [1, 2, 3, 4]


@given(st.integers(2, 9), st.integers(0, 40), st.data())
def test_candidates_for_the_worst_differ_and_take_turns(variants: int, epoch: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(2, variants))
    use = USE.validate_python({"worst_of": count})
    found = chosen(use, [None] * variants, 0, epoch, 0.0)
    assert len(set(found)) == len(found) == count
    assert {n for e in range(variants) for n in chosen(use, [None] * variants, 0, e, 0.0)} == set(range(1, variants + 1))


@pytest.mark.parametrize(("progress", "numbers"), [(0.0, [1]), (0.45, [1]), (0.55, [2]), (0.8, [2]), (0.9, [3]), (0.99, [3])])
def test_by_progress_shows_the_variant_of_the_snapshot_that_was_as_far(progress: float, numbers: list[int]) -> None:
    """Three snapshots lie at a third, two thirds and the end; the border between two lies midway."""
    assert chosen("by_progress", [1, 2, 3], 3, 0, progress) == numbers


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
