import re
from typing import Any

import pytest
from pydantic import ValidationError
from tokenizers.processors import TemplateProcessing

from pipeline.augment.recipes import AugmentSettings, Step, aim_faults, edit_faults, kind_faults, words_faults
from tests.world import augment_settings, make_tokenizer

WORDS = {"replace": 0.4, "candidates": 5, "batch_rows": 8}
RADIUS = 0.2


def one(*recipe: Step, **changed: Any) -> AugmentSettings:
    return augment_settings(recipes=[list(recipe)], **({"masked_lm": WORDS} | changed))


FAULTS: list[tuple[list[str], str]] = [
    (["mix", "perturb"], "mixes and does something else"),
    (["mask", "mix"], "mixes and does something else"),
    (["perturb", "mask"], "edits the text after it was perturbed"),
    (["delete", "mask", "delete"], "has a step twice"),
    (["delete", "masked_lm"], "replaces words after an edit"),
]


@pytest.mark.parametrize(("recipe", "sentence"), FAULTS)
def test_a_recipe_that_makes_no_sense_is_refused_by_its_steps(recipe: list[str], sentence: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(f"the recipe [{', '.join(recipe)}] ") + sentence):
        augment_settings(recipes=[["perturb"], recipe], masked_lm=WORDS)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"recipes": [["perturb"], ["masked_lm"]]}, "so the setting masked_lm must say how"),
        ({"recipes": []}, "at least 1 item"),
        ({"recipes": [["perturb"], []]}, "at least 1 item"),
        ({"perturbation": {"start": 0.0}}, "variants of a text would not differ"),
    ],
)
def test_settings_that_cannot_be_carried_out_are_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        augment_settings(**changed)


def test_recipes_take_turns_and_start_again_after_the_last() -> None:
    recipes: list[list[Step]] = [["perturb"], ["mask"], ["mix"]]
    settings = augment_settings(recipes=recipes)
    assert [settings.recipe(variant) for variant in range(1, 8)] == [*recipes, *recipes, ["perturb"]]


CHANGES: dict[str, dict[str, Any]] = {
    "seed": {"seed": 2},
    "batch_rows": {"batch_rows": 16},
    "precision": {"precision": "bfloat16"},
    "codec": {"codec": "sign"},
    "objective": {"perturbation": {"objective": "noise"}},
    "norm": {"perturbation": {"norm": "linf"}},
    "steps": {"perturbation": {"steps": 2}},
    "step_size": {"perturbation": {"step_size": 0.5}},
    "start": {"perturbation": {"start": 0.25}},
    "special_tokens": {"perturbation": {"special_tokens": True}},
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
PERTURBED = {"codec", "objective", "norm", "steps", "step_size", "start", "special_tokens"}


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


def test_the_recipe_its_order_and_the_radius_found_decide_and_other_recipes_do_not() -> None:
    keys = [one(*recipe).deciding(1, RADIUS) for recipe in (["mask"], ["delete"], ["mask", "delete"], ["delete", "mask"])]
    assert all(keys.count(key) == 1 for key in keys)
    alone, among = one("mask"), augment_settings(recipes=[["perturb"], ["mask"]])
    assert alone.deciding(1, RADIUS) == alone.deciding(1, 0.1) == among.deciding(2, RADIUS)
    assert one("mask", "perturb").deciding(1, 0.1)["perturbation"]["radius"] == 0.1


@pytest.mark.parametrize(
    ("search", "recipe", "scout", "sentence"),
    [
        ({}, "perturb", True, None),
        ({"objective": "noise"}, "perturb", True, "objective noise follows no gradient, .* set aim: teacher$"),
        ({"objective": "none"}, "perturb", True, "objective none follows no gradient, .* set aim: teacher$"),
        ({}, "mask", True, "^no recipe perturbs, .*; add perturb to augment.recipes, or set aim: teacher$"),
        ({}, "mask", False, None),
        ({"objective": "noise", "start": 0.0}, "perturb", False, None),
        ({"start": 0.0}, "perturb", True, None),
        ({"start": 0.0}, "mask", False, None),
        ({"start": 0.0}, "perturb", False, "has no gradient at start: 0; set it above 0$"),
    ],
)
def test_a_search_fits_its_aim_or_is_rejected(search: dict[str, Any], recipe: str, scout: bool, sentence: str | None) -> None:
    faults = aim_faults(augment_settings(search, variants=1, recipes=[[recipe]]), scout)
    assert len(faults) == (sentence is not None)
    assert all(re.search(str(sentence), fault) for fault in faults)


def test_a_regression_has_no_flips_to_ask_for_but_a_divergence() -> None:
    asks = {name: augment_settings({"radius": {name: 0.1}}) for name in ("flips", "divergence")}
    (sentence,) = kind_faults(asks["flips"], "regression")
    assert sentence.startswith("the answers of a regression do not flip; give this task augment: {perturbation: {radius: ")
    assert kind_faults(asks["flips"], "classification") == kind_faults(asks["divergence"], "regression") == []
    assert kind_faults(augment_settings({"radius": {"flips": 0.1}}, recipes=[["mask"]]), "regression") == []


def test_words_are_asked_for_where_there_is_a_model_and_nowhere_else() -> None:
    asking, silent = one("masked_lm", "swap"), one("mask")
    assert words_faults(asking, model=True) == words_faults(silent, model=False) == words_faults(silent, model=None) == []
    (unnamed,), (lacking,), (idle,) = words_faults(asking, None), words_faults(asking, False), words_faults(silent, True)
    assert unnamed.endswith("--words")
    assert "the task's words is null" in lacking
    assert idle.endswith("set the task's words: null")


@pytest.mark.parametrize("recipe", [["mask"], ["delete", "perturb"], ["perturb"], ["mix"]])
def test_edits_that_the_tokenizer_does_not_allow_are_refused(recipe: list[str]) -> None:
    apart, joined, maskless = make_tokenizer(), make_tokenizer(), make_tokenizer()
    joined.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A", pair="[CLS] $A $B", special_tokens=[("[CLS]", 2)]
    )
    maskless.mask_token = None
    settings = augment_settings(recipes=[recipe])
    edits = ", ".join(step for step in recipe if step in ("mask", "delete"))
    refused = edit_faults(settings, joined, pair=True)
    assert [f"between the texts of a pair, so {edits} cannot" in fault for fault in refused] == ([True] if edits else [])
    refused = edit_faults(settings, maskless, pair=False)
    assert ["has no mask token" in fault for fault in refused] == ([True] if "mask" in recipe else [])
    assert edit_faults(settings, apart, pair=True) == edit_faults(settings, joined, pair=False) == []
