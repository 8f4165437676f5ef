"""Every section of params.yaml but ``corpus`` as a strict model: what a setting means, and which values it takes."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pipeline.config.corpus import CorpusSettings, Kind, Metric
from pipeline.config.params import Settings

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(ge=0)]

Precision = Literal["float32", "bfloat16"]
"""Of the frozen teacher's matrix products; the classification head, norms and gradients stay in float32."""


class TeacherSettings(Settings):
    """The model that teaches a task."""

    model: str
    """Hub id or folder: a pretrained model, or a classifier that is already fine-tuned on the task."""
    fine_tune: bool
    """False uses the classifier as it is."""
    max_length: Annotated[int, Field(ge=2)]
    """Longest input in tokens, special tokens included; longer inputs are truncated."""


class TaskSettings(Settings):
    """An entry of ``tasks``."""

    kind: Kind
    metric: Metric
    corpus: CorpusSettings
    teacher: TeacherSettings
    augment: dict[str, Any] | None = None
    """Overrides of the section ``augment`` for this task."""
    perturbation: dict[str, Any] | None = None
    """Overrides of the section ``perturbation`` for this task."""


class TrainingSettings(Settings):
    """How weights are fitted by transformers.Trainer; names and meanings as in TrainingArguments where it has them."""

    num_train_epochs: Positive
    batch_size: Positive
    """Rows of an optimizer step, over all processes and accumulated micro-batches."""
    gradient_accumulation_steps: Positive
    learning_rate: Annotated[float, Field(gt=0)]
    lr_scheduler_type: Literal["linear", "cosine", "constant_with_warmup"]
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Weight
    max_grad_norm: Weight
    """0 disables clipping."""
    precision: Literal["float32", "bfloat16", "float16"]
    """Of matrix products; weights stay in float32."""
    seed: int


class MaskedLMSettings(TrainingSettings):
    """Section ``masked_lm``: the masked language model of recipes with masked_lm, and how it is fine-tuned on the texts."""

    model: str | None
    """Hub id or folder of an encoder with the teacher's tokenizer; null is the teacher's ``model``."""
    fine_tune: bool
    """False uses a finished masked language model as it is."""
    mlm_probability: Annotated[float, Field(gt=0, lt=1)]
    max_rows: Positive | None
    """Most rows read of a split; null reads all."""


class InferenceSettings(Settings):
    """Section ``inference``: how the frozen teacher runs."""

    rows_per_shard: Positive
    """About how many examples one shard holds."""
    batch_size: Positive
    precision: Precision


class Effect(Settings):
    """A perturbation's effect on the teacher, from which epsilon is calibrated; exactly one is given."""

    flips: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of predictions that change."""
    divergence: Annotated[float, Field(gt=0)] | None = None
    """Mean KL from the clean output in nats; squared error for a regression."""

    @model_validator(mode="after")
    def _exactly_one(self) -> "Effect":
        if (self.flips is None) == (self.divergence is None):
            raise ValueError("state one effect, flips or divergence; null removes one that an outer section has")
        return self


GradientSource = Literal["surrogate", "teacher", "noise"]


class PerturbationSettings(Settings):
    """Section ``perturbation``: the search for δ on word embeddings by projected gradient ascent."""

    gradient_from: GradientSource
    """Whose output's divergence the search increases. ``noise`` follows no gradient: a random direction, as a control."""
    norm: Literal["l2", "linf"]
    """Of each token's δ."""
    epsilon: Annotated[float, Field(gt=0)] | Effect
    """Bound on the norm as a fraction of the mean norm of a word embedding, or the effect from which it is calibrated."""
    init: Annotated[float, Field(ge=0, le=1)]
    """Norm of the random initial δ as a fraction of epsilon; the divergence has no gradient at δ = 0."""
    num_steps: Positive
    step_size: Annotated[float, Field(gt=0)]
    """Fraction of epsilon."""

    @model_validator(mode="after")
    def _has_a_gradient(self) -> "PerturbationSettings":
        if self.gradient_from != "noise" and not self.init:
            raise ValueError("the divergence from the clean output has no gradient at init: 0; set init above 0")
        return self


CodecName = Literal["float16", "int8", "sign"]

Operation = Literal["mask", "delete", "swap", "span"]
OPERATIONS: tuple[Operation, ...] = ("mask", "delete", "swap", "span")
"""Text edits on token ids."""

Step = Literal["mask", "delete", "swap", "span", "masked_lm", "mix", "copy", "perturb"]
Recipe = Annotated[list[Step], Field(min_length=1)]
"""The steps of one variant, in order."""


class TextEditSettings(Settings):
    """Share of a text's tokens that an operation acts on, rounded to at least one whole token."""

    mask: Share
    """Replaced by the mask token."""
    delete: Share
    """Removed; one token always stays."""
    swap: Share
    """Exchanged in pairs; at least two."""
    span: Share
    """Neighbours that are reordered; at least two."""


class ReplacementSettings(Settings):
    """How words are replaced by proposals of a masked language model (TinyBERT, Jiao et al. 2020)."""

    replace: Share
    """Probability that a word is replaced; 0.4 in TinyBERT."""
    candidates: Positive
    """Proposals per word; 15 in TinyBERT."""


def _lists(value: Any) -> Any:
    if isinstance(value, list) and any(isinstance(recipe, str) for recipe in value):
        raise ValueError("a recipe is a list of steps, and there may be several: write [[mask], [swap]]")
    return value


class AugmentSettings(Settings):
    """Section ``augment`` with the sections ``perturbation`` and ``inference``: the stored variants."""

    variants: Annotated[int, Field(ge=0)]
    """Per training example."""
    recipes: Annotated[list[Recipe], Field(min_length=1), BeforeValidator(_lists)]
    """In turn: variant 1 is made by the first recipe, and after the last comes the first again."""
    text_edits: TextEditSettings
    masked_lm: ReplacementSettings
    mix_alpha: Annotated[float, Field(gt=0)]
    """λ of mixed examples is drawn from Beta(alpha, alpha) (MixKD, Liang et al. 2021)."""
    codec: CodecName
    calibration_rows: Positive
    """Size of the sample on which epsilon is calibrated and its effect measured."""
    seed: int
    perturbation: PerturbationSettings
    inference: InferenceSettings

    @model_validator(mode="after")
    def _possible(self) -> "AugmentSettings":
        for recipe in self.recipes:
            if error := _recipe_error(recipe):
                raise ValueError(f"the recipe [{', '.join(recipe)}] {error}")
        return self

    def recipe(self, variant: int) -> Recipe:
        """The steps of a variant, counted from 1."""
        return self.recipes[(variant - 1) % len(self.recipes)]

    def uses(self, step: Step) -> bool:
        """Whether any variant contains a step."""
        return any(step in recipe for recipe in self.recipes[: self.variants])

    def needs_surrogate(self) -> bool:
        """Whether any variant follows the gradient of a surrogate."""
        return self.uses("perturb") and self.perturbation.gradient_from == "surrogate"


def _recipe_error(recipe: Recipe) -> str | None:
    if len(set(recipe)) < len(recipe):
        return "contains a step twice"
    if {"mix", "copy"} & {*recipe} and len(recipe) > 1:
        return "combines mix or copy with another step; each stands alone"
    if "masked_lm" in recipe[1:]:
        return "replaces words after the text was edited; masked_lm comes first"
    if "perturb" in recipe[:-1]:
        return "edits the text after it was perturbed; perturb comes last"
    return None


class Checkpoint(Settings):
    """Another pretrained model with the teacher's tokenizer."""

    checkpoint: str
    """Hub id or folder, as safetensors."""


class WorstOf(Settings):
    """Of N candidate variants per example, the one with the largest divergence from its teacher logits is trained on.

    Follows the selection of Glitter (Kamalloo et al. 2022).
    """

    worst_of: Annotated[int, Field(ge=2)]


VariantPolicy = Literal["curriculum", "rotate", "all", "none"] | WorstOf


class LossSettings(Settings):
    """Weights and form of a student's loss."""

    labels: Weight
    """Of the gold labels of clean inputs; rows without a label contribute nothing."""
    soft_labels: Weight
    """Of the teacher's logits on clean inputs."""
    variants: Weight
    """Of the teacher's logits on variants."""
    form: Literal["kl", "mse"]
    """Distance to the teacher's logits; a regression always uses the squared error."""
    temperature: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _something_to_learn(self) -> "LossSettings":
        if not self.labels + self.soft_labels + self.variants:
            raise ValueError("one of the weights labels, soft_labels and variants must be above 0")
        return self


class SizeSettings(Settings):
    """What is smaller than in the model that the first weights come from; what is left out is as there."""

    initial_weights: Literal["teacher", "random"] | Checkpoint
    depth: Share | None = None
    """Number of layers as a share of the model's, rounded, at least one; the layers kept are spread evenly."""
    width: Share | None = None
    """Number of attention heads as a share, rounded, at least one; hidden and intermediate size shrink in proportion."""
    num_hidden_layers: Positive | None = None
    teacher_layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    """Which layers are kept, counted from 0."""
    hidden_size: Positive | None = None
    num_attention_heads: Positive | None = None
    intermediate_size: Positive | None = None

    @model_validator(mode="after")
    def _stated_once(self) -> "SizeSettings":
        if sum(value is not None for value in (self.depth, self.num_hidden_layers, self.teacher_layers)) > 1:
            raise ValueError("state the depth once: depth, num_hidden_layers or teacher_layers")
        sizes = (self.hidden_size, self.num_attention_heads, self.intermediate_size)
        if self.width is not None and any(size is not None for size in sizes):
            raise ValueError("state the width once: width, or hidden_size with num_attention_heads and intermediate_size")
        return self


class StudentSettings(SizeSettings):
    """The section ``distill`` with an entry of ``students`` on top: a student's size, and how it is trained."""

    variant_policy: VariantPolicy
    """Which stored variants of an example a step shows. ``curriculum``: the one whose surrogate checkpoint is as far in its
    training as the student is, or one per epoch in turn where no variant has one; ``rotate``: one per epoch in turn; ``all``;
    ``none``: clean inputs alone, plain distillation."""
    loss: LossSettings
    training: TrainingSettings
    tasks: list[str] | None = None
    """Tasks for which the student is trained; null is all."""

    def wanted_for(self, task: str) -> bool:
        """Whether the student is trained for a task."""
        return self.tasks is None or task in self.tasks

    @model_validator(mode="after")
    def _possible(self) -> "StudentSettings":
        if self.variant_policy == "none" and not self.loss.labels + self.loss.soft_labels:
            raise ValueError("nothing would be learned: without variants loss.labels or loss.soft_labels must be above 0")
        if self.variant_policy != "none" and self.initial_weights == "random":
            raise ValueError("perturbations do not fit random embeddings; set variant_policy: none or initial_weights: teacher")
        return self


class ControlSettings(Settings):
    """A student that differs from another in nothing but that it sees no variants."""

    control_of: str


class SurrogateSettings(StudentSettings):
    """The section ``distill`` with ``surrogate`` on top: a student of soft labels alone, whose checkpoints give gradients."""

    checkpoints: Positive
    """Saved evenly along its training; variants follow their gradients in turn."""

    @model_validator(mode="after")
    def _can_learn(self) -> "SurrogateSettings":
        if self.initial_weights == "random":
            raise ValueError("perturbations of the teacher's embeddings do not fit random ones; set initial_weights: teacher")
        if not self.loss.labels + self.loss.soft_labels:
            raise ValueError("a surrogate sees clean inputs alone, so loss.labels or loss.soft_labels must be above 0")
        return self


class EvaluationSettings(Settings):
    """Section ``evaluate``."""

    bootstrap_resamples: Annotated[int, Field(ge=100)]
    timed_rows: Positive
    """Test rows whose latency is measured, spread evenly over the split."""


def _folder(store: str) -> str:
    if "://" in store:
        raise ValueError("the store is a folder, not an address; mount the bucket and name its folder")
    return store


class RuntimeSettings(Settings):
    """Section ``runtime``: speed, never results (except dropout where world_size is above 1); no stage tracks it."""

    store: Annotated[str, Field(min_length=1), AfterValidator(_folder)]
    """Folder of finished shards and models. Nodes that share it write there; others send their shards back."""
    ray_address: str | None
    """Of a running Ray cluster; null starts Ray on this machine. RAY_ADDRESS in the environment takes precedence."""
    workers: Annotated[int, Field(ge=0)] | None
    """Most worker processes; null is one per GPU, or one per core without GPUs; 0 works in this process, without Ray."""
    max_bytes: Positive | None
    """Most bytes that one run of augment may add to the store; a run that needs more fails before it starts."""
    world_size: Positive
    """Processes that train one student together, each with its own dropout."""
    dataloader_num_workers: Annotated[int, Field(ge=0)]
    save_steps: Annotated[int, Field(ge=0)]
    """Steps between two checkpoints of a training; 0 saves at the end of each epoch alone."""
    report_to: list[str]
    """Integrations of transformers.Trainer, such as dvclive."""

    @property
    def store_folder(self) -> Path:
        """``store`` as a path."""
        return Path(self.store)
