"""What each variant is made of, and what of the settings decides its bytes. Knows settings; computes nothing."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from pipeline.augment.masked_lm import MaskedLMSettings
from pipeline.augment.teacher import Precision
from pipeline.augment.text_edits import OPERATIONS, TextEditSettings
from pipeline.config.params import Settings
from pipeline.perturbation.search import CONTROLS, Effect, PerturbationSettings
from pipeline.perturbation.surrogate import Aims, aims_of
from pipeline.shards.codec import CodecName
from pipeline.shards.manifest import Key

AtLeastOne = Annotated[int, Field(ge=1)]

Step = Literal["mask", "delete", "swap", "ngram", "span", "masked_lm", "mix", "perturb"]
"""A text edit, mixing with another example, or a perturbation of the embeddings."""
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
    """What is stored of every training example beside its score."""

    variants: Annotated[int, Field(ge=0)]
    recipes: Annotated[list[Recipe], Field(min_length=1), BeforeValidator(_lists)]
    """They take turns: variant 1 has the first, and after the last comes the first again."""
    perturbation: PerturbationSettings
    keep_label: bool
    """Shorten δ, row by row, until the teacher's answer is the untouched one."""
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
        if self.keep_label and any("perturb" in recipe and len(recipe) > 1 for recipe in self.recipes):
            raise ValueError("keep_label cannot hold for [edit, perturb]: the edit itself may have changed the answer")
        if (
            self.perturbs()
            and self.variants > 1
            and not self.perturbation.start
            and self.perturbation.objective not in CONTROLS
        ):
            raise ValueError("perturbation.start is 0, so that variants of a text would not differ; set it above 0")
        radius = self.perturbation.radius
        if self.keep_label and isinstance(radius, Effect) and radius.flips is not None:
            raise ValueError("keep_label leaves no answer flipped, so the radius needs a number or a divergence, not flips")
        return self

    def recipe(self, variant: int) -> Recipe:
        """The steps of a variant, counted from 1."""
        return self.recipes[(variant - 1) % len(self.recipes)]

    def moves(self, recipe: Recipe) -> bool:
        """Whether a recipe moves embeddings, so that a δ is stored; the objective none moves none."""
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
        """What of these settings decides a variant's bytes, and nothing else: other steps may change."""
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
            key |= {"keep_label": self.keep_label, "codec": self.codec}
        return key


def _fault(recipe: Recipe) -> str | None:
    if len(set(recipe)) < len(recipe):
        return "has a step twice"
    if "mix" in recipe and len(recipe) > 1:
        return "mixes and does something else; mixing stands alone"
    if "masked_lm" in recipe[1:]:
        return "replaces words of a text that is no longer the one they were found for; masked_lm comes first"
    if "perturb" in recipe[:-1]:
        return "edits the text after it was perturbed; perturb comes last"
    return None
