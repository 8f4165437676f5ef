import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from torch import Tensor

from benchmarks import trainings
from benchmarks.trainings import BareLoss, Loop, Needs, StageOne, TeacherInLoop, World
from benchmarks.worlds import RADIUS
from pipeline.augment.teacher import FrozenTeacher
from pipeline.config.errors import PipelineError
from pipeline.config.params import read_params
from pipeline.corpus.encoding import Batch
from pipeline.corpus.task import Task
from pipeline.distill.student import make_student
from pipeline.shards.reader import Shards
from tests.world import SCORE_SETTINGS, augment_settings, save_teacher, student_settings

PARAMS = Path(__file__).parent.parent.parent / "params.yaml"

NEEDS = Needs(
    score=SCORE_SETTINGS,
    augment=augment_settings({"radius": RADIUS}, variants=trainings.VARIANTS),
    students={"half": student_settings(), "narrow": student_settings(hidden=16, heads=2, intermediate=32)},
)
ROWS = 44


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, prepared: Path, task: Task) -> World:
    """Its teacher, and so every student, drops nothing: what is learnt depends on rows and losses alone."""
    folder = tmp_path_factory.mktemp("trainings")
    teacher = save_teacher(folder / "teacher", task)
    settings = json.loads((teacher / "config.json").read_text())
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (teacher / "config.json").write_text(json.dumps(settings | still))
    return World.of(folder / "world", prepared, teacher, ROWS, NEEDS)


@pytest.fixture(scope="module")
def made(world: World) -> StageOne:
    return world.stage_one("made")


def weights(folder: Path) -> dict[str, Tensor]:
    """But for the biases of attention's keys, which decide no answer: AdamW moves them after the rounding of zeros."""
    found = safetensors.torch.load_file(folder / "model.safetensors")
    return {name: value for name, value in found.items() if not name.endswith("key.bias")}


def test_the_students_are_those_of_the_default_run_that_take_stored_variants(tmp_path: Path) -> None:
    found, params = Needs.of(PARAMS), read_params(PARAMS)
    assert list(found.students) == ["half", "narrow", "tiny"]
    for name, settings in found.students.items():
        size = params["students"][name]
        assert settings.model_dump(include=set(size)) == size
        assert settings.optimiser.model_dump() == params["distill"]["optimiser"]
    assert (found.augment.variants, found.augment.perturbation.radius) == (trainings.VARIANTS, RADIUS)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params | {"students": {"plain": params["students"]["half_plain"]}}))
    with pytest.raises(PipelineError, match="no student that takes stored variants; give one of them variants: rotate"):
        Needs.of(tmp_path / "params.yaml")


def test_a_world_is_that_of_its_first_student_and_there_is_one_for_each(world: World) -> None:
    assert world.sizes() == [world, replace(world, name="narrow")]
    assert [size.student(1).hidden for size in world.sizes()] == [None, 16]


@pytest.mark.parametrize("name", NEEDS.students)
def test_the_bare_loop_learns_what_our_training_learns_so_both_are_timed_on_the_same_work(
    world: World, made: StageOne, tmp_path: Path, name: str
) -> None:
    world = replace(world, name=name)
    trainings.from_shards(world, made, 1, tmp_path)
    settings = world.student(1)
    student = make_student(world.teacher, settings, settings.optimiser.seed)
    model = student.model
    batches = trainings.varied_batches(world, made, 1, epoch=0)
    Loop(model, settings.optimiser, len(batches)).run(batches, BareLoss(student, settings, "classification"))
    ours = weights(tmp_path / "student")
    started = make_student(world.teacher, settings, settings.optimiser.seed).model.state_dict()
    for place, value in ours.items():
        torch.testing.assert_close(model.state_dict()[place], value, atol=2e-5, rtol=1e-3)
    assert any(not torch.allclose(started[place], value, atol=1e-3) for place, value in ours.items()), "something was learnt"


@pytest.mark.parametrize("name", NEEDS.students)
def test_the_reference_learns_the_same_as_from_shards_where_nothing_is_perturbed(
    world: World, made: StageOne, tmp_path: Path, name: str
) -> None:
    """Then its labels and its batches are those of the shards, and only δ's being drawn anew can differ."""
    needs = world.needs.model_copy(update={"augment": augment_settings({"objective": "none"})})
    unmoved = replace(world, name=name, needs=needs)
    trainings.from_shards(unmoved, unmoved.stage_one(f"unmoved-{name}"), 1, tmp_path)
    for cached in (False, True):
        trainings.with_teacher(unmoved, trainings.untouched_batches(world, made, 1), cached, tmp_path / str(cached))
        for place, value in weights(tmp_path / str(cached)).items():
            torch.testing.assert_close(weights(tmp_path / "student")[place], value, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize(("cached", "passes"), [(False, [False, True, False]), (True, [True, False])])
def test_in_every_step_the_teacher_answers_follows_a_gradient_and_labels_anew(
    world: World, made: StageOne, monkeypatch: pytest.MonkeyPatch, cached: bool, passes: list[bool]
) -> None:
    settings = world.student(1)
    student, teacher = make_student(world.teacher, settings, 1), FrozenTeacher(world.teacher)
    seen: list[tuple[bool, Tensor]] = []
    answer = FrozenTeacher.logits_at

    def counted(self: FrozenTeacher, batch: Batch, at: Tensor) -> Tensor:
        seen.append((at.requires_grad, at.detach()))
        return answer(self, batch, at)

    monkeypatch.setattr(FrozenTeacher, "logits_at", counted)
    batch = trainings.untouched_batches(world, made, 1)[0][0]
    loss = TeacherInLoop(teacher, student, world.needs.augment, settings, cached)
    first, second = loss(student.model, batch), loss(student.model, batch)
    assert [gradient for gradient, _ in seen] == 2 * passes
    assert not torch.equal(seen[len(passes) - 1][1], seen[-1][1]), "every step labels another perturbation"
    assert first.shape == (len(batch["input_ids"]),)
    assert not torch.equal(first, second)


def test_stage_one_is_timed_on_shards_that_are_made_every_time(world: World, made: StageOne) -> None:
    again = world.stage_one("again")
    for found in (made, again):
        manifest = Shards(found.shards).manifest
        assert manifest.variants == trainings.VARIANTS
        assert len(list((found.scores.parent / "store").glob("*.arrow"))) >= len(manifest.shards)
    assert min(again.score_seconds, again.augment_seconds) > 0
