import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers.processors import TemplateProcessing

from pipeline.augment.recipes import TextEdits, deciding, edit_errors
from pipeline.config.settings import OPERATIONS, AugmentSettings, Operation, Step, TextEditSettings
from pipeline.corpus.encoding import Ids, Types
from tests.world import augment_settings, make_tokenizer

EPSILON = 0.2


def one(*recipe: Step, **changed: Any) -> AugmentSettings:
    return augment_settings(recipes=[list(recipe)], **changed)


ERRORS: list[tuple[list[str], str]] = [
    (["mask", "copy"], "combines copy with another step"),
    (["perturb", "mask"], "edits the text after the perturbation"),
    (["delete", "mask", "delete"], "contains a step twice"),
    (["delete", "masked_lm"], "replaces words after another edit"),
]


@pytest.mark.parametrize(("recipe", "sentence"), ERRORS)
def test_a_contradictory_recipe_is_rejected_by_its_steps(recipe: list[str], sentence: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(f"the recipe [{', '.join(recipe)}] ") + sentence):
        augment_settings(recipes=[["perturb"], recipe])


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"recipes": []}, "at least 1 item"),
        ({"recipes": [["perturb"], []]}, "at least 1 item"),
        ({"perturbation": {"init": 0.0}}, "has no gradient at δ = 0; set init above 0"),
    ],
)
def test_settings_without_a_result_are_rejected(changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        augment_settings(**changed)
    for follows in ("surrogate", "noise"):
        assert augment_settings({"gradient_from": follows, "init": 0.0}).perturbation.init == 0.0


def test_recipes_are_used_in_turn() -> None:
    recipes: list[list[Step]] = [["perturb"], ["mask"], ["swap"]]
    settings = augment_settings(recipes=recipes)
    assert [settings.recipe(variant) for variant in range(1, 8)] == [*recipes, *recipes, ["perturb"]]


CHANGES: dict[str, dict[str, Any]] = {
    "seed": {"seed": 2},
    "batch_size": {"batch_size": 16},
    "precision": {"precision": "bfloat16"},
    "codec": {"codec": "sign"},
    "gradient_from": {"perturbation": {"gradient_from": "noise"}},
    "norm": {"perturbation": {"norm": "linf"}},
    "num_steps": {"perturbation": {"num_steps": 2}},
    "step_size": {"perturbation": {"step_size": 0.5}},
    "init": {"perturbation": {"init": 0.25}},
    "wanted epsilon": {"perturbation": {"epsilon": {"divergence": 0.1}}},
    "replace": {"masked_lm": {"replace": 0.1, "candidates": 5}},
    "mask": {"text_edits": {"mask": 0.1, "delete": 0.2, "swap": 0.2, "span": 0.5}},
    "delete": {"text_edits": {"mask": 0.2, "delete": 0.1, "swap": 0.2, "span": 0.5}},
    "variants": {"variants": 9},
    "calibration_rows": {"calibration_rows": 64},
}
ALWAYS = {"seed", "batch_size", "precision"}
PERTURBED = {"codec", "gradient_from", "norm", "num_steps", "step_size", "init"}


@pytest.mark.parametrize(
    ("recipe", "names"),
    [
        (["perturb"], PERTURBED),
        (["mask"], {"mask"}),
        (["delete", "mask"], {"delete", "mask"}),
        (["masked_lm"], {"replace"}),
        (["copy"], set()),
        (["masked_lm", "delete", "perturb"], {"replace", "delete"} | PERTURBED),
    ],
)
def test_the_key_of_a_variant_has_the_settings_that_its_recipe_uses(recipe: list[Step], names: set[str]) -> None:
    before = deciding(one(*recipe), 1, EPSILON)
    changed = {name for name, change in CHANGES.items() if deciding(one(*recipe, **change), 1, EPSILON) != before}
    assert changed == ALWAYS | names


def test_the_key_has_the_recipe_in_order_and_the_epsilon_found_and_nothing_of_other_recipes() -> None:
    recipes: list[list[Step]] = [["mask"], ["delete"], ["mask", "delete"], ["delete", "mask"]]
    keys = [deciding(one(*recipe), 1, EPSILON) for recipe in recipes]
    assert all(keys.count(key) == 1 for key in keys)
    alone, among = one("mask"), augment_settings(recipes=[["perturb"], ["mask"]])
    assert deciding(alone, 1, EPSILON) == deciding(alone, 1, 0.1) == deciding(among, 2, EPSILON)
    both = one("mask", "perturb", perturbation={"epsilon": {"divergence": 0.1}})
    assert deciding(both, 1, 0.1)["perturbation"]["epsilon"] == 0.1
    noise = [
        one("perturb", perturbation={"gradient_from": "noise", **search}) for search in ({}, {"num_steps": 9, "init": 0.1})
    ]
    assert deciding(noise[0], 1, EPSILON) == deciding(noise[1], 1, EPSILON), "noise is not searched"


@pytest.mark.parametrize("recipe", [["mask"], ["delete", "perturb"], ["perturb"]])
def test_edits_that_the_tokenizer_does_not_allow_are_rejected(recipe: list[str]) -> None:
    apart, joined, maskless = make_tokenizer(), make_tokenizer(), make_tokenizer()
    joined.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A", pair="[CLS] $A $B", special_tokens=[("[CLS]", 2)]
    )
    maskless.mask_token = None
    settings = augment_settings(recipes=[recipe])
    edits = ", ".join(step for step in recipe if step in ("mask", "delete"))
    rejected = edit_errors(settings, joined, pair=True)
    assert [f"between the texts of a pair, so {edits} cannot" in error for error in rejected] == ([True] if edits else [])
    rejected = edit_errors(settings, maskless, pair=False)
    assert ["has no mask token" in error for error in rejected] == ([True] if "mask" in recipe else [])
    assert edit_errors(settings, apart, pair=True) == edit_errors(settings, joined, pair=False) == []


CLS, SEP, MASK, UNKNOWN = 2, 3, 4, 1
SPECIAL = frozenset({0, CLS, SEP, MASK})
SHARE = st.floats(0.01, 1)

Row = tuple[Ids, Types]
Text = list[int]


def edit(
    operations: Sequence[Operation], row: tuple[Ids, Types | None], seed: int = 0, mask_id: int | None = MASK, **settings: Any
) -> tuple[Ids, Types | None]:
    usual = {"mask": 0.1, "delete": 0.1, "swap": 0.1, "span": 0.3}
    return TextEdits(operations, TextEditSettings.model_validate(usual | settings), SPECIAL, mask_id).row(*row, seed)


def row_of(*texts: Text) -> Row:
    """[CLS] text [SEP] text [SEP]; the type of a token is the number of its text."""
    ids, types = [CLS], [0]
    for number, text in enumerate(texts):
        ids += [*text, SEP]
        types += [number] * (len(text) + 1)
    return np.array(ids, dtype=np.int32), np.array(types, dtype=np.int8)


def texts_of(ids: Ids) -> list[Text]:
    """The texts between [CLS] and [SEP], which may hold masks."""
    found: list[Text] = [[]]
    for token in ids.tolist()[1:]:
        found.append([]) if token == SEP else found[-1].append(token)
    return found[:-1]


def edited(operations: Sequence[Operation], *texts: Text, seed: int = 0, **settings: Any) -> list[Text]:
    """Texts after the operations; checks that special tokens and types still fit the texts."""
    row = row_of(*texts)
    new_ids, new_types = edit(operations, row, seed, **settings)
    assert row[0].tolist() == row_of(*texts)[0].tolist(), "the argument is not changed"
    found = texts_of(new_ids)
    want_ids, want_types = row_of(*found)
    assert new_types is not None
    np.testing.assert_array_equal(new_ids, want_ids)
    np.testing.assert_array_equal(new_types, want_types)
    assert len(found) == len(texts)
    return found


def each(operation: Operation, text: Text, seeds: int = 200, **settings: Any) -> list[Text]:
    """The text after one operation, for many seeds."""
    return [edited([operation], text, seed=seed, **settings)[0] for seed in range(seeds)]


words = st.lists(st.integers(5, 60) | st.just(UNKNOWN), min_size=1, max_size=30)
distinct_words = st.lists(st.integers(5, 90), min_size=1, max_size=30, unique=True)
seeds = st.integers(0, 2**63 - 1)
operation_lists = st.lists(st.sampled_from(OPERATIONS), max_size=6)


@given(operation_lists, words, words, SHARE, seeds)
def test_texts_of_a_pair_keep_their_tokens_and_at_least_one_each(
    operations: list[Operation], first: Text, second: Text, share: float, seed: int
) -> None:
    apart = [token + 100 for token in second]
    shares = dict.fromkeys(("mask", "delete", "swap", "span"), share)
    left, right = edited(operations, first, apart, seed=seed, **shares)
    assert [left, right] == edited(operations, first, apart, seed=seed, **shares)
    assert 1 <= len(left) <= len(first)
    assert 1 <= len(right) <= len(apart)
    assert not Counter(token for token in left if token != MASK) - Counter(first)
    assert not Counter(token for token in right if token != MASK) - Counter(apart)


@given(distinct_words, SHARE, seeds)
def test_mask_replaces_its_share_of_tokens_and_moves_none(text: Text, share: float, seed: int) -> None:
    (masked,) = edited(["mask"], text, seed=seed, mask=share)
    assert all(new in (old, MASK) for new, old in zip(masked, text, strict=True))
    assert masked.count(MASK) == max(1, round(share * len(text)))


@given(distinct_words, SHARE, seeds)
def test_delete_removes_its_share_of_tokens_and_keeps_the_order(text: Text, share: float, seed: int) -> None:
    (left,) = edited(["delete"], text, seed=seed, delete=share)
    assert left == [token for token in text if token in left]
    assert len(text) - len(left) == min(len(text) - 1, max(1, round(share * len(text))))


@given(distinct_words, SHARE, seeds)
def test_swap_exchanges_tokens_in_pairs(text: Text, share: float, seed: int) -> None:
    (swapped,) = edited(["swap"], text, seed=seed, swap=share)
    moved = {old: new for old, new in zip(text, swapped, strict=True) if old != new}
    assert all(moved[moved[token]] == token for token in moved)
    assert len(moved) == (0 if len(text) == 1 else max(2, round(share * len(text)) // 2 * 2))


@given(words, SHARE, seeds)
def test_span_changes_the_order_within_one_span_of_its_share(text: Text, share: float, seed: int) -> None:
    (reordered,) = edited(["span"], text, seed=seed, span=share)
    changed = [place for place, (old, new) in enumerate(zip(text, reordered, strict=True)) if old != new]
    assert Counter(reordered) == Counter(text)
    assert bool(changed) == (len(set(text)) > 1)
    assert not changed or changed[-1] - changed[0] < max(2, round(share * len(text)))


def test_every_span_of_the_length_and_every_order_of_it_is_drawn() -> None:
    found = {tuple(text) for text in each("span", [10, 11, 12, 13], span=0.75)}
    first = {(11, 10, 12, 13), (10, 12, 11, 13), (12, 11, 10, 13), (11, 12, 10, 13), (12, 10, 11, 13)}
    last = {(10, 12, 11, 13), (10, 11, 13, 12), (10, 13, 12, 11), (10, 12, 13, 11), (10, 13, 11, 12)}
    assert found == first | last


def test_a_text_of_one_token_is_only_masked_and_a_mask_does_not_divide_a_text() -> None:
    assert len(edited(["mask", "delete"], list(range(10, 20)), mask=0.5, delete=1.0)[0]) == 1
    assert edited(["mask"], [10]) == [[MASK]]
    for operation in ("delete", "swap", "span"):
        assert edited([operation], [10]) == [[10]]


def test_a_special_token_within_the_text_keeps_its_place() -> None:
    ids = np.array([CLS, 10, 11, MASK, 12, 13, SEP], dtype=np.int32)
    for seed in range(50):
        new, _ = edit(["swap", "span"], (ids, None), seed, swap=1.0, span=1.0)
        assert new[[0, 3, 6]].tolist() == [CLS, MASK, SEP]
        assert set(new[1:3].tolist()) == {10, 11}
