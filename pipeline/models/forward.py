"""A model run from word embeddings as from token ids: every row gets the logits that transformers gives it alone.

Knows loaded models and batches; must not know where a model comes from.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel

from pipeline.corpus.encoding import PARTNER_IDS, Batch, model_inputs
from pipeline.models.architectures import DECODERS, POSITIONS_FROM_IDS, uncounted_id


def bare(model: torch.nn.Module) -> PreTrainedModel:
    """A model without what data-parallel training wraps around it."""
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
    """Logits [rows, outputs] from word embeddings [rows, tokens, width] in place of those of ``batch["input_ids"]``.

    Rows must be padded on the right; ``attention_mask`` tells what is padding. The ids still say which tokens are padding
    tokens *within* a row, from which some models derive positions (RoBERTa) or the place that the head reads (decoders).
    Embeddings on padding are not read: MobileBERT would see the first of them from the last token.
    """
    with _answering_exactly(bare(model)):
        return cast(Tensor, _answer(model, batch, embeddings).logits)


def places_read(config: PreTrainedConfig, batch: Batch) -> Tensor:
    """Which token of each row a decoder's head reads, [rows]: that which transformers reads of the row alone, from ids.

    It is the last token that is not the padding token of the configuration, and the first where all are; the last token of
    all where the configuration names no padding token.
    """
    read = batch["attention_mask"] == 1
    pad = config.get_text_config().pad_token_id
    if pad is not None:
        read = read & (_ids_that_count(batch, pad) != pad)
    return (torch.arange(read.shape[1], device=read.device) * read).amax(dim=1)


def _positions_from_ids(config: PreTrainedConfig, batch: Batch) -> Tensor:
    """Positions [rows, tokens] as RoBERTa and its kin count them: padding tokens, also within a text, are not counted."""
    pad = uncounted_id(config)
    counted = (_ids_that_count(batch, pad) != pad).long()
    return counted.cumsum(dim=1) * counted + pad


def _ids_that_count(batch: Batch, pad: int) -> Tensor:
    """The ids [rows, tokens] of a batch; in a mixture of two rows a token is padding only where both rows have padding."""
    ids = batch["input_ids"]
    return torch.where(ids == pad, batch[PARTNER_IDS], ids) if PARTNER_IDS in batch else ids


def logits_at(model: PreTrainedModel, batch: Batch, rows: Tensor, places: Tensor) -> Tensor:
    """Logits [n, vocabulary] of a masked language model at n tokens of a batch, which ``rows`` and ``places`` name, each [n].

    Where the architecture allows it, no other token is projected to the vocabulary, which is half the work of a small model.
    """

    def these_alone(_: torch.nn.Module, hidden: tuple[Tensor]) -> tuple[Tensor]:
        return (hidden[0][rows, places].unsqueeze(1),)

    with bare(model).get_output_embeddings().register_forward_pre_hook(these_alone):
        logits = logits_from_ids(model, batch)
    return logits[:, 0] if logits.shape[:2] == (len(rows), 1) else logits[rows, places]


def head_of(model: PreTrainedModel) -> torch.nn.Linear:
    """The layer whose only output is a regression's answer."""
    (head,) = _single_outputs(model)
    return head


def _single_outputs(model: PreTrainedModel) -> list[torch.nn.Linear]:
    """Looked for beside the base model alone: it is asked on every pass, and the base model has hundreds of parts."""
    beside = [part for part in model.children() if part is not model.base_model]
    return [
        part for child in beside for part in child.modules() if isinstance(part, torch.nn.Linear) and part.out_features == 1
    ]


@contextmanager
def _answering_exactly(model: PreTrainedModel) -> Iterator[None]:
    """Let the last layer of a regression compute in float32 within autocast, whatever the layers before it do.

    Its answer has the mean of the labels, beside which their deviation may be small: half precision keeps three digits of both.
    """
    heads = _single_outputs(model) if model.config.num_labels == 1 else []

    def exactly(head: torch.nn.Linear, inputs: tuple[Tensor], _: Tensor) -> Tensor | None:
        device = inputs[0].device.type
        if not torch.is_autocast_enabled(device):
            return None
        with torch.autocast(device, enabled=False):
            return functional.linear(inputs[0].float(), head.weight, head.bias)

    with ExitStack() as hooks:
        for head in heads:
            hooks.enter_context(head.register_forward_hook(exactly))
        yield


def _answer(model: PreTrainedModel, batch: Batch, embeddings: Tensor) -> Any:
    config = bare(model).config
    inputs = {name: value for name, value in model_inputs(batch).items() if name != "input_ids"}
    inputs["inputs_embeds"] = embeddings.masked_fill(batch["attention_mask"].unsqueeze(-1) == 0, 0.0)
    if config.model_type in DECODERS:
        with _read_at(bare(model), places_read(config, batch)):
            return model(**inputs, use_cache=False)
    if config.model_type in POSITIONS_FROM_IDS:
        inputs["position_ids"] = _positions_from_ids(config, batch)
    if config.model_type == "xlnet":
        inputs = _with_padding_first(inputs)
    return model(**inputs)


@contextmanager
def _read_at(model: PreTrainedModel, places: Tensor) -> Iterator[None]:
    """Let a decoder's head read one token of each row, ``places`` [rows].

    From embeddings transformers would read the last token, be it padding, and rejects batches where the configuration names no
    padding token; the configuration itself must stay as it is, since a saved one decides what is served.
    """
    config = model.config.get_text_config()
    named = config.pad_token_id

    def these_alone(_: torch.nn.Module, hidden: tuple[Tensor]) -> tuple[Tensor]:
        rows = torch.arange(places.shape[0], device=places.device)
        return (hidden[0][rows, places].unsqueeze(1),)

    config.pad_token_id = 0 if named is None else named
    try:
        with model.get_submodule("score").register_forward_pre_hook(these_alone):
            yield
    finally:
        config.pad_token_id = named


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
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return cast(PreTrainedModel, model.eval())


def freeze_unused(model: PreTrainedModel, batch: Batch) -> None:
    """Take parameters that no logit depends on out of a training, for which several processes would wait in vain."""
    logits = logits_from_ids(model.eval(), batch)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(logits.sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)


def parameter_count(model: PreTrainedModel) -> int:
    """Number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def pick_device() -> torch.device:
    """The first GPU where there is one, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
