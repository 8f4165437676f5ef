"""Settings of variants that contradict an aim, a task's kind or a tokenizer. Knows settings; reads no shard and no weight."""

import numpy as np
from transformers import PreTrainedTokenizerBase

from pipeline.augment.recipes import AugmentSettings
from pipeline.augment.text_edits import OPERATIONS, runs, special_ids
from pipeline.corpus.task import Kind
from pipeline.perturbation.search import CONTROLS, Effect


def aim_faults(settings: AugmentSettings, scout: bool) -> list[str]:
    """Where objective and aim do not go together."""
    objective = settings.perturbation.objective
    if scout and objective in CONTROLS:
        return [f"the objective {objective} follows no gradient, so a scout has nothing to do; set aim: teacher"]
    if scout and not settings.perturbs():
        return ["no recipe perturbs, so a scout has nothing to do; add perturb to augment.recipes, or set aim: teacher"]
    if not scout and settings.perturbs() and objective == "gap":
        return ["the objective gap needs a scout: set aim: scout"]
    return []


def words_faults(settings: AugmentSettings, model: bool | None) -> list[str]:
    """Where recipes and the task's masked language model do not go together; None says that nobody told of one."""
    if settings.proposes() and model is None:
        return ["a recipe asks for masked_lm: give the folder that the stage words wrote, --words"]
    if settings.proposes() and not model:
        return [
            "a recipe asks for masked_lm, but the task's words is null; say there which masked language model proposes words, "
            "or take masked_lm out of augment.recipes"
        ]
    if model and not settings.proposes():
        return ["no recipe asks for masked_lm, so a masked language model has nothing to do; set the task's words: null"]
    return []


def kind_faults(settings: AugmentSettings, kind: Kind, scout: bool) -> list[str]:
    """What makes no sense for a regression; a scout errs on the untouched text, its teacher does not."""
    if kind != "regression" or not settings.perturbs():
        return []
    search, faults = settings.perturbation, []
    if isinstance(search.radius, Effect) and search.radius.flips is not None:
        way_out = "augment: {perturbation: {radius: {flips: null, divergence: …}}}"
        faults.append(f"the answers of a regression do not flip; give this task {way_out}")
    untouched = any(recipe == ["perturb"] for recipe in settings.recipes[: settings.variants])
    if search.objective == "label" and not search.start and untouched and not scout:
        faults.append(
            "the squared error of a regression from its teacher's own answer has no gradient at start: 0; set it above 0"
        )
    return faults


def edit_faults(settings: AugmentSettings, tokenizer: PreTrainedTokenizerBase, pair: bool) -> list[str]:
    """Edits that this tokenizer has no token for: one to mask with, one that keeps the texts of a pair apart."""
    edits = sorted({step for recipe in settings.recipes for step in recipe} & {*OPERATIONS, "masked_lm"})
    faults = []
    if "mask" in edits and tokenizer.mask_token_id is None:
        faults.append("this teacher's tokenizer has no mask token, so there is no mask; leave it out of augment.recipes")
    if pair and edits and len(runs(np.array(tokenizer("a", "b")["input_ids"], np.int32), special_ids(tokenizer))) < 2:
        faults.append(
            f"this teacher's tokenizer puts no token between the texts of a pair, so {', '.join(edits)} cannot keep them apart"
        )
    return faults
