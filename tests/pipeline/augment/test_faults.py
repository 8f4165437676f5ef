import pytest
from tokenizers.processors import TemplateProcessing

from pipeline.augment.recipes import aim_faults, edit_faults, kind_faults, words_faults
from tests.world import (
    augment_settings,
    make_tokenizer,
)


@pytest.mark.parametrize(
    ("objective", "recipes", "scout", "sentence"),
    [
        ("gap", [["perturb"]], False, "the objective gap needs a scout: set aim: scout"),
        ("divergence", [["perturb"]], True, None),
        (
            "noise",
            [["perturb"]],
            True,
            "the objective noise follows no gradient, so a scout has nothing to do; set aim: teacher",
        ),
        ("none", [["perturb"]], True, "the objective none follows no gradient, so a scout has nothing to do; set aim: teacher"),
        (
            "label",
            [["mask"], ["mix"]],
            True,
            "no recipe perturbs, so a scout has nothing to do; add perturb to augment.recipes, or set aim: teacher",
        ),
        ("label", [["mask"], ["perturb"]], True, None),
        ("gap", [["mask"], ["perturb"]], True, None),
        ("gap", [["mask"]], False, None),
        ("noise", [["perturb"]], False, None),
    ],
)
def test_an_objective_goes_with_its_aim_or_is_refused(
    objective: str, recipes: list[list[str]], scout: bool, sentence: str | None
) -> None:
    found = aim_faults(augment_settings({"objective": objective}, recipes=recipes), scout)
    assert [fault[: len(sentence or "")] for fault in found] == ([] if sentence is None else [sentence])


def test_a_regression_has_no_flips_to_ask_for_but_a_divergence() -> None:
    asks = {name: augment_settings({"radius": {name: 0.1}}) for name in ("flips", "divergence")}
    (sentence,) = kind_faults(asks["flips"], "regression", False)
    assert sentence.startswith("the answers of a regression do not flip; give this task augment: {perturbation: {radius: ")
    assert kind_faults(asks["flips"], "classification", False) == kind_faults(asks["divergence"], "regression", False) == []
    assert kind_faults(augment_settings({"radius": {"flips": 0.1}}, recipes=[["mask"]]), "regression", False) == []


def test_a_regression_has_no_gradient_at_its_teachers_own_answer() -> None:
    still, moved = (augment_settings({"objective": "label", "start": start}, variants=1) for start in (0.0, 0.3))
    (sentence,) = kind_faults(still, "regression", False)
    assert sentence.endswith("from its teacher's own answer has no gradient at start: 0; set it above 0")
    assert kind_faults(moved, "regression", False) == kind_faults(still, "classification", False) == []
    assert kind_faults(still, "regression", True) == [], "a scout errs"
    edited = augment_settings({"objective": "label", "start": 0.0}, variants=1, recipes=[["span", "perturb"]])
    assert kind_faults(edited, "regression", False) == [], "an edit moves the answer"


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
