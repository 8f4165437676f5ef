"""Settings of clean logits and variants: recipes, what decides a variant's bytes, and contradictions with a task."""

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, model_validator
from transformers import PreTrainedTokenizerBase

from pipeline.augment.candidates import MaskedLMSettings
from pipeline.augment.teacher import Precision
from pipeline.augment.text_edits import OPERATIONS, TextEditSettings, runs, special_ids
from pipeline.config.params import Settings
from pipeline.corpus.task import Kind
from pipeline.perturbation.search import CONTROLS, Effect, PerturbationSettings
from pipeline.perturbation.surrogate import Aims, aims_of
from pipeline.shards.schema import CodecName
from pipeline.store.hashing import Key

AtLeastOne = Annotated[int, Field(ge=1)]

Step = Literal["mask", "delete", "swap", "span", "masked_lm", "mix", "perturb"]
"""A text edit, a replacement of words, mixing with another example, or a perturbation of the embeddings."""
Recipe = Annotated[list[Step], Field(min_length=1)]
"""The steps of one variant, in order."""


class MixingSettings(Settings):
    """Interpolation of two examples' embeddings (MixKD, Liang et al. 2021)."""

    alpha: Annotated[float, Field(gt=0)]
    """λ is drawn from Beta(alpha, alpha)."""


class ScoreSettings(Settings):
    """How the untouched inputs are scored."""

    rows_per_shard: AtLeastOne
    """About how many examples make one shard."""
    batch_rows: AtLeastOne
    precision: Precision


def _lists(value: Any) -> Any:
    if isinstance(value, list) and any(isinstance(recipe, str) for recipe in value):
        raise ValueError("a recipe is a list of steps, and there may be several: write [[mask], [swap]]")
    return value


class AugmentSettings(Settings):
    """Which variants of every training example are stored."""

    variants: Annotated[int, Field(ge=0)]
    recipes: Annotated[list[Recipe], Field(min_length=1), BeforeValidator(_lists)]
    """Variants take them in turn: variant 1 has the first, and after the last comes the first again."""
    perturbation: PerturbationSettings
    text_edits: TextEditSettings
    masked_lm: MaskedLMSettings | None
    mixing: MixingSettings
    codec: CodecName
    precision: Precision
    seed: int
    calibration_rows: AtLeastOne
    """Size of the sample on which a radius is found and its effect measured."""
    batch_rows: AtLeastOne

    @model_validator(mode="after")
    def _possible(self) -> "AugmentSettings":
        for recipe in self.recipes:
            if fault := _fault(recipe):
                raise ValueError(f"the recipe [{', '.join(recipe)}] {fault}")
        if self.masked_lm is None and any("masked_lm" in recipe for recipe in self.recipes):
            raise ValueError("a recipe asks for masked_lm, so the setting masked_lm must say how")
        if self.aims() and self.variants > 1 and not self.perturbation.start:
            raise ValueError("perturbation.start is 0, so that variants of a text would not differ; set it above 0")
        return self

    def recipe(self, variant: int) -> Recipe:
        """The steps of a variant, counted from 1."""
        return self.recipes[(variant - 1) % len(self.recipes)]

    def moves(self, recipe: Recipe) -> bool:
        """Whether a recipe perturbs embeddings, so that a δ is stored; the objective none perturbs none."""
        return "perturb" in recipe and self.perturbation.objective != "none"

    def perturbs(self) -> bool:
        """Whether any variant is perturbed, so that a radius is needed."""
        return any(self.moves(recipe) for recipe in self.recipes[: self.variants])

    def proposes(self) -> bool:
        """Whether any variant needs a masked language model."""
        return any("masked_lm" in recipe for recipe in self.recipes[: self.variants])

    def aimed_at(self, snapshots: int) -> Aims:
        """At which of a scout's snapshots each variant is aimed."""
        return aims_of(("perturb" in self.recipe(number) for number in range(1, self.variants + 1)), snapshots)

    def aims(self) -> bool:
        """Whether a gradient is followed."""
        return self.perturbs() and self.perturbation.objective not in CONTROLS

    def deciding(self, variant: int, radius: float) -> Key:
        """The settings that decide a variant's bytes; those of steps it does not have may change."""
        recipe = self.recipe(variant)
        key: Key = {"recipe": list(recipe), "seed": self.seed, "batch_rows": self.batch_rows, "precision": self.precision}
        if edits := {str(step) for step in recipe if step in OPERATIONS}:
            key["text_edits"] = self.text_edits.model_dump(include=edits)
        if "masked_lm" in recipe and self.masked_lm is not None:
            key["masked_lm"] = {"replace": self.masked_lm.replace}
        if "mix" in recipe:
            key["mixing"] = self.mixing.model_dump()
        if "perturb" in recipe:
            unread = {"steps", "step_size", "start"} if self.perturbation.objective in CONTROLS else set()
            key["perturbation"] = self.perturbation.model_dump(mode="json", exclude=unread) | {"radius": radius}
            key["codec"] = self.codec
        return key


def _fault(recipe: Recipe) -> str | None:
    if len(set(recipe)) < len(recipe):
        return "has a step twice"
    if "mix" in recipe and len(recipe) > 1:
        return "mixes and does something else; mix must be the only step"
    if "masked_lm" in recipe[1:]:
        return "replaces words after an edit of the text; masked_lm comes first"
    if "perturb" in recipe[:-1]:
        return "edits the text after it was perturbed; perturb comes last"
    return None


def aim_faults(settings: AugmentSettings, scout: bool) -> list[str]:
    """Contradictions between the perturbation settings and the model whose gradient is followed."""
    search = settings.perturbation
    if scout and search.objective in CONTROLS:
        return [f"the objective {search.objective} follows no gradient, so a scout has nothing to do; set aim: teacher"]
    if scout and not settings.perturbs():
        return ["no recipe perturbs, so a scout has nothing to do; add perturb to augment.recipes, or set aim: teacher"]
    if not scout and settings.aims() and not search.start:
        return ["the divergence of the teacher from its own clean output has no gradient at start: 0; set it above 0"]
    return []


def words_faults(settings: AugmentSettings, model: bool | None) -> list[str]:
    """Contradictions between recipes and the task's masked language model; None for ``model`` means that it is not given."""
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


def kind_faults(settings: AugmentSettings, kind: Kind) -> list[str]:
    """Contradictions between the perturbation settings and the kind of task."""
    radius = settings.perturbation.radius
    if kind == "regression" and settings.perturbs() and isinstance(radius, Effect) and radius.flips is not None:
        way_out = "augment: {perturbation: {radius: {flips: null, divergence: …}}}"
        return [f"the answers of a regression do not flip; give this task {way_out}"]
    return []


def edit_faults(settings: AugmentSettings, tokenizer: PreTrainedTokenizerBase, pair: bool) -> list[str]:
    """Edits that this tokenizer cannot make: it lacks a mask token, or one between the texts of a pair."""
    edits = sorted({step for recipe in settings.recipes for step in recipe} & {*OPERATIONS, "masked_lm"})
    faults = []
    if "mask" in edits and tokenizer.mask_token_id is None:
        faults.append("this teacher's tokenizer has no mask token, so there is no mask; leave it out of augment.recipes")
    if pair and edits and len(runs(np.array(tokenizer("a", "b")["input_ids"], np.int32), special_ids(tokenizer))) < 2:
        faults.append(
            f"this teacher's tokenizer puts no token between the texts of a pair, so {', '.join(edits)} cannot keep them apart"
        )
    return faults
