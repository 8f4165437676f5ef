from typing import Any, get_args

import pytest
from pydantic import ValidationError

from pipeline.augment.recipes import AugmentSettings, Step
from pipeline.augment.text_edits import OPERATIONS
from tests.world import augment_settings

STEPS: tuple[Step, ...] = get_args(Step)
WORDS = {"replace": 0.4, "candidates": 5, "batch_rows": 8}
RADIUS = 0.2


def one(*recipe: Step, **changed: Any) -> AugmentSettings:
    return augment_settings(recipes=[list(recipe)], **({"masked_lm": WORDS} | changed))


FAULTS: list[tuple[list[str], str]] = [
    (["mix", "perturb"], "the recipe [mix, perturb] mixes and does something else; mixing stands alone"),
    (["mask", "mix"], "the recipe [mask, mix] mixes and does something else; mixing stands alone"),
    (["perturb", "mask"], "the recipe [perturb, mask] edits the text after it was perturbed; perturb comes last"),
    (["delete", "mask", "delete"], "the recipe [delete, mask, delete] has a step twice"),
    (["perturb", "perturb"], "the recipe [perturb, perturb] has a step twice"),
    (
        ["delete", "masked_lm"],
        "the recipe [delete, masked_lm] replaces words of a text that is no longer the one they were found for; "
        "masked_lm comes first",
    ),
]


@pytest.mark.parametrize(("recipe", "sentence"), FAULTS)
@pytest.mark.parametrize("place", [0, 1])
def test_a_recipe_that_makes_no_sense_is_refused_by_its_steps_wherever_it_stands(
    recipe: list[str], sentence: str, place: int
) -> None:
    recipes = [["perturb"], ["mask"]]
    recipes[place] = recipe
    with pytest.raises(ValidationError) as refusal:
        augment_settings(recipes=recipes, masked_lm=WORDS)
    assert refusal.value.errors()[0]["msg"] == f"Value error, {sentence}"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"recipes": [["perturb"], ["masked_lm"]]}, "so the setting masked_lm must say how"),
        ({"recipes": []}, "at least 1 item"),
        ({"recipes": [["perturb"], []]}, "at least 1 item"),
        ({"recipes": [["shuffle"]]}, "should be 'mask', 'delete'"),
        ({"variants": -1}, "greater than or equal to 0"),
        ({"mixing": {"alpha": 0.0}}, "greater than 0"),
        ({"precision": "float16"}, "should be 'float32' or 'bfloat16'"),
    ],
)
def test_settings_that_cannot_be_carried_out_are_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        augment_settings(**changed)


def test_labels_that_are_kept_cannot_flip_so_flips_are_no_target_but_a_divergence_is() -> None:
    with pytest.raises(ValidationError, match="keep_label leaves no answer flipped, so the radius needs a number or a diverg"):
        augment_settings(perturbation={"radius": {"flips": 0.05}}, keep_label=True)
    for radius in (0.1, {"divergence": 0.05}):
        assert augment_settings(perturbation={"radius": radius}, keep_label=True).keep_label
    assert not augment_settings(perturbation={"radius": {"flips": 0.05}}).keep_label
    with pytest.raises(ValidationError, match=r"keep_label cannot hold for \[edit, perturb\]"):
        augment_settings(recipes=[["perturb"], ["mask", "perturb"]], keep_label=True)


@pytest.mark.parametrize("recipe", [[step] for step in STEPS] + [["masked_lm", *OPERATIONS, "perturb"]])
def test_every_step_alone_and_edits_before_a_perturbation_are_recipes(recipe: list[Step]) -> None:
    assert one(*recipe).recipe(1) == recipe


def test_recipes_take_turns_and_start_again_after_the_last() -> None:
    recipes: list[list[Step]] = [["perturb"], ["mask"], ["mix"]]
    settings = augment_settings(recipes=recipes)
    assert [settings.recipe(variant) for variant in range(1, 8)] == [*recipes, *recipes, ["perturb"]]


def test_a_radius_is_needed_where_a_variant_is_perturbed_and_a_gradient_unless_the_objective_follows_none() -> None:
    aims = {
        objective: one("mask", "perturb", perturbation={"objective": objective}).aims()
        for objective in ("gap", "noise", "none")
    }
    assert aims == {"gap": True, "noise": False, "none": False}
    assert one("perturb").perturbs()
    assert (one("mask").perturbs(), one("mask").aims()) == (False, False)
    assert augment_settings(recipes=[["mask"], ["perturb"]]).perturbs()


CHANGES: dict[str, dict[str, Any]] = {
    "seed": {"seed": 2},
    "batch_rows": {"batch_rows": 16},
    "precision": {"precision": "bfloat16"},
    "codec": {"codec": "sign"},
    "keep_label": {"keep_label": True},
    "objective": {"perturbation": {"objective": "label"}},
    "steps": {"perturbation": {"steps": 2}},
    "alpha": {"mixing": {"alpha": 1.0}},
    "replace": {"masked_lm": WORDS | {"replace": 0.1}},
    "mask": {"text_edits": {"mask": 0.1, "delete": 0.2, "swap": 0.2, "ngram": 3, "span": 0.5}},
    "delete": {"text_edits": {"mask": 0.2, "delete": 0.1, "swap": 0.2, "ngram": 3, "span": 0.5}},
    "ngram": {"text_edits": {"mask": 0.2, "delete": 0.2, "swap": 0.2, "ngram": 4, "span": 0.5}},
    # These change no variant that there is, whatever it is made of.
    "variants": {"variants": 9},
    "calibration_rows": {"calibration_rows": 64},
    "masked_lm.batch_rows": {"masked_lm": WORDS | {"batch_rows": 64}},
    "radius asked for": {"perturbation": {"radius": {"divergence": 0.1}}},
}
ALWAYS = {"seed", "batch_rows", "precision"}
PERTURBED = {"codec", "keep_label", "objective", "steps"}


@pytest.mark.parametrize(
    ("recipe", "deciding"),
    [
        (["perturb"], PERTURBED),
        (["mask"], {"mask"}),
        (["delete"], {"delete"}),
        (["ngram", "mask"], {"ngram", "mask"}),
        (["masked_lm"], {"replace"}),
        (["mix"], {"alpha"}),
        (["masked_lm", "delete", "perturb"], {"replace", "delete"} | PERTURBED - {"keep_label"}),
    ],
)
def test_what_decides_a_variants_bytes_is_what_its_recipe_uses_and_nothing_else(recipe: list[Step], deciding: set[str]) -> None:
    before = one(*recipe).deciding(1, RADIUS)
    possible = {name: change for name, change in CHANGES.items() if name != "keep_label" or len(recipe) == 1}
    changed = {name for name, change in possible.items() if one(*recipe, **change).deciding(1, RADIUS) != before}
    assert changed == ALWAYS | deciding


def test_the_recipe_itself_and_its_order_decide_and_other_recipes_do_not() -> None:
    keys = [one(*recipe).deciding(1, RADIUS) for recipe in (["mask"], ["delete"], ["mask", "delete"], ["delete", "mask"])]
    assert all(keys.count(key) == 1 for key in keys)
    alone, among = one("mask"), augment_settings(recipes=[["perturb"], ["mask"]])
    assert alone.deciding(1, RADIUS) == among.deciding(2, RADIUS)


def test_the_radius_that_was_found_decides_only_where_something_is_perturbed() -> None:
    perturbed, edited = one("mask", "perturb"), one("mask")
    assert perturbed.deciding(1, 0.1) != perturbed.deciding(1, 0.2)
    assert perturbed.deciding(1, 0.1)["perturbation"]["radius"] == 0.1
    assert edited.deciding(1, 0.1) == edited.deciding(1, 0.2)
