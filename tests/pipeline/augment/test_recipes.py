from typing import Any

import pytest
from pydantic import ValidationError
from tokenizers.processors import TemplateProcessing

from pipeline.config.settings import AugmentSettings, Step
from pipeline.augment.recipes import aim_faults, edit_faults, kind_faults, words_faults
from tests.world import augment_settings, make_tokenizer

WORDS = {"replace": 0.4, "candidates": 5, "batch_rows": 8}
RADIUS = 0.2


def one(*recipe: Step, **changed: Any) -> AugmentSettings:
    return augment_settings(recipes=[list(recipe)], **({"masked_lm": WORDS} | changed))


FAULTS: list[tuple[list[str], str]] = [
    (["mix", "perturb"], "the recipe [mix, perturb] mixes and does something else; mix must be the only step"),
    (["mask", "mix"], "the recipe [mask, mix] mixes and does something else; mix must be the only step"),
    (["perturb", "mask"], "the recipe [perturb, mask] edits the text after it was perturbed; perturb comes last"),
    (["delete", "mask", "delete"], "the recipe [delete, mask, delete] has a step twice"),
    (["delete", "masked_lm"], "the recipe [delete, masked_lm] replaces words after an edit of the text; masked_lm comes first"),
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
        ({"perturbation": {"start": 0.0}}, "variants of a text would not differ"),
        ({"precision": "float16"}, "should be 'float32' or 'bfloat16'"),
    ],
)
def test_settings_that_cannot_be_carried_out_are_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        augment_settings(**changed)


def test_recipes_take_turns_and_start_again_after_the_last() -> None:
    recipes: list[list[Step]] = [["perturb"], ["mask"], ["mix"]]
    settings = augment_settings(recipes=recipes)
    assert [settings.recipe(variant) for variant in range(1, 8)] == [*recipes, *recipes, ["perturb"]]


def test_a_radius_is_needed_where_a_variant_is_perturbed_and_a_gradient_unless_the_objective_follows_none() -> None:
    aims = {
        objective: one("mask", "perturb", perturbation={"objective": objective}).aims()
        for objective in ("divergence", "noise", "none")
    }
    assert aims == {"divergence": True, "noise": False, "none": False}
    assert one("perturb").perturbs()
    assert (one("mask").perturbs(), one("mask").aims()) == (False, False)
    assert augment_settings(recipes=[["mask"], ["perturb"]]).perturbs()


CHANGES: dict[str, dict[str, Any]] = {
    "seed": {"seed": 2},
    "batch_rows": {"batch_rows": 16},
    "precision": {"precision": "bfloat16"},
    "codec": {"codec": "sign"},
    "objective": {"perturbation": {"objective": "noise"}},
    "steps": {"perturbation": {"steps": 2}},
    "alpha": {"mixing": {"alpha": 1.0}},
    "replace": {"masked_lm": WORDS | {"replace": 0.1}},
    "mask": {"text_edits": {"mask": 0.1, "delete": 0.2, "swap": 0.2, "span": 0.5}},
    "delete": {"text_edits": {"mask": 0.2, "delete": 0.1, "swap": 0.2, "span": 0.5}},
    # These change no variant that there is, whatever it is made of.
    "variants": {"variants": 9},
    "calibration_rows": {"calibration_rows": 64},
    "masked_lm.batch_rows": {"masked_lm": WORDS | {"batch_rows": 64}},
    "radius asked for": {"perturbation": {"radius": {"divergence": 0.1}}},
}
ALWAYS = {"seed", "batch_rows", "precision"}
PERTURBED = {"codec", "objective", "steps"}


@pytest.mark.parametrize(
    ("recipe", "deciding"),
    [
        (["perturb"], PERTURBED),
        (["mask"], {"mask"}),
        (["delete", "mask"], {"delete", "mask"}),
        (["masked_lm"], {"replace"}),
        (["mix"], {"alpha"}),
        (["masked_lm", "delete", "perturb"], {"replace", "delete"} | PERTURBED),
    ],
)
def test_what_decides_a_variants_bytes_is_what_its_recipe_uses_and_nothing_else(recipe: list[Step], deciding: set[str]) -> None:
    before = one(*recipe).deciding(1, RADIUS)
    changed = {name for name, change in CHANGES.items() if one(*recipe, **change).deciding(1, RADIUS) != before}
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


IDLE = "so a scout has nothing to do"


@pytest.mark.parametrize(
    ("search", "recipes", "scout", "sentence"),
    [
        ({}, [["mask"], ["perturb"]], True, None),
        ({"objective": "noise"}, [["perturb"]], True, f"the objective noise follows no gradient, {IDLE}; set aim: teacher"),
        ({"objective": "none"}, [["perturb"]], True, f"the objective none follows no gradient, {IDLE}; set aim: teacher"),
        ({}, [["mask"], ["mix"]], True, f"no recipe perturbs, {IDLE}; add perturb to augment.recipes, or set aim: teacher"),
        ({}, [["mask"]], False, None),
        ({"objective": "noise", "start": 0.0}, [["perturb"]], False, None),
        ({"start": 0.0}, [["perturb"]], True, None),
        ({"start": 0.0}, [["mask"]], False, None),
        (
            {"start": 0.0},
            [["perturb"]],
            False,
            "the divergence of the teacher from its own clean output has no gradient at start: 0; set it above 0",
        ),
    ],
)
def test_a_search_goes_with_its_aim_or_is_rejected(
    search: dict[str, Any], recipes: list[list[str]], scout: bool, sentence: str | None
) -> None:
    settings = augment_settings(search, variants=1 if "start" in search else 2, recipes=recipes)
    assert aim_faults(settings, scout) == ([] if sentence is None else [sentence])


def test_a_regression_has_no_flips_to_ask_for_but_a_divergence() -> None:
    asks = {name: augment_settings({"radius": {name: 0.1}}) for name in ("flips", "divergence")}
    (sentence,) = kind_faults(asks["flips"], "regression")
    assert sentence.startswith("the answers of a regression do not flip; give this task augment: {perturbation: {radius: ")
    assert kind_faults(asks["flips"], "classification") == kind_faults(asks["divergence"], "regression") == []
    assert kind_faults(augment_settings({"radius": {"flips": 0.1}}, recipes=[["mask"]]), "regression") == []


def test_words_are_asked_for_where_there_is_a_model_and_nowhere_else() -> None:
    proposing = {"replace": 0.4, "candidates": 5, "batch_rows": 8}
    asking = augment_settings(recipes=[["mask"], ["masked_lm", "swap"]], masked_lm=proposing)
    silent = augment_settings(recipes=[["mask"]], masked_lm=proposing)
    assert words_faults(asking, model=True) == words_faults(silent, model=False) == words_faults(silent, model=None) == []
    assert words_faults(asking, model=None) == [
        "a recipe asks for masked_lm: give the folder that the stage words wrote, --words"
    ]
    (lacking,), (idle,) = words_faults(asking, model=False), words_faults(silent, model=True)
    assert lacking.startswith(
        "a recipe asks for masked_lm, but the task's words is null; say there which masked language model"
    )
    assert idle.endswith("so a masked language model has nothing to do; set the task's words: null")


@pytest.mark.parametrize("recipe", [["mask"], ["delete", "perturb"], ["perturb"], ["mix"]])
def test_edits_of_a_pair_without_a_token_between_its_texts_are_refused(recipe: list[str]) -> None:
    apart, joined = make_tokenizer(), make_tokenizer()
    joined.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A", pair="[CLS] $A $B", special_tokens=[("[CLS]", 2)]
    )
    settings = augment_settings(recipes=[recipe])
    assert edit_faults(settings, apart, pair=True) == []
    edits = ", ".join(step for step in recipe if step in ("mask", "delete"))
    wanted = f"this teacher's tokenizer puts no token between the texts of a pair, so {edits} cannot keep them apart"
    assert edit_faults(settings, joined, pair=True) == ([wanted] if edits else [])
    assert edit_faults(settings, joined, pair=False) == []


@pytest.mark.parametrize("recipe", [["mask"], ["swap", "mask"], ["delete"], ["perturb"]])
def test_masking_is_refused_before_anything_is_computed_where_no_token_masks(recipe: list[str]) -> None:
    tokenizer = make_tokenizer()
    tokenizer.mask_token = None
    wanted = "this teacher's tokenizer has no mask token, so there is no mask; leave it out of augment.recipes"
    assert edit_faults(augment_settings(recipes=[recipe]), tokenizer, pair=False) == ([wanted] if "mask" in recipe else [])
