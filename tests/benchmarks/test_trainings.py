from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from benchmarks import trainings
from benchmarks.trainings import BareLoss, Loop, StageOne, TeacherInLoop, World
from pipeline.augment.teacher import FrozenTeacher
from pipeline.corpus.encoding import Batch
from pipeline.distill.student import make_student
from tests.world import augment_settings


def weights(folder: Path) -> dict[str, Tensor]:
    """But for the biases of attention's keys, which decide no answer: AdamW moves them after the rounding of zeros."""
    found = safetensors.torch.load_file(folder / "model.safetensors")
    return {name: value for name, value in found.items() if not name.endswith("key.bias")}


@pytest.mark.parametrize("name", ["half", "narrow"])
def test_the_bare_loop_learns_what_our_training_learns_so_both_are_timed_on_the_same_work(
    world: World, stage_one: StageOne, tmp_path: Path, name: str
) -> None:
    world = replace(world, name=name)
    trainings.from_shards(world, stage_one, 1, tmp_path)
    settings = world.student(1)
    student = make_student(world.teacher, settings, settings.optimiser.seed)
    model = student.model
    batches = trainings.varied_batches(world, stage_one, 1, epoch=0)
    Loop(model, settings.optimiser, len(batches)).run(batches, BareLoss(student, settings, "classification"))
    ours = weights(tmp_path / "student")
    started = make_student(world.teacher, settings, settings.optimiser.seed).model.state_dict()
    for place, value in ours.items():
        torch.testing.assert_close(model.state_dict()[place], value, atol=2e-5, rtol=1e-3)
    assert any(not torch.allclose(started[place], value, atol=1e-3) for place, value in ours.items()), "something was learnt"


def test_the_reference_learns_the_same_as_from_shards_where_nothing_is_perturbed(
    world: World, stage_one: StageOne, tmp_path: Path
) -> None:
    """Then its labels and its batches are those of the shards, and only δ's being drawn anew can differ."""
    needs = world.needs.model_copy(update={"augment": augment_settings({"objective": "none"})})
    unmoved = replace(world, needs=needs)
    trainings.from_shards(unmoved, unmoved.stage_one("unmoved"), 1, tmp_path)
    for cached in (False, True):
        trainings.with_teacher(unmoved, trainings.untouched_batches(world, stage_one, 1), cached, tmp_path / str(cached))
        for place, value in weights(tmp_path / str(cached)).items():
            torch.testing.assert_close(weights(tmp_path / "student")[place], value, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize(("cached", "passes"), [(False, [False, True, False]), (True, [True, False])])
def test_in_every_step_the_teacher_answers_follows_a_gradient_and_labels_anew(
    world: World, stage_one: StageOne, monkeypatch: pytest.MonkeyPatch, cached: bool, passes: list[bool]
) -> None:
    settings = world.student(1)
    student, teacher = make_student(world.teacher, settings, 1), FrozenTeacher(world.teacher)
    seen: list[tuple[bool, Tensor]] = []
    answer = FrozenTeacher.logits_at

    def counted(self: FrozenTeacher, batch: Batch, at: Tensor) -> Tensor:
        seen.append((at.requires_grad, at.detach()))
        return answer(self, batch, at)

    monkeypatch.setattr(FrozenTeacher, "logits_at", counted)
    batch = trainings.untouched_batches(world, stage_one, 1)[0][0]
    loss = TeacherInLoop(teacher, student, world.needs.augment, settings, cached)
    first, second = loss(student.model, batch), loss(student.model, batch)
    assert [gradient for gradient, _ in seen] == 2 * passes
    assert not torch.equal(seen[len(passes) - 1][1], seen[-1][1]), "every step labels another perturbation"
    assert first.shape == (len(batch["input_ids"]),)
    assert not torch.equal(first, second)
