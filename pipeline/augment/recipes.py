"""What decides a variant's bytes, which checkpoint's gradient it follows, and what contradicts a task or a tokenizer."""

import numpy as np
from transformers import PreTrainedTokenizerBase

from pipeline.augment.text_edits import runs, special_ids
from pipeline.config.corpus import Kind
from pipeline.config.settings import OPERATIONS, AugmentSettings, Effect
from pipeline.perturbation.surrogate import CheckpointsFollowed, checkpoints_followed
from pipeline.store.keys import Key


def followed_by(settings: AugmentSettings, checkpoints: int) -> CheckpointsFollowed:
    """Which of a surrogate's checkpoints each variant follows."""
    perturbed = ("perturb" in settings.recipe(number) for number in range(1, settings.variants + 1))
    return checkpoints_followed(perturbed, checkpoints)


def deciding(settings: AugmentSettings, variant: int, epsilon: float) -> Key:
    """The settings that decide a variant's bytes; those of steps that it does not have may change."""
    recipe, inference = settings.recipe(variant), settings.inference
    key: Key = {
        "recipe": list(recipe),
        "seed": settings.seed,
        "batch_size": inference.batch_size,
        "precision": inference.precision,
    }
    if edits := {str(step) for step in recipe if step in OPERATIONS}:
        key["text_edits"] = settings.text_edits.model_dump(include=edits)
    if "masked_lm" in recipe:
        key["masked_lm"] = {"replace": settings.masked_lm.replace}
    if "mix" in recipe:
        key["mix_alpha"] = settings.mix_alpha
    if "perturb" in recipe:
        unread = {"num_steps", "step_size", "init"} if settings.perturbation.gradient_from == "noise" else set()
        key["perturbation"] = settings.perturbation.model_dump(mode="json", exclude=unread) | {"epsilon": epsilon}
        key["codec"] = settings.codec
    return key


def kind_errors(settings: AugmentSettings, kind: Kind) -> list[str]:
    """Contradictions between the perturbation settings and the kind of task."""
    epsilon = settings.perturbation.epsilon
    if kind == "regression" and settings.uses("perturb") and isinstance(epsilon, Effect) and epsilon.flips is not None:
        return [
            "a regression has no predictions that flip; give this task perturbation: {epsilon: {flips: null, divergence: …}}"
        ]
    return []


def edit_errors(settings: AugmentSettings, tokenizer: PreTrainedTokenizerBase, pair: bool) -> list[str]:
    """Edits that this tokenizer cannot make: it lacks a mask token, or one between the texts of a pair."""
    edits = sorted({step for recipe in settings.recipes for step in recipe} & {*OPERATIONS, "masked_lm"})
    errors = []
    if "mask" in edits and tokenizer.mask_token_id is None:
        errors.append("the teacher's tokenizer has no mask token; remove the step mask from augment.recipes")
    if pair and edits and len(runs(np.array(tokenizer("a", "b")["input_ids"], np.int32), special_ids(tokenizer))) < 2:
        errors.append(
            f"the teacher's tokenizer puts no token between the texts of a pair, so {', '.join(edits)} cannot keep them apart"
        )
    return errors
