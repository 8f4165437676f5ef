"""Student surgery: a model of any depth and width whose first weights come from the teacher's, or from another's.

Knows two models' parameters and the linear map between their word embeddings; must not know data or losses.
"""

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from pipeline.config.errors import PipelineError
from pipeline.config.params import Settings
from pipeline.corpus.task import Task
from pipeline.distill.narrowing import NARROWABLE, Narrowing, head_positions, spread
from pipeline.models.architectures import FIRST_LAYER_APART
from pipeline.models.folder import ModelFolder, answers_values, load_tokenizer, tokenizer_hash
from pipeline.models.forward import head_of, word_embeddings
from pipeline.models.loading import check_classifier, load_classifier

Size = Annotated[int, Field(ge=1)] | None
LAYER_NUMBER = re.compile(r"\.(?:layer|layers|h)\.(\d+)\.")


class Checkpoint(Settings):
    """Another pretrained model with the teacher's tokenizer, whose weights a student starts from."""

    checkpoint: str
    """Hub id or folder, as safetensors."""


class SizeSettings(Settings):
    """What is smaller than in the model whose weights it starts from; what is absent is as there."""

    start: Literal["teacher", "scratch"] | Checkpoint
    """Where the first weights come from: copied or mapped from the teacher's or another model's, or random."""
    layers: Size | list[Annotated[int, Field(ge=0)]] = None
    """How many layers, spread evenly over those there, or which of them, counted from 0."""
    hidden: Size = None
    heads: Size = None
    intermediate: Size = None


@dataclass(frozen=True)
class Student:
    """A student before its first step."""

    model: PreTrainedModel
    map: Tensor | None
    """[teacher's embedding width, student's]: carries a perturbation over. None where both share the table's space."""
    facts: dict[str, Any]
    """How it came about, for its card."""
    new_head: bool = False
    """Whether its last layer begins at random."""

    def fresh_share(self) -> float:
        """Of the weights of a student that is cut from a model, the share that begins at random; 0 for one from scratch."""
        counts = [self.facts.get(f"parameters_{how}", 0) for how in ("fresh", "copied", "mapped")]
        return float(counts[0] / max(sum(counts), 1))


def make_student(teacher_folder: Path, size: SizeSettings, seed: int) -> Student:
    """Build a student of the given size.

    Raises:
        PipelineError: the model it starts from has no such layers, another tokenizer, or the sizes do not go together.
    """
    teacher = load_classifier(teacher_folder)
    set_seed(seed % 2**32)
    source = _source(teacher, teacher_folder, size.start)
    chosen = chosen_layers(size.layers, source.config.num_hidden_layers)
    config = smaller_config(source.config, size, chosen)
    model = cast(PreTrainedModel, AutoModelForSequenceClassification.from_config(config))
    if size.start == "scratch":
        return Student(model, None, {"start": "scratch"}, new_head=True)
    table, own = word_embeddings(source), word_embeddings(model)
    linear, error = (None, 0.0) if table.shape == own.shape else principal_map(table, own.shape[1])
    copied, mapped, fresh, of_head = _fill(model, source, chosen, _narrowing(source.config, config, linear))
    new_head = of_head or (isinstance(size.start, Checkpoint) and not answers_values(size.start.checkpoint))
    if isinstance(size.start, Checkpoint):
        linear, error = least_squares_map(word_embeddings(teacher), word_embeddings(model))
    facts = {
        "start": "checkpoint" if isinstance(size.start, Checkpoint) else "teacher",
        "layers": chosen,
        "parameters_copied": copied,
        "parameters_mapped": mapped,
        "parameters_fresh": fresh,
        "embedding_error": round(error, 4),
    }
    return Student(model, linear, facts, new_head)


def _source(teacher: PreTrainedModel, folder: Path, start: str | Checkpoint) -> PreTrainedModel:
    """The model whose weights a student starts from, its head one of the teacher's labels."""
    if not isinstance(start, Checkpoint):
        return teacher
    tokenizer, checkpoint = load_tokenizer(folder), ModelFolder(start.checkpoint)
    check_start(checkpoint, tokenizer, tokenizer.model_max_length)
    return load_classifier(checkpoint, Task.read(folder))


def check_start(checkpoint: ModelFolder, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Refuse a model to start from that cannot read what a teacher stored; no weight is read.

    Args:
        checkpoint: the model.
        tokenizer: the teacher's.
        max_length: the most tokens of a stored row.

    Raises:
        PipelineError: it has another tokenizer, takes fewer tokens, or is not whole.
    """
    if tokenizer_hash(tokenizer) != checkpoint.tokenizer_hash:
        raise PipelineError(
            f"{checkpoint.source} has another tokenizer ({checkpoint.tokenizer_hash[:12]}) than the teacher "
            f"({tokenizer_hash(tokenizer)[:12]}), so it cannot read what is stored; start from a checkpoint that shares it"
        )
    if (longest := checkpoint.longest_input) < max_length:
        raise PipelineError(
            f"{checkpoint.source} takes at most {longest} tokens, stored rows have up to {max_length}; "
            f"start from another checkpoint, or set teacher.max_length to {longest} or less"
        )
    check_classifier(checkpoint, new_head=True)


def check_size(model: ModelFolder, size: SizeSettings) -> None:
    """Refuse a size that a model cannot be cut to, by its configuration alone.

    Raises:
        PipelineError: it has no such layers, or the widths do not go together.
    """
    smaller_config(model.config, size, chosen_layers(size.layers, model.depth))


def chosen_layers(wanted: int | list[int] | None, depth: int) -> list[int]:
    """Which of the teacher's layers the student has, in order.

    A number n takes layers spread evenly from the first: 3 of 6 are 0, 2 and 4.
    """
    if wanted is None:
        return list(range(depth))
    chosen = wanted if isinstance(wanted, list) else [number * depth // wanted for number in range(wanted)]
    if not chosen or max(chosen) >= depth or len(chosen) > depth or sorted(set(chosen)) != chosen:
        raise PipelineError(
            f"layers: {wanted} cannot be taken from a teacher of {depth} layers, numbered 0 to {depth - 1}; "
            "give a number up to that depth or different layers in rising order"
        )
    return chosen


def smaller_config(teacher: PreTrainedConfig, size: SizeSettings, chosen: list[int]) -> PreTrainedConfig:
    """The teacher's configuration with the student's sizes."""
    if teacher.model_type in FIRST_LAYER_APART and chosen[0] and size.start != "scratch":
        raise PipelineError(
            f"layers: {chosen}: the first layer of a {teacher.model_type!r} lacks a norm that the others have and that one of "
            "them would lose in its place; begin the list with 0"
        )
    config = copy.deepcopy(teacher)
    config.num_hidden_layers = len(chosen)
    if getattr(config, "layer_types", None):
        config.layer_types = [teacher.layer_types[number] for number in chosen]
    if any((size.hidden, size.heads, size.intermediate)):
        _narrow(config, size)
    return config


OWN_NAMES = {"hidden_size": "hidden", "num_attention_heads": "heads"}
"""What we call what a configuration calls otherwise; the width inside a layer has other names in each."""


def _narrow(config: PreTrainedConfig, size: SizeSettings) -> None:
    """Put the widths asked for in place of the teacher's."""
    if config.model_type not in NARROWABLE:
        raise PipelineError(
            f"a {config.model_type!r} student cannot be narrower than its teacher, only shallower: "
            "leave out hidden, heads and intermediate, and give layers"
        )
    as_wide = getattr(config, "embedding_size", None) == config.hidden_size
    head_size = config.hidden_size // config.num_attention_heads
    heads = size.heads or (size.hidden and max(size.hidden // head_size, 1))
    wanted = {"hidden_size": size.hidden, "num_attention_heads": heads, _inner(config): size.intermediate}
    for name, value in wanted.items():
        most = getattr(config, name)
        if value is not None and value > most:
            own = OWN_NAMES.get(name, "intermediate")
            raise PipelineError(
                f"{own}: {value} is more than the {most} of what the student is cut from; it is at most as wide"
            )
        setattr(config, name, value or most)
    if as_wide:
        config.embedding_size = config.hidden_size
    if hasattr(config, "pooler_hidden_size"):  # DeBERTa's, which its constructor copies from the hidden size
        config.pooler_hidden_size = config.hidden_size
    width, heads = config.hidden_size, config.num_attention_heads
    if width % heads:
        raise PipelineError(
            f"hidden: {width} cannot be shared by heads: {heads}; the number of heads must divide the hidden size"
        )
    if size.start != "scratch" and width != heads * head_size:
        raise PipelineError(
            f"hidden: {width} and heads: {heads} make heads of {width // heads}; those that the student is cut from are "
            f"{head_size} wide and stay whole, so give hidden: {heads * head_size}, heads: {heads}"
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
