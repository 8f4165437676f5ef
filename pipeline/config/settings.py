"""Every section of params.yaml except ``tasks`` as a strict model: the meaning and the valid values of each setting."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from pipeline.config.params import CREDENTIALS, Settings

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(ge=0)]

BUCKETS = ("s3", "gs", "abfs", "abfss")
"""Schemes of URLs that may name a store; pyarrow.fs reads and writes them."""

Precision = Literal["float32", "bfloat16"]
"""Precision of the frozen teacher's matrix products; the classification head, norms and gradients stay in float32."""


class TeacherSettings(Settings):
    model: str
    """Hub id or folder: a pretrained model, or a classifier that is already fine-tuned on the task."""
    fine_tune: bool
    max_length: Annotated[int, Field(ge=2)]
    """Longest input in tokens, special tokens included; longer inputs are truncated."""


class TrainingSettings(Settings):
    """How transformers.Trainer trains a model; most names are those of TrainingArguments."""

    num_train_epochs: Positive
    batch_size: Positive
    """Rows of an optimizer step, over all processes and accumulated micro-batches."""
    gradient_accumulation_steps: Positive
    learning_rate: Annotated[float, Field(gt=0)]
    lr_scheduler_type: Literal["linear", "cosine", "constant_with_warmup"]
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Weight
    max_grad_norm: Weight
    precision: Literal["float32", "bfloat16", "float16"]
    """Precision of matrix products; weights stay in float32."""
    seed: int


class MaskedLMSettings(TrainingSettings):
    """Section ``masked_lm``: the masked language model of recipes with masked_lm, fine-tuned on the texts."""

    model: str | None
    """Hub id or folder of an encoder with the teacher's tokenizer; null is the teacher's ``model``."""
    fine_tune: bool
    mlm_probability: Annotated[float, Field(gt=0, lt=1)]
    max_rows: Positive | None
    """Most rows read of a split; null reads all."""


class InferenceSettings(Settings):
    """Section ``inference``: how the frozen teacher runs."""

    rows_per_shard: Positive
    """Approximate number of examples in a shard."""
    batch_size: Positive
    precision: Precision


class Effect(Settings):
    """The effect from which epsilon is calibrated."""

    divergence: Annotated[float, Field(gt=0)]
    """Mean growth, by δ, of the divergence between the teacher's output on the clean input and that of the model whose gradient
    is followed: KL in nats; for a regression the squared error as a share of the variance of the teacher's outputs."""


class PerturbationSettings(Settings):
    """Section ``perturbation``: the search for δ on word embeddings by projected gradient ascent."""

    gradient_from: Literal["surrogate", "teacher", "noise"]
    """The model whose output's divergence the search increases; ``noise`` is a random direction, as a baseline."""
    norm: Literal["l2", "linf"]
    epsilon: Annotated[float, Field(gt=0)] | Effect
    """Bound on the norm as a fraction of the mean norm of a word embedding, or the effect from which it is calibrated."""
    init: Annotated[float, Field(ge=0, le=1)]
    """Norm of the random initial δ as a fraction of epsilon. The teacher's own divergence has no gradient at δ = 0."""
    num_steps: Positive
    step_size: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _has_a_gradient(self) -> "PerturbationSettings":
        if self.gradient_from == "teacher" and not self.init:
            raise ValueError("the teacher's divergence from its clean output has no gradient at δ = 0; set init above 0")
        return self


CodecName = Literal["float16", "int8", "sign"]

Operation = Literal["mask", "delete", "swap", "span"]
OPERATIONS: tuple[Operation, ...] = ("mask", "delete", "swap", "span")
"""Text edits on token ids."""

Step = Literal["mask", "delete", "swap", "span", "masked_lm", "copy", "perturb"]
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
    """Replacement of words by candidates of a masked language model (TinyBERT, Jiao et al. 2020)."""

    replace: Share
    """Probability that a word is replaced; 0.4 in TinyBERT."""
    candidates: Positive
    """Per word; 15 in TinyBERT."""


class AugmentSettings(Settings):
    """Section ``augment`` with the sections ``perturbation`` and ``inference``: the stored variants."""

    variants: Annotated[int, Field(ge=0)]
    recipes: Annotated[list[Recipe], Field(min_length=1)]
    """Used in turn: variant 1 has the first recipe."""
    text_edits: TextEditSettings
    masked_lm: ReplacementSettings
    codec: CodecName
    calibration_rows: Positive
    """Size of the sample on which epsilon is calibrated and its effect measured."""
    seed: int
    perturbation: PerturbationSettings
    inference: InferenceSettings

    @model_validator(mode="after")
    def _possible(self) -> "AugmentSettings":
        for recipe in self.recipes:
            if len(set(recipe)) < len(recipe):
                error = "contains a step twice"
            elif "copy" in recipe and len(recipe) > 1:
                error = "combines copy with another step"
            elif "masked_lm" in recipe[1:]:
                error = "replaces words after another edit; masked_lm comes first"
            elif "perturb" in recipe[:-1]:
                error = "edits the text after the perturbation; perturb comes last"
            else:
                continue
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


class Checkpoint(Settings):
    checkpoint: str
    """Hub id or folder of another pretrained model with the teacher's tokenizer, as safetensors."""


VariantPolicy = Literal["curriculum", "rotate", "all", "none"]


class LossSettings(Settings):
    """Weights and form of a student's loss."""

    labels: Weight
    """Weight of the gold labels of clean inputs; rows without a label contribute nothing."""
    soft_labels: Weight
    """Weight of the teacher's logits on clean inputs."""
    variants: Weight
    """Weight of the teacher's logits on variants."""
    form: Literal["kl", "mse"]
    """Distance to the teacher's logits; a regression always uses the squared error."""
    temperature: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _something_to_learn(self) -> "LossSettings":
        if not self.labels + self.soft_labels + self.variants:
            raise ValueError("one of the weights labels, soft_labels and variants must be above 0")
        return self


class Size(Settings):
    """The sizes of a student that differ from those of the model that provides its initial weights."""

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
    def _stated_once(self) -> "Size":
        if sum(value is not None for value in (self.depth, self.num_hidden_layers, self.teacher_layers)) > 1:
            raise ValueError("set only one of depth, num_hidden_layers and teacher_layers")
        sizes = (self.hidden_size, self.num_attention_heads, self.intermediate_size)
        if self.width is not None and any(size is not None for size in sizes):
            raise ValueError("set either width, or hidden_size with num_attention_heads and intermediate_size")
        return self


class SizeSettings(Size):
    """The size of a student and the origin of its initial weights."""

    initial_weights: Literal["teacher", "random"] | Checkpoint


class StudentSettings(SizeSettings):
    """The section ``distill`` with an entry of ``students`` on top: the size and training of a student."""

    variant_policy: VariantPolicy
    """The stored variants of an example that a step uses. ``curriculum``: the one whose surrogate checkpoint has the same
    training progress as the student, or ``rotate`` without surrogates; ``rotate``: one per epoch in turn; ``all``; ``none``:
    clean inputs only, plain distillation."""
    loss: LossSettings
    training: TrainingSettings
    tasks: list[str] | None = None
    """The tasks for which the student is trained; null is all."""

    def wanted_for(self, task: str) -> bool:
        return self.tasks is None or task in self.tasks

    @model_validator(mode="after")
    def _possible(self) -> "StudentSettings":
        if self.variant_policy == "none" and not self.loss.labels + self.loss.soft_labels:
            raise ValueError("without variants loss.labels or loss.soft_labels must be above 0")
        if self.variant_policy != "none" and self.initial_weights == "random":
            raise ValueError("perturbations do not fit random embeddings; set variant_policy: none or initial_weights: teacher")
        return self


class ControlSettings(Settings):
    control_of: str
    """The student from which the control differs only by training without variants."""


class SurrogateSettings(StudentSettings):
    """The section ``distill`` with ``surrogate`` on top: students of soft labels only, whose checkpoints give gradients."""

    sizes: list[Size] = Field(default_factory=list)
    """One surrogate has each of these sizes; without them there is one, of the section's own size."""
    checkpoints: Positive
    """Number of checkpoints, saved at equal intervals; variants follow their gradients in turn."""

    def each(self) -> list["SurrogateSettings"]:
        """The settings of every surrogate, without ``sizes``."""
        shared = self.model_dump(exclude={"sizes"})
        sizes = [size.model_dump(exclude_none=True) for size in self.sizes]
        return [SurrogateSettings.model_validate(shared | size) for size in sizes or [{}]]

    @model_validator(mode="after")
    def _can_learn(self) -> "SurrogateSettings":
        if self.initial_weights == "random":
            raise ValueError("perturbations of the teacher's embeddings do not fit random ones; set initial_weights: teacher")
        if not self.loss.labels + self.loss.soft_labels:
            raise ValueError("a surrogate trains on clean inputs, so loss.labels or loss.soft_labels must be above 0")
        if self.sizes and Size.model_validate(self.model_dump(include=set(Size.model_fields))) != Size():
            raise ValueError("give its size either in sizes, or depth, width and so on")
        return self


class EvaluationSettings(Settings):
    """Section ``evaluate``."""

    bootstrap_resamples: Annotated[int, Field(ge=100)]
    timed_rows: Positive
    """Test rows whose latency is measured, spread evenly over the split."""


class RuntimeSettings(Settings):
    """Section ``runtime``: affects speed, not results (except dropout if world_size is above 1); no stage tracks it."""

    store: Annotated[str, Field(min_length=1)]
    """Finished shards and models: a folder, which all nodes of a Ray cluster have at the same path, or a URL of ``BUCKETS``."""
    cache: Annotated[str, Field(min_length=1)]
    """Folder for files that were read from a bucket; ``~`` is the home directory on each machine."""
    cache_bytes: Positive
    """Most bytes of finished entries in the cache; what one training reads must fit."""
    workers: Annotated[int, Field(ge=0)] | None
    """Most worker processes; null is one per GPU, or one per core without GPUs; 0 runs in this process, without Ray."""
    max_bytes: Positive | None
    """Most bytes that one run of augment may add to the store; a run that needs more fails before it starts."""
    world_size: Positive
    """Processes that train one student together, each with its own dropout."""
    dataloader_num_workers: Annotated[int, Field(ge=0)]
    save_steps: Annotated[int, Field(ge=0)]
    """Steps between two checkpoints of a training; 0 saves only at the end of each epoch."""
    report_to: list[str]
    """Integrations of transformers.Trainer, such as dvclive."""

    @field_validator("store")
    @classmethod
    def _is_known(cls, store: str) -> str:
        url = urlsplit(store) if "://" in store else None
        if url is not None and url.scheme not in BUCKETS:
            raise ValueError(f"is no folder, and its URL does not begin with {'://, '.join(BUCKETS)}://")
        if url is not None and (url.password or (url.username and not url.scheme.startswith("abfs"))):
            raise ValueError(CREDENTIALS)
        return store
