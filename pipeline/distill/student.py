"""A student before training: a model of any depth and width, initialised from the teacher or another model."""

import copy
import re
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    set_seed,
)

from pipeline.config.errors import PipelineError
from pipeline.config.settings import Checkpoint, SizeSettings
from pipeline.distill.narrowing import NARROWABLE, Narrowing, head_positions, spread
from pipeline.models.architectures import FIRST_LAYER_APART
from pipeline.models.folder import ModelFolder
from pipeline.models.forward import head_of, word_embeddings
from pipeline.models.loading import check_classifier, load_classifier

LAYER_NUMBER = re.compile(r"\.(?:layer|layers|h)\.(\d+)\.")


@dataclass(frozen=True)
class Student:
    """A student before its first step."""

    model: PreTrainedModel
    map: Tensor | None
    """[teacher's embedding width, student's]: maps perturbations to the student's embeddings; None if they share one space."""
    facts: dict[str, Any]
    """For the model card."""
    new_head: bool = False
    """Whether the last layer starts at random."""

    def fresh_share(self) -> float:
        """Share of the weights that start at random although the student is cut from a model."""
        counts = [self.facts.get(f"parameters_{how}", 0) for how in ("fresh", "copied", "mapped")]
        return float(counts[0] / max(sum(counts), 1))


def make_student(teacher_folder: ModelFolder, size: SizeSettings, seed: int) -> Student:
    """Build a student of the given size.

    Raises:
        PipelineError: the sizes do not fit the model it is cut from, or that has another tokenizer.
    """
    teacher = load_classifier(teacher_folder)
    set_seed(seed % 2**32)
    checkpoint = ModelFolder(size.initial_weights.checkpoint) if isinstance(size.initial_weights, Checkpoint) else None
    source = teacher if checkpoint is None else _source(checkpoint, teacher_folder)
    chosen = chosen_layers(size, source.config.num_hidden_layers)
    config = smaller_config(source.config, size, chosen)
    model = cast(PreTrainedModel, AutoModelForSequenceClassification.from_config(config))
    if size.initial_weights == "random":
        return Student(model, None, {"initial_weights": "random"}, new_head=True)
    table, own = word_embeddings(source), word_embeddings(model)
    linear, error = (None, 0.0) if table.shape == own.shape else principal_map(table, own.shape[1])
    copied, mapped, fresh, of_head = _fill(model, source, chosen, _narrowing(source.config, config, linear))
    new_head = of_head or (checkpoint is not None and not checkpoint.has_regression_head)
    if checkpoint is not None:
        linear, error = least_squares_map(word_embeddings(teacher), word_embeddings(model))
    facts = {
        "initial_weights": "teacher" if checkpoint is None else "checkpoint",
        "layers": chosen,
        "parameters_copied": copied,
        "parameters_mapped": mapped,
        "parameters_fresh": fresh,
        "embedding_error": round(error, 4),
    }
    return Student(model, linear, facts, new_head)


def _source(checkpoint: ModelFolder, teacher: ModelFolder) -> PreTrainedModel:
    """A checkpoint that the initial weights are cut from, with a head for the teacher's labels."""
    check_start(checkpoint, teacher, teacher.tokenizer.model_max_length)
    return load_classifier(checkpoint, teacher.task)


def check_start(checkpoint: ModelFolder, teacher: ModelFolder, max_length: int) -> None:
    """Reject a model to start from that cannot read rows of the ``teacher``'s tokenizer, up to ``max_length`` tokens long.

    Raises:
        PipelineError: it has another tokenizer, takes fewer tokens, or is not complete.
    """
    if teacher.tokenizer_hash != checkpoint.tokenizer_hash:
        raise PipelineError(
            f"{checkpoint.source} has another tokenizer ({checkpoint.tokenizer_hash[:12]}) than the teacher "
            f"({teacher.tokenizer_hash[:12]}), so it cannot read the stored rows; choose a checkpoint that shares it"
        )
    if (longest := checkpoint.longest_input) < max_length:
        raise PipelineError(
            f"{checkpoint.source} takes at most {longest} tokens, stored rows have up to {max_length}; "
            f"choose another checkpoint, or set teacher.max_length to {longest} or less"
        )
    check_classifier(checkpoint, new_head=True)


def check_size(model: ModelFolder, size: SizeSettings) -> None:
    """Raise a ``PipelineError`` for sizes that do not fit a model; reads its configuration alone."""
    smaller_config(model.config, size, chosen_layers(size, model.config.num_hidden_layers))


def chosen_layers(size: SizeSettings, depth: int) -> list[int]:
    """Which of the ``depth`` layers of the model the student keeps, in order.

    A number n keeps layers spread evenly from the first: 3 of 6 are 0, 2 and 4.
    """
    if size.teacher_layers is not None:
        chosen = size.teacher_layers
    else:
        shared = depth if size.depth is None else max(round(size.depth * depth), 1)
        number = size.num_hidden_layers or shared
        chosen = [place * depth // number for place in range(number)]
    if max(chosen) >= depth or len(chosen) > depth or sorted(set(chosen)) != chosen:
        raise PipelineError(
            f"{len(chosen)} layers ({', '.join(map(str, chosen))}) cannot be kept of {depth}, numbered 0 to {depth - 1}; give "
            "num_hidden_layers up to that depth, or teacher_layers as different numbers in rising order"
        )
    return chosen


def smaller_config(model: PreTrainedConfig, size: SizeSettings, chosen: list[int]) -> PreTrainedConfig:
    """A model's configuration with the student's sizes."""
    if model.model_type in FIRST_LAYER_APART and chosen[0] and size.initial_weights != "random":
        raise PipelineError(
            f"teacher_layers: {chosen}: the first layer of a {model.model_type!r} lacks a norm that others have; begin with 0"
        )
    config = copy.deepcopy(model)
    config.num_hidden_layers = len(chosen)
    if getattr(config, "layer_types", None):
        config.layer_types = [model.layer_types[number] for number in chosen]
    if any((size.width, size.hidden_size, size.num_attention_heads, size.intermediate_size)):
        _narrow(config, size)
    return config


def _widths(config: PreTrainedConfig, size: SizeSettings) -> dict[str, int | None]:
    """The student's widths by the names of a configuration; None for one that stays as it is."""
    heads, head_size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    if size.width is not None:
        kept = max(round(size.width * heads), 1)
        inner = max(round(getattr(config, _inner(config)) * kept / heads), 1)
        return {"hidden_size": kept * head_size, "num_attention_heads": kept, _inner(config): inner}
    number = size.num_attention_heads or (size.hidden_size and max(size.hidden_size // head_size, 1))
    return {"hidden_size": size.hidden_size, "num_attention_heads": number, _inner(config): size.intermediate_size}


def _narrow(config: PreTrainedConfig, size: SizeSettings) -> None:
    """Replace the widths in a configuration by the student's."""
    if config.model_type not in NARROWABLE:
        raise PipelineError(
            f"a {config.model_type!r} student cannot be narrower than its teacher, only shallower: "
            "leave out width, hidden_size, num_attention_heads and intermediate_size"
        )
    as_wide = getattr(config, "embedding_size", None) == config.hidden_size
    head_size = config.hidden_size // config.num_attention_heads
    for name, value in _widths(config, size).items():
        most = getattr(config, name)
        if value is not None and value > most:
            raise PipelineError(f"{name}: {value} is more than the {most} of the model that the student is cut from")
        setattr(config, name, value or most)
    if as_wide:
        config.embedding_size = config.hidden_size
    if hasattr(config, "pooler_hidden_size"):  # DeBERTa's, which its constructor copies from the hidden size
        config.pooler_hidden_size = config.hidden_size
    width, heads = config.hidden_size, config.num_attention_heads
    if width % heads:
        raise PipelineError(f"hidden_size: {width} is not divisible by num_attention_heads: {heads}")
    if size.initial_weights != "random" and width != heads * head_size:
        raise PipelineError(
            f"hidden_size: {width} and num_attention_heads: {heads} make heads of {width // heads}; the heads that the student "
            f"keeps are {head_size} wide, so give hidden_size: {heads * head_size}, num_attention_heads: {heads}"
        )


def principal_map(table: Tensor, width: int) -> tuple[Tensor, float]:
    """The linear map [teacher's width, ``width``] from which a narrower table is made, and its reconstruction error.

    Its columns are the leading right singular vectors of the table, so that table · map · mapᵀ is the closest table of that
    rank (Eckart and Young 1936). The error is the share of the table's squared length that is lost.
    """
    values, vectors = torch.linalg.eigh(table.detach().double().T @ table.detach().double())
    leading = vectors[:, -width:].flip(1)
    # An eigenvector's sign is arbitrary: make its largest element positive, so that equal tables give equal maps.
    signs = leading.gather(0, leading.abs().argmax(dim=0, keepdim=True)).sign()
    error = 1.0 - float(values[-width:].sum() / values.sum())
    return (leading * signs).float(), max(error, 0.0)


def least_squares_map(table: Tensor, own: Tensor) -> tuple[Tensor, float]:
    """The linear map [teacher's width, student's] that takes a table nearest to another of the same words, and its error.

    The error is the share of the other table's squared length that the map does not reach.
    """
    shared = min(len(table), len(own))
    given, wanted = table[:shared].detach().double(), own[:shared].detach().double()
    linear = torch.linalg.pinv(given.T @ given, hermitian=True) @ (given.T @ wanted)
    error = float((given @ linear - wanted).square().sum() / wanted.square().sum())
    return linear.float(), error


def _narrowing(teacher: PreTrainedConfig, own: PreTrainedConfig, linear: Tensor | None) -> Narrowing | None:
    """How layers become narrower; None where they cannot, or the residual stream does not follow the embeddings' map."""
    if teacher.model_type not in NARROWABLE or (linear is None and own.hidden_size != teacher.hidden_size):
        return None
    head_size = teacher.hidden_size // teacher.num_attention_heads
    return Narrowing(
        stream=torch.eye(teacher.hidden_size) if linear is None else linear,
        heads=head_positions(own.num_attention_heads, teacher.num_attention_heads, head_size),
        inner=spread(getattr(own, _inner(own)), getattr(teacher, _inner(teacher))),
    )


@torch.no_grad()
def _fill(
    model: PreTrainedModel, teacher: PreTrainedModel, chosen: list[int], narrowing: Narrowing | None
) -> tuple[int, int, int, bool]:
    """Give the student the teacher's weights where they fit.

    Returns how many were copied, mapped and left fresh, and whether the weight of a regression's last layer was.
    """
    source, head = teacher.state_dict(), head_of(model).weight if model.config.num_labels == 1 else None
    fresh_head = False
    copied = mapped = fresh = 0
    for name, parameter in model.named_parameters():
        theirs = _teacher_name(name, chosen)
        held = source.get(theirs)
        if held is not None and held.shape == parameter.shape:
            parameter.copy_(held)
            copied += parameter.numel()
            continue
        narrowed = narrowing.parameter(theirs, held) if narrowing and held is not None else None
        if narrowed is not None and narrowed.shape == parameter.shape:
            parameter.copy_(narrowed)
            mapped += parameter.numel()
        else:
            fresh += parameter.numel()
            fresh_head |= parameter is head
    return copied, mapped, fresh, fresh_head


def _teacher_name(name: str, chosen: list[int]) -> str:
    """What a student's parameter is called in the teacher, whose layers are numbered otherwise."""
    return LAYER_NUMBER.sub(lambda found: found.group(0).replace(found.group(1), str(chosen[int(found.group(1))])), name, 1)


def _inner(config: PreTrainedConfig) -> str:
    """What a configuration calls the width of its feed-forward layers."""
    return "hidden_dim" if hasattr(config, "hidden_dim") else "intermediate_size"
