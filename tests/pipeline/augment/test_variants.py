from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from pipeline.augment.batches import Batches, Inputs
from pipeline.augment.candidates import RowCandidates
from pipeline.augment.recipes import Step
from pipeline.augment.teacher import ModelFolders, ModelSet
from pipeline.augment.variants import Label, Made, Making, Scored, make_variant
from pipeline.shards.schema import CodecName
from tests.world import SPECIAL, WIDTH, Plain, augment_settings, decoded, make_inputs, make_task, save_teacher

CLS, SEP, MASK, UNKNOWN = 2, 3, SPECIAL.index("[MASK]"), SPECIAL.index("[UNK]")
RADIUS = 0.3
WORDS = {"replace": 0.5, "candidates": 1, "batch_rows": 8}


def made(
    models: ModelSet, inputs: Inputs, *recipe: Step, variant: int = 1, radius: float = RADIUS,
    search: dict[str, Any] | None = None, candidates: list[RowCandidates] | None = None, **changed: Any,
) -> Made:  # fmt: skip
    usual = {"steps": 2, "step_size": 0.7} | (search or {})
    settings = augment_settings(perturbation=usual, recipes=[list(recipe or ["perturb"])], masked_lm=WORDS, **changed)
    scored = Scored(inputs, models.teacher.logits(inputs, Batches(), 8))
    return make_variant(models, scored, candidates, Making(variant, settings, radius, None))


def perturbed(models: ModelSet, inputs: Inputs, codec: CodecName = "float16", **changed: Any) -> list[Label]:
    search = {name: changed.pop(name) for name in ("objective", "norm", "special_tokens", "steps") if name in changed}
    return made(models, inputs, codec=codec, search=search, **changed).labels


def same(one: Inputs, other: Inputs) -> bool:
    return all(np.array_equal(*pair) for pair in zip(one.input_ids, other.input_ids, strict=True))


@pytest.fixture(scope="module")
def models(teacher: Path) -> ModelSet:
    return ModelSet(ModelFolders(teacher), "float32")


@pytest.fixture(scope="module")
def plain(teacher: Path) -> Plain:
    return Plain(teacher)


@pytest.mark.parametrize(
    ("codec", "norm", "special_tokens"),
    [("float16", "l2", True), ("int8", "l2", False), ("int8", "linf", True), ("sign", "l2", False), ("sign", "linf", False)],
)
def test_the_stored_delta_keeps_within_the_radius_and_gives_the_stored_logits_to_transformers(
    models: ModelSet, plain: Plain, codec: CodecName, norm: str, special_tokens: bool
) -> None:
    inputs = make_inputs(10)
    clean, length = torch.tensor(plain.logits(inputs)), RADIUS * float(plain.words.norm(dim=1).mean())
    for number, row in enumerate(perturbed(models, inputs, codec, norm=norm, special_tokens=special_tokens)):
        delta = decoded(row, codec)
        again = plain.logits_on(inputs, number, delta)
        np.testing.assert_allclose(row.logits, again, atol=1e-5)
        logs = torch.tensor(again).log_softmax(-1), clean[number].log_softmax(-1)
        moved = torch.nn.functional.kl_div(*logs, log_target=True, reduction="sum")
        assert row.divergence == pytest.approx(float(moved), abs=1e-5)
        assert row.flipped == (again.argmax() != int(clean[number].argmax()))
        assert delta.shape == (len(inputs.input_ids[number]), WIDTH)
        reach = np.linalg.norm(delta, axis=1) if norm == "l2" else np.abs(delta).max(axis=1) * WIDTH**0.5
        assert (reach <= length * (1 + 1e-5)).all()
        free = (inputs.input_ids[number] >= len(SPECIAL)) | special_tokens
        assert (reach[~free] == 0).all()
        assert (reach[free] > 0.1 * length).all()


def test_a_search_moves_the_teacher_further_than_noise_and_none_moves_nothing(models: ModelSet) -> None:
    def moved(objective: str) -> float:
        return float(np.mean([row.divergence for row in perturbed(models, make_inputs(), objective=objective)]))

    assert moved("divergence") > 3 * moved("noise") > 0
    assert abs(moved("none")) < 1e-6
    assert all(row.delta is None and row.delta_scale is None for row in perturbed(models, make_inputs(), objective="none"))


def test_the_start_depends_on_the_example_the_variant_and_the_seed_and_not_on_the_batch(models: ModelSet) -> None:
    inputs = make_inputs(20)
    twins = Inputs(inputs.example_ids, [inputs.input_ids[5]] * 20, [np.zeros(len(inputs.input_ids[5]), np.int8)] * 20)
    runs = [{"batch_rows": 64}, {"variant": 2}, {"seed": 2}, {"batch_rows": 1}]
    many, *others, single = [perturbed(models, twins, objective="noise", **changed) for changed in runs]
    starts = [[row.delta for row in run] for run in (many, *others)]
    assert len({delta for run in starts for delta in run}) == 60
    assert starts[0] == [row.delta for row in single]
    np.testing.assert_allclose([row.logits for row in many], [row.logits for row in single], atol=1e-5)


def test_results_do_not_depend_on_who_shares_the_batch(models: ModelSet) -> None:
    inputs = make_inputs()
    together = perturbed(models, inputs, batch_rows=64, steps=1)
    order = np.random.default_rng(1).permutation(len(together))
    shuffled = perturbed(models, inputs.take(order), batch_rows=5, steps=1)
    (alone,) = perturbed(models, inputs.take(np.array([4])), batch_rows=1, steps=1)
    for one, other in [*((together[old], shuffled[new]) for new, old in enumerate(order)), (together[4], alone)]:
        np.testing.assert_allclose(decoded(one, "float16"), decoded(other, "float16"), atol=2e-3 * RADIUS)
        np.testing.assert_allclose(one.logits, other.logits, atol=1e-3)


def test_a_regression_teacher_is_moved_in_squared_error_and_never_flipped(tmp_path: Path) -> None:
    models = ModelSet(ModelFolders(save_teacher(tmp_path, make_task("regression"))), "float32")
    clean = models.teacher.logits(make_inputs(), Batches(), 8)
    for before, row in zip(clean, perturbed(models, make_inputs()), strict=True):
        assert row.divergence == pytest.approx((row.logits[0] - before[0]) ** 2, rel=1e-4)
        assert row.divergence > 0
        assert not row.flipped


@pytest.mark.parametrize("recipe", [["swap"], ["delete", "mask"]], ids=" ".join)
def test_an_edited_row_has_the_label_that_transformers_gives_it(models: ModelSet, plain: Plain, recipe: list[Step]) -> None:
    inputs = make_inputs()
    found = made(models, inputs, *recipe)
    np.testing.assert_allclose([row.logits for row in found.labels], plain.logits(found.inputs), atol=1e-5)
    assert not same(found.inputs, inputs)
    assert all(row.delta is None and row.delta_scale is None and not row.vanished for row in found.labels)
    changed = plain.logits(inputs).argmax(axis=1) != plain.logits(found.inputs).argmax(axis=1)
    assert [row.flipped for row in found.labels] == changed.tolist()


def pairs() -> Inputs:
    """Pairs whose first texts are even and whose second are odd."""
    ids = [
        np.array([CLS, *range(10 + 2 * row, 22 + 2 * row, 2), SEP, *range(31, 45, 2), SEP], dtype=np.int32) for row in range(12)
    ]
    return Inputs([f"pair {row}" for row in range(12)], ids, [np.repeat(np.array([0, 1], np.int8), 8) for _ in ids])


@pytest.mark.parametrize("recipe", [["delete", "swap"], ["span"]], ids=" ".join)
def test_an_edit_depends_on_the_row_the_variant_and_the_seed_and_not_on_the_batch(models: ModelSet, recipe: list[Step]) -> None:
    inputs, order = pairs(), np.random.default_rng(0).permutation(12)
    found = made(models, inputs, *recipe).inputs
    assert same(made(models, inputs.take(order), *recipe, batch_rows=3).inputs, found.take(order))
    for changed in ({"variant": 2}, {"seed": 2}):
        assert not same(made(models, inputs, *recipe, **changed).inputs, found)


def test_words_are_replaced_by_their_candidates_before_anything_else_is_edited(models: ModelSet, plain: Plain) -> None:
    inputs = pairs()
    places = np.array([*range(1, 7), *range(8, 15)], dtype=np.int32)
    candidates = [RowCandidates(places, places + 1, np.full(13, 50, dtype=np.int32)) for _ in inputs.input_ids]
    found = made(models, inputs, "masked_lm", candidates=candidates)
    replaced = [after != before for after, before in zip(found.inputs.input_ids, inputs.input_ids, strict=True)]
    assert all((ids[row] == 50).all() for ids, row in zip(found.inputs.input_ids, replaced, strict=True))
    assert 0.4 < np.mean([row[places].mean() for row in replaced]) < 0.6
    np.testing.assert_allclose([row.logits for row in found.labels], plain.logits(found.inputs), atol=1e-5)
    shortened = made(models, inputs, "masked_lm", "delete", candidates=candidates).inputs
    for whole, ids in zip(found.inputs.input_ids, shortened.input_ids, strict=True):
        assert len(ids) < len(whole)
        assert not set(ids.tolist()) - set(whole.tolist())


def test_an_edited_row_is_perturbed_on_the_edited_words_and_not_on_its_masks(models: ModelSet, plain: Plain) -> None:
    edited, found = made(models, make_inputs(), "mask").inputs, made(models, make_inputs(), "mask", "perturb")
    assert same(found.inputs, edited)
    for row, (ids, label) in enumerate(zip(edited.input_ids, found.labels, strict=True)):
        np.testing.assert_allclose(label.logits, plain.logits_on(edited, row, decoded(label)), atol=1e-5)
        assert ((np.abs(decoded(label)).sum(axis=1) > 0) == (ids >= len(SPECIAL))).all()


@pytest.mark.parametrize("rows", [20, 2, 1])
def test_a_mixed_row_is_labelled_as_transformers_answers_the_mixture_by_hand(models: ModelSet, plain: Plain, rows: int) -> None:
    inputs = make_inputs().take(np.arange(rows))
    found, padding = made(models, inputs, "mix"), np.zeros(24, dtype=np.int64)
    assert found.inputs.partners is not None
    others = dict(zip(inputs.example_ids, inputs.input_ids, strict=True))
    for row, (partner, label) in enumerate(zip(found.inputs.partners, found.labels, strict=True)):
        length = max(len(inputs.input_ids[row]), len(others[partner.example_id]))
        own, other = (
            plain.words[np.append(ids, padding)[:length]] for ids in (inputs.input_ids[row], others[partner.example_id])
        )
        mixture = partner.own_weight * own + (1 - partner.own_weight) * other
        np.testing.assert_allclose(label.logits, plain.logits_at(found.inputs, row, mixture), atol=1e-5)
        assert len(found.inputs.input_ids[row]) == len(partner.input_ids) == length
        assert label.delta is None
    names = [partner.example_id for partner in found.inputs.partners]
    assert sorted(names) == sorted(inputs.example_ids), "each row is the partner of one"
    assert all(one != other for one, other in zip(names, inputs.example_ids, strict=True)) == (rows > 1)


def test_weights_of_a_mixture_follow_the_beta_distribution_and_partners_change_with_the_variant(models: ModelSet) -> None:
    inputs = make_inputs(150)
    partners = made(models, inputs, "mix", mixing={"alpha": 2.0}).inputs.partners or []
    weights = [partner.own_weight for partner in partners]
    assert 0 < min(weights) < max(weights) < 1
    assert kstest(weights, "beta", args=(2, 2)).pvalue > 0.01
    assert np.float32(weights).tolist() == weights, "as it is stored"
    others = made(models, inputs, "mix", mixing={"alpha": 2.0}, variant=2).inputs.partners or []
    assert np.mean([one.example_id == two.example_id for one, two in zip(partners, others, strict=True)]) < 0.1
    assert not {one.own_weight for one in partners} & {two.own_weight for two in others}
