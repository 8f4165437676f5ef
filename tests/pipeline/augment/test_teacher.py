from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import torch
from transformers import AutoModelForSequenceClassification

from pipeline.augment.teacher import FrozenTeacher, Inputs, PerturbedRow
from pipeline.errors import PipelineError
from pipeline.perturbation import PerturbationSettings
from pipeline.shards.codec import CodecName
from tests.world import MAX_LENGTH, SPECIAL, WORDS, make_task, save_teacher

WIDTH = 32
RADIUS = 0.3
Floats = npt.NDArray[np.float32]


def settings_of(**changed: Any) -> PerturbationSettings:
    usual = {
        "objective": "divergence",
        "norm": "l2",
        "radius": RADIUS,
        "steps": 2,
        "step_size": 0.7,
        "start": 0.5,
        "special_tokens": False,
    }
    return PerturbationSettings.model_validate(usual | changed)


def make_inputs(rows: int = 20, seed: int = 0) -> Inputs:
    """Encoded single texts and pairs of 3 to 24 tokens, in no order of length."""
    generator = np.random.default_rng(seed)
    ids, types = [], []
    for length in [MAX_LENGTH, 3, *generator.integers(3, MAX_LENGTH, rows - 2)]:
        words = generator.integers(len(SPECIAL), len(SPECIAL + WORDS), length)
        words[0], words[-1] = 2, 3
        middle = generator.integers(1, length)
        words[middle - 1] = words[middle - 1] if middle < 3 else 3
        ids.append(words.astype(np.int32))
        types.append((np.arange(length) >= middle).astype(np.int8))
    return Inputs([f"example {number}" for number in range(rows)], ids, types)


def perturbed(
    teacher: FrozenTeacher, inputs: Inputs, codec: CodecName = "float16", variant: int = 1, seed: int = 1,
    radius: float = RADIUS, batch_rows: int = 8, **search: Any,
) -> list[PerturbedRow]:  # fmt: skip
    clean = teacher.logits(inputs, 8)
    return teacher.perturb(inputs, clean, variant, seed, radius, settings_of(**search), codec, batch_rows)


def decoded(row: PerturbedRow, codec: CodecName) -> Floats:
    """The stored δ [tokens, width], decoded here and not by the codec."""
    if codec == "sign":
        codes = np.unpackbits(np.frombuffer(row.delta, np.uint8)).astype(np.float32).reshape(-1, WIDTH) * 2 - 1
    else:
        codes = np.frombuffer(row.delta, {"int8": "<i1", "float16": "<f2"}[codec]).astype(np.float32).reshape(-1, WIDTH)
    return codes * np.array(row.delta_scale, dtype=np.float32)[:, None]


class Plain:
    """The teacher by transformers alone, one unpadded row at a time."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self.words = self.model.get_input_embeddings().weight.detach()

    @torch.inference_mode()
    def logits(self, inputs: Inputs) -> Floats:
        assert inputs.token_type_ids is not None
        rows = zip(inputs.input_ids, inputs.token_type_ids, strict=True)
        answers = [
            self.model(input_ids=torch.tensor(ids)[None].long(), token_type_ids=torch.tensor(types)[None].long()).logits
            for ids, types in rows
        ]
        return torch.cat(answers).numpy()

    @torch.inference_mode()
    def logits_on(self, inputs: Inputs, row: int, delta: Floats) -> Floats:
        assert inputs.token_type_ids is not None
        embeddings = self.words[torch.tensor(inputs.input_ids[row]).long()] + torch.tensor(delta)
        types = torch.tensor(inputs.token_type_ids[row])[None].long()
        logits: Floats = self.model(inputs_embeds=embeddings[None], token_type_ids=types).logits[0].numpy()
        return logits


@pytest.fixture(scope="module")
def frozen(teacher: Path) -> FrozenTeacher:
    return FrozenTeacher(teacher)


@pytest.fixture(scope="module")
def plain(teacher: Path) -> Plain:
    return Plain(teacher)


@pytest.mark.parametrize("batch_rows", [1, 3, 64])
def test_logits_are_those_of_transformers_on_each_row_alone(frozen: FrozenTeacher, plain: Plain, batch_rows: int) -> None:
    inputs = make_inputs()
    expected = plain.logits(inputs)
    assert expected.std(axis=0).min() > 0.01
    np.testing.assert_allclose(frozen.logits(inputs, batch_rows), expected, atol=1e-5)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("codec", ["float16", "int8", "sign"])
def test_the_stored_delta_scored_by_transformers_gives_the_stored_logits(
    frozen: FrozenTeacher, plain: Plain, codec: CodecName, norm: str
) -> None:
    inputs = make_inputs()
    clean = torch.tensor(plain.logits(inputs))
    for number, row in enumerate(perturbed(frozen, inputs, codec, norm=norm)):
        again = plain.logits_on(inputs, number, decoded(row, codec))
        np.testing.assert_allclose(row.logits, again, atol=1e-5)
        moved = torch.nn.functional.kl_div(
            torch.tensor(again).log_softmax(-1), clean[number].log_softmax(-1), log_target=True, reduction="sum"
        )
        assert row.divergence == pytest.approx(float(moved), abs=1e-5)
        assert row.flipped == (again.argmax() != int(clean[number].argmax()))


@pytest.mark.parametrize("special_tokens", [False, True])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("codec", ["float16", "int8", "sign"])
def test_the_stored_delta_covers_every_token_within_the_radius_and_special_ones_only_if_asked(
    frozen: FrozenTeacher, plain: Plain, codec: CodecName, norm: str, special_tokens: bool
) -> None:
    inputs = make_inputs()
    length = RADIUS * float(plain.words.norm(dim=1).mean())
    for number, row in enumerate(perturbed(frozen, inputs, codec, norm=norm, special_tokens=special_tokens)):
        delta = decoded(row, codec)
        assert delta.shape == (len(inputs.input_ids[number]), WIDTH)
        reach = np.linalg.norm(delta, axis=1) if norm == "l2" else np.abs(delta).max(axis=1) * WIDTH**0.5
        assert (reach <= length * (1 + 1e-5)).all()
        free = (inputs.input_ids[number] >= len(SPECIAL)) | special_tokens
        assert (reach[~free] == 0).all()
        assert (reach[free] > 0.1 * length).all()


def test_an_unknown_word_is_perturbed_as_any_other(frozen: FrozenTeacher) -> None:
    ids = np.array([2, SPECIAL.index("[UNK]"), 9, 3], dtype=np.int32)
    (row,) = perturbed(frozen, Inputs(["a"], [ids], [np.zeros(4, dtype=np.int8)]))
    assert (np.abs(decoded(row, "float16")).sum(axis=1) > 0).tolist() == [False, True, True, False]


def test_a_search_moves_the_teacher_further_than_noise_and_none_moves_nothing(frozen: FrozenTeacher) -> None:
    inputs = make_inputs()
    moved = {
        objective: float(np.mean([row.divergence for row in perturbed(frozen, inputs, objective=objective)]))
        for objective in ("divergence", "label", "noise", "none")
    }
    assert min(moved["divergence"], moved["label"]) > 3 * moved["noise"] > 0
    assert abs(moved["none"]) < 1e-6
    assert all(set(row.delta) == {0} for row in perturbed(frozen, inputs, objective="none"))


def test_results_do_not_depend_on_who_shares_the_batch(frozen: FrozenTeacher) -> None:
    inputs = make_inputs()
    together = perturbed(frozen, inputs, batch_rows=64, steps=1)
    order = np.random.default_rng(1).permutation(len(together))
    shuffled = perturbed(frozen, inputs.take(order), batch_rows=5, steps=1)
    (alone,) = perturbed(frozen, inputs.take(np.array([4])), batch_rows=1, steps=1)
    pairs = [*((together[old], shuffled[new]) for new, old in enumerate(order)), (together[4], alone)]
    for one, other in pairs:
        np.testing.assert_allclose(decoded(one, "float16"), decoded(other, "float16"), atol=2e-3 * RADIUS)
        np.testing.assert_allclose(one.logits, other.logits, atol=1e-3)


def test_noise_and_its_logits_do_not_depend_on_who_shares_the_batch(frozen: FrozenTeacher) -> None:
    inputs = make_inputs()
    for one, other in zip(
        perturbed(frozen, inputs, objective="noise", batch_rows=64),
        perturbed(frozen, inputs, objective="noise", batch_rows=1),
        strict=True,
    ):
        assert (one.delta, one.delta_scale) == (other.delta, other.delta_scale)
        np.testing.assert_allclose(one.logits, other.logits, atol=1e-5)


@pytest.mark.parametrize("changed", [{"variant": 2}, {"seed": 2}])
def test_another_variant_and_another_seed_start_elsewhere(frozen: FrozenTeacher, changed: dict[str, int]) -> None:
    inputs = make_inputs()
    for one, other in zip(perturbed(frozen, inputs), perturbed(frozen, inputs, **changed), strict=True):
        assert one.delta != other.delta


def test_equal_texts_of_two_examples_start_elsewhere(frozen: FrozenTeacher) -> None:
    inputs = make_inputs().take(np.array([5, 5]))
    renamed = Inputs(["a", "b"], inputs.input_ids, inputs.token_type_ids)
    one, other = perturbed(frozen, renamed, objective="noise")
    assert one.delta != other.delta


def test_a_different_teacher_gives_different_perturbations(frozen: FrozenTeacher, tmp_path: Path) -> None:
    inputs = make_inputs()
    other = FrozenTeacher(save_teacher(tmp_path, make_task(), seed=1))
    free = [ids >= len(SPECIAL) for ids in inputs.input_ids]
    likeness = []
    for one, two, where in zip(perturbed(frozen, inputs), perturbed(other, inputs), free, strict=True):
        assert one.delta != two.delta
        first, second = decoded(one, "float16")[where], decoded(two, "float16")[where]
        likeness += list((first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1))
    assert np.mean(likeness) < 0.6, "another scale is not enough: the directions are those of the teacher's own gradients"


def spoil(folder: Path, name: str, row: int, value: float) -> Path:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights[name][row] = value
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_teacher_with_a_nan_is_refused_with_the_example_that_shows_it(tmp_path: Path) -> None:
    folder = spoil(save_teacher(tmp_path, make_task()), "bert.embeddings.word_embeddings.weight", 40, float("nan"))
    inputs = make_inputs()
    broken = [name for name, ids in zip(inputs.example_ids, inputs.input_ids, strict=True) if 40 in ids]
    assert 1 < len(broken) < len(inputs.example_ids)
    with pytest.raises(PipelineError) as refusal:
        FrozenTeacher(folder).logits(inputs, 4)
    assert str(refusal.value) == (
        f"the teacher answers the untouched input of example {broken[0]} with a value that is not a number "
        f"({len(broken)} such rows); the teacher is broken, train it again with a smaller learning rate"
    )


def test_a_teacher_that_breaks_on_perturbed_inputs_is_refused_too(teacher: Path, tmp_path: Path) -> None:
    inputs = make_inputs()
    clean = FrozenTeacher(teacher).logits(inputs, 8)
    broken = FrozenTeacher(spoil(save_teacher(tmp_path, make_task()), "classifier.bias", 0, float("inf")))
    with pytest.raises(PipelineError, match=r"the perturbed input of variant 3 of example example 0 .*20 such rows"):
        broken.perturb(inputs, clean, 3, 1, RADIUS, settings_of(objective="noise"), "int8", 8)


def test_rows_of_a_teacher_that_answers_everything_alike_have_vanished(tmp_path: Path) -> None:
    folder = save_teacher(tmp_path, make_task())
    constant = FrozenTeacher(spoil(spoil(folder, "classifier.weight", 0, 0.0), "classifier.weight", 1, 0.0))
    assert all(row.vanished for row in perturbed(constant, make_inputs()))


def test_no_row_of_a_lively_teacher_has_vanished(frozen: FrozenTeacher) -> None:
    assert not any(row.vanished for row in perturbed(frozen, make_inputs()))


def test_a_regression_teacher_is_moved_in_squared_error_and_never_flipped(tmp_path: Path) -> None:
    frozen = FrozenTeacher(save_teacher(tmp_path, make_task("regression")))
    inputs = make_inputs()
    clean = frozen.logits(inputs, 8)
    assert clean.shape == (20, 1)
    for before, row in zip(clean, perturbed(frozen, inputs), strict=True):
        assert row.divergence == pytest.approx((row.logits[0] - before[0]) ** 2, rel=1e-4)
        assert row.divergence > 0
        assert not row.flipped
