"""Recipes: the settings that decide a variant's bytes, contradictions with a task or tokenizer, and text edits on token ids.

Text edits mask, delete, swap or reorder tokens of a run: the longest stretch of ordinary tokens between special ones, that is
one text of a row. Runs are edited separately, so special tokens keep their places and no token moves to another text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from pipeline.config.settings import OPERATIONS, AugmentSettings, Operation, TextEditSettings
from pipeline.corpus.encoding import Ids, Types
from pipeline.perturbation.surrogate import CheckpointsFollowed, checkpoints_followed
from pipeline.store.keys import Key

Positions = npt.NDArray[np.int64]


def followed_by(settings: AugmentSettings, checkpoints: int) -> CheckpointsFollowed:
    """The surrogate checkpoint that each variant follows."""
    perturbed = ("perturb" in settings.recipe(number) for number in range(1, settings.variants + 1))
    return checkpoints_followed(perturbed, checkpoints)


def deciding(settings: AugmentSettings, variant: int, epsilon: float) -> Key:
    """The settings that decide a variant's bytes, without those of steps that its recipe does not contain."""
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
    if "perturb" in recipe:
        unread = {"num_steps", "step_size", "init"} if settings.perturbation.gradient_from == "noise" else set()
        key["perturbation"] = settings.perturbation.model_dump(mode="json", exclude=unread) | {"epsilon": epsilon}
        key["codec"] = settings.codec
    return key


def edit_errors(settings: AugmentSettings, tokenizer: PreTrainedTokenizerBase, pair: bool) -> list[str]:
    """Edits that need a token that this tokenizer lacks: a mask token, or one between the texts of a pair."""
    edits = sorted({step for recipe in settings.recipes for step in recipe} & {*OPERATIONS, "masked_lm"})
    errors = []
    if "mask" in edits and tokenizer.mask_token_id is None:
        errors.append("the teacher's tokenizer has no mask token; remove the step mask from augment.recipes")
    if pair and edits and len(runs(np.array(tokenizer("a", "b")["input_ids"], np.int32), special_ids(tokenizer))) < 2:
        errors.append(
            f"the teacher's tokenizer puts no token between the texts of a pair, so {', '.join(edits)} cannot keep them apart"
        )
    return errors


@dataclass(frozen=True)
class TextEdits:
    """Operations that are applied to every run of a row, one after the other."""

    operations: Sequence[Operation]
    settings: TextEditSettings
    special: frozenset[int]
    """Ids that are never changed."""
    mask_id: int | None

    def row(self, input_ids: Ids, token_type_ids: Types | None, seed: int) -> tuple[Ids, Types | None]:
        """One edited row with its token types, never longer than the row; a pure function of its arguments.

        A token masked by one operation is an ordinary token to the next. ``seed`` is in [0, 2⁶³).
        """
        generator = np.random.Generator(np.random.Philox(key=seed))
        ids, order, behind = input_ids.copy(), [], 0
        for start, stop in runs(input_ids, self.special):
            order += [np.arange(behind, start), self._run(np.arange(start, stop), ids, generator)]
            behind = stop
        kept = np.concatenate([*order, np.arange(behind, len(ids))])
        return ids[kept], None if token_type_ids is None else token_type_ids[kept]

    def _run(self, order: Positions, ids: Ids, generator: np.random.Generator) -> Positions:
        """The remaining positions of a run in their new order; masks ``ids`` of the row in place."""
        for operation in self.operations:
            tokens = max(1, round(getattr(self.settings, operation) * len(order)))
            match operation:
                case "mask":
                    assert self.mask_id is not None, "edit_errors rejects the recipe"
                    ids[generator.choice(order, tokens, replace=False)] = self.mask_id
                case "delete":
                    kept = max(1, len(order) - tokens)
                    order = order[np.sort(generator.choice(len(order), kept, replace=False))]
                case "swap" if len(order) > 1:
                    first, second = generator.choice(len(order), (2, max(1, tokens // 2)), replace=False)
                    order[first], order[second] = order[second], order[first]
                case "span":
                    order = order[_reordered(ids[order], max(2, tokens), generator)]
        return order


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of special tokens; the unknown word is an ordinary one."""
    return frozenset(tokenizer.all_special_ids) - {tokenizer.unk_token_id}


def runs(input_ids: Ids, special: frozenset[int]) -> list[tuple[int, int]]:
    """First position of every run and the position after its last; a row without special tokens is one run."""
    ordinary = ~np.isin(input_ids, list(special))
    edges = np.flatnonzero(np.diff(ordinary, prepend=False, append=False))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def _reordered(tokens: Ids, length: int, generator: np.random.Generator) -> Positions:
    """An order [tokens] that changes the tokens of one span; the identity if all tokens of the run are equal."""
    order = np.arange(len(tokens))
    if len(set(tokens.tolist())) < 2:
        return order
    starts = range(len(tokens) - length + 1)
    start = generator.choice([at for at in starts if (tokens[at : at + length] != tokens[at]).any()])
    while np.array_equal(tokens[order], tokens):
        order[start : start + length] = generator.permutation(np.arange(start, start + length))
    return order
