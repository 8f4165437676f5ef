"""A model run from word embeddings as from token ids: every row gets the logits that transformers gives it alone.

Also what is computed from logits: distances between them, and the units of a regression.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel

from pipeline.config.corpus import Kind
from pipeline.corpus.encoding import Batch, Integers, length_buckets, model_inputs
from pipeline.corpus.task import Floats
from pipeline.models.architectures import DECODERS, POSITIONS_FROM_IDS, uncounted_id

Values = TypeVar("Values", Floats, Tensor)


def bare(model: torch.nn.Module) -> PreTrainedModel:
    """A model without the wrapper of data-parallel training."""
    return cast(PreTrainedModel, getattr(model, "module", model))


def word_embeddings(model: PreTrainedModel) -> Tensor:
    """The word-embedding table [vocabulary, width] as the model reads it; its width need not be the model's hidden size.

    It is the weight itself, unless the model scales it on reading, as Gemma does.
    """
    words = model.get_input_embeddings()
    scale = getattr(words, "embed_scale", None)
    return cast(Tensor, words.weight if scale is None else words.weight * scale)


def embed(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """Word embeddings [rows, tokens, width] of token ids [rows, tokens], as the model reads them."""
    return cast(Tensor, bare(model).get_input_embeddings()(input_ids))


def logits_from_ids(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Logits [rows, outputs] of rows padded on the right: those that transformers gives each row alone."""
    return logits_from_embeddings(model, batch, embed(model, batch["input_ids"]))


def logits_from_embeddings(model: PreTrainedModel, batch: Batch, embeddings: Tensor) -> Tensor:
    """Logits [rows, outputs] from word embeddings [rows, tokens, width], which replace those of ``batch["input_ids"]``.

    Rows must be padded on the right, as ``attention_mask`` says. The ids still say which tokens are padding tokens *within* a
    row, from which some models derive positions (RoBERTa) or the token that the head reads (decoders). Embeddings on padding
    are not read: MobileBERT would see the first of them from the last token.
    """
    inner = bare(model)
    config = inner.config
    inputs = {name: value for name, value in model_inputs(batch).items() if name != "input_ids"}
    inputs["inputs_embeds"] = embeddings.masked_fill(batch["attention_mask"].unsqueeze(-1) == 0, 0.0)
    if config.model_type in POSITIONS_FROM_IDS:
        inputs["position_ids"] = _positions_from_ids(config, batch)
    if config.model_type == "xlnet":
        inputs = _with_padding_first(inputs)
    with ExitStack() as hooks:
        if config.num_labels == 1:
            hooks.enter_context(_float32_heads(inner))
        if config.model_type in DECODERS:
            hooks.enter_context(_head_reading(inner, tokens_read(config, batch)))
            return cast(Tensor, model(**inputs, use_cache=False).logits)
        return cast(Tensor, model(**inputs).logits)


def tokens_read(config: PreTrainedConfig, batch: Batch) -> Tensor:
    """Position of the token of each row that a decoder's head reads, [rows], as transformers derives it from the row's ids.

    It is the last token that is not the configuration's padding token, or the first token if all are; without a padding token
    in the configuration it is the last token.
    """
    read = batch["attention_mask"] == 1
    pad = config.get_text_config().pad_token_id
    if pad is not None:
        read = read & (batch["input_ids"] != pad)
    return (torch.arange(read.shape[1], device=read.device) * read).amax(dim=1)


def _positions_from_ids(config: PreTrainedConfig, batch: Batch) -> Tensor:
    """Positions [rows, tokens] as RoBERTa and similar types count them: padding tokens, even within a text, do not count."""
    pad = uncounted_id(config)
    counted = (batch["input_ids"] != pad).long()
    return counted.cumsum(dim=1) * counted + pad


def logits_at(model: PreTrainedModel, batch: Batch, rows: Tensor, places: Tensor) -> Tensor:
    """Logits [n, vocabulary] of a masked language model at n tokens of a batch, given by ``rows`` and ``places``, each [n].

    Where the architecture allows it, no other token is projected to the vocabulary, which is half the work of a small model.
    """
    with bare(model).get_output_embeddings().register_forward_pre_hook(_only(rows, places)):
        logits = logits_from_ids(model, batch)
    return logits[:, 0] if logits.shape[:2] == (len(rows), 1) else logits[rows, places]


def _only(rows: Tensor, places: Tensor) -> Callable[..., tuple[Tensor]]:
    """A hook that passes a module only some tokens of its input [rows, tokens, width], as [n, 1, width]."""
    return lambda _, hidden: (hidden[0][rows, places].unsqueeze(1),)


@contextmanager
def _head_reading(model: PreTrainedModel, places: Tensor) -> Iterator[None]:
    """Make a decoder's head read one token of each row, ``places`` [rows].

    From embeddings transformers would read the last token, even if it is padding, and rejects batches if the configuration has
    no padding token. The configuration is restored, since a saved one decides what is served.
    """
    config = model.config.get_text_config()
    named = config.pad_token_id
    (head,) = (part for part in model.children() if part is not model.base_model)
    config.pad_token_id = 0 if named is None else named
    rows = torch.arange(places.shape[0], device=places.device)  # not len(), which would fix the number of rows on export
    try:
        with head.register_forward_pre_hook(_only(rows, places)):
            yield
    finally:
        config.pad_token_id = named


def head_of(model: PreTrainedModel) -> torch.nn.Linear:
    """The layer that computes the only output of a regression."""
    (head,) = _single_outputs(model)
    return head


def _single_outputs(model: PreTrainedModel) -> list[torch.nn.Linear]:
    """Searched outside the base model only: this runs in every pass, and the base model has hundreds of modules."""
    heads = [part for part in model.children() if part is not model.base_model]
    return [part for head in heads for part in head.modules() if isinstance(part, torch.nn.Linear) and part.out_features == 1]


@contextmanager
def _float32_heads(model: PreTrainedModel) -> Iterator[None]:
    """Compute the last layer of a regression in float32 within autocast.

    Its output is offset by the mean of the labels, whose deviation may be small in comparison; half precision keeps three
    digits of the sum.
    """

    def exactly(head: torch.nn.Linear, inputs: tuple[Tensor], _: Tensor) -> Tensor | None:
        device = inputs[0].device.type
        if not torch.is_autocast_enabled(device):
            return None
        with torch.autocast(device, enabled=False):
            return functional.linear(inputs[0].float(), head.weight, head.bias)

    with ExitStack() as hooks:
        for head in _single_outputs(model):
            hooks.enter_context(head.register_forward_hook(exactly))
        yield


def _with_padding_first(inputs: Batch) -> Batch:
    """Rows padded on the right, [rows, tokens] or [rows, tokens, width], as rows padded on the left."""
    mask = inputs["attention_mask"]
    tokens = mask.shape[1]
    source = torch.arange(tokens, device=mask.device) + mask.sum(dim=1, keepdim=True)
    source = torch.where(source >= tokens, source - tokens, source)
    return {
        name: torch.gather(value, 1, source if value.dim() == 2 else source.unsqueeze(-1).expand(value.shape))
        for name, value in inputs.items()
    }


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """Evaluation mode and no parameter gradients, so that a gradient flows to the input alone."""
    return cast(PreTrainedModel, model.requires_grad_(False).eval())


def freeze_unused(model: PreTrainedModel, batch: Batch) -> None:
    """Exclude parameters that no logit depends on from a training; several processes would wait for their gradients forever."""
    logits = logits_from_ids(model.eval(), batch)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(logits.sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)


def pick_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def divergence(clean: Tensor, perturbed: Tensor, kind: Kind) -> Tensor:
    """Distance of two outputs [rows, outputs], [rows]: KL(clean ‖ perturbed) in nats, or the squared error for regression."""
    if kind == "regression":
        return (clean - perturbed).square().sum(dim=-1)
    clean_log, perturbed_log = clean.log_softmax(dim=-1), perturbed.log_softmax(dim=-1)
    return (clean_log.exp() * (clean_log - perturbed_log)).sum(dim=-1)


def flipped(clean: Tensor, perturbed: Tensor, kind: Kind) -> Tensor:
    """Where the predicted class of two outputs [rows, outputs] differs, [rows]; nowhere for regression."""
    if kind == "regression":
        return torch.zeros(len(clean), dtype=torch.bool, device=clean.device)
    return torch.ne(clean.argmax(dim=-1), perturbed.argmax(dim=-1))


@torch.inference_mode()
def logits_of_rows(
    model: PreTrainedModel, lengths: Integers, inputs_at: Callable[[Integers], Batch], batch_size: int
) -> Floats:
    """Logits [rows, outputs] of rows with these ``lengths``, computed on the model's device in batches of similar length."""
    found = np.empty((len(lengths), int(model.config.num_labels or 1)), dtype=np.float32)
    for positions in length_buckets(lengths, batch_size):
        batch = {name: value.to(model.device) for name, value in inputs_at(positions).items()}
        found[positions] = logits_from_ids(model, batch).float().cpu().numpy()
    return found


@dataclass(frozen=True)
class Scale:
    """Standardisation of a regression's values: real value = mean + deviation · standardised value."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Floats, model: PreTrainedModel) -> "Scale":
        """The scale at which values [rows] have mean 0 and deviation 1, as far as the model's head can undo it.

        A head without a bias, as decoders have, cannot add a mean: there the values get a root mean square of 1.
        """
        mean = 0.0 if head_of(model).bias is None else float(values.mean())
        deviation = float(np.sqrt(np.square(values - mean).mean()))
        distinct = deviation > np.finfo(np.float32).eps * abs(mean)
        return cls(mean, deviation if distinct else 1.0)

    def reduced(self, values: Values) -> Values:
        """The standardised values of real ones of any shape."""
        return (values - self.mean) / self.deviation

    @torch.no_grad()
    def put_into(self, model: PreTrainedModel) -> None:
        """Make a model that predicts standardised values predict real ones."""
        head = head_of(model)
        head.weight.mul_(self.deviation)
        if head.bias is not None:
            head.bias.mul_(self.deviation).add_(self.mean)

    def take_out_of(self, model: PreTrainedModel) -> None:
        """Make a model that predicts real values predict standardised ones."""
        Scale(-self.mean / self.deviation, 1 / self.deviation).put_into(model)
