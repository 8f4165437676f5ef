from pathlib import Path

import pytest
import torch

from pipeline.distill.student import SizeSettings, chosen_layers, make_student, principal_map
from pipeline.distill.training import carried
from pipeline.errors import PipelineError
from pipeline.models import load_classifier, logits_from_embeddings, word_embeddings
from tests.world import make_task, save_teacher

WHOLE = SizeSettings(start="teacher")
IDS = {"input_ids": torch.tensor([[2, 7, 9, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}


def test_a_student_of_the_teachers_size_is_the_teacher(teacher: Path) -> None:
    student = make_student(teacher, WHOLE, seed=0)
    expected = load_classifier(teacher)(**IDS).logits
    assert torch.equal(student.model.eval()(**IDS).logits, expected)
    assert student.map is None
    assert student.facts["parameters_fresh"] == 0


@pytest.mark.parametrize(
    ("wanted", "depth", "expected"),
    [
        (None, 3, [0, 1, 2]),
        (3, 6, [0, 2, 4]),
        (2, 6, [0, 3]),
        (4, 6, [0, 1, 3, 4]),
        (6, 6, [0, 1, 2, 3, 4, 5]),
        ([1, 5], 6, [1, 5]),
    ],
)
def test_layers_are_spread_evenly_or_taken_by_number(wanted: int | list[int] | None, depth: int, expected: list[int]) -> None:
    assert chosen_layers(wanted, depth) == expected


@pytest.mark.parametrize("wanted", [7, [6], [2, 1], [1, 1], []])
def test_layers_the_teacher_does_not_have_are_refused(wanted: int | list[int]) -> None:
    with pytest.raises(PipelineError, match=r"cannot be taken from a teacher of 6 layers, numbered 0 to 5"):
        chosen_layers(wanted, 6)


def test_chosen_layers_carry_the_teachers_weights(teacher: Path) -> None:
    student = make_student(teacher, SizeSettings(start="teacher", layers=[1, 3]), seed=0)
    own, source = student.model.state_dict(), load_classifier(teacher).state_dict()
    for at, theirs in enumerate([1, 3]):
        name = "bert.encoder.layer.{}.intermediate.dense.weight"
        assert torch.equal(own[name.format(at)], source[name.format(theirs)])
    assert student.facts["layers"] == [1, 3]


def test_the_map_carries_table_and_perturbation_alike(teacher: Path) -> None:
    """At the start map(E_T[ids] + δ) = E_S[ids] + map(δ), to float accuracy."""
    student = make_student(teacher, SizeSettings(start="teacher", hidden=16, heads=4), seed=0)
    words = word_embeddings(load_classifier(teacher)).detach()[IDS["input_ids"]]
    delta = torch.randn(words.shape, generator=torch.Generator().manual_seed(0))
    own = word_embeddings(student.model).detach()[IDS["input_ids"]]
    assert torch.allclose(carried(words + delta, student.map), own + carried(delta, student.map), atol=1e-5)
    assert own.shape[-1] == 16


def test_the_map_is_the_best_of_its_rank() -> None:
    table = torch.randn(200, 12, generator=torch.Generator().manual_seed(1)) @ torch.diag(torch.linspace(3, 0.1, 12))
    linear, error = principal_map(table, 5)
    rebuilt = table @ linear @ linear.T
    singular = torch.linalg.svdvals(table.double())
    best = float((singular[5:] ** 2).sum() / (singular**2).sum())
    assert float((table - rebuilt).square().sum() / table.square().sum()) == pytest.approx(best, rel=1e-4)
    assert error == pytest.approx(best, rel=1e-4)
    assert torch.allclose(linear.T @ linear, torch.eye(5), atol=1e-5)


def test_equal_seeds_give_equal_students_and_others_do_not(teacher: Path) -> None:
    fresh = SizeSettings(start="scratch", layers=1)
    one, same, other = (make_student(teacher, fresh, seed).model.state_dict() for seed in (1, 1, 2))
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])


def test_from_scratch_nothing_is_the_teachers(teacher: Path) -> None:
    student = make_student(teacher, SizeSettings(start="scratch", hidden=8, heads=2), seed=0)
    assert student.map is None
    assert student.facts == {"start": "scratch"}
    assert word_embeddings(student.model).shape[1] == 8


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        ({"hidden": 16, "heads": 3}, "hidden: 16 cannot be shared by heads: 3"),
        ({"hidden": 64}, "hidden_size: 64 is more than the teacher's 32; a student is at most as wide"),
        ({"layers": 9}, "cannot be taken from a teacher of 4 layers"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(teacher: Path, size: dict[str, int], sentence: str) -> None:
    with pytest.raises(PipelineError, match=sentence):
        make_student(teacher, SizeSettings(start="teacher", **size), seed=0)  # type: ignore[arg-type]


def test_a_narrow_student_takes_perturbed_embeddings(teacher: Path) -> None:
    student = make_student(teacher, SizeSettings(start="teacher", hidden=16, heads=2, layers=2), seed=0)
    model = student.model.eval()
    words = word_embeddings(model)[IDS["input_ids"]]
    assert torch.allclose(logits_from_embeddings(model, IDS, words), model(**IDS).logits, atol=1e-5)


def test_the_head_fits_the_task(tmp_path: Path) -> None:
    three = save_teacher(tmp_path / "three", make_task(labels=("a", "b", "c")))
    student = make_student(three, SizeSettings(start="teacher", layers=1), seed=0)
    assert student.model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert student.model(**IDS).logits.shape == (1, 3)
