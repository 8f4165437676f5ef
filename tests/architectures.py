"""A tiny model with random weights of every supported type, and batches of random rows for them."""

import copy
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel, set_seed

from pipeline.corpus.encoding import Batch, collate
from pipeline.models.forward import embed, freeze, logits_from_embeddings, logits_from_ids

VOCABULARY, PAD, UNUSED = 40, 1, 39
LENGTHS = (11, 3, 7, 2)
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": PAD,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 20,
    "initializer_range": 0.3,
    "num_labels": 3,
}
NARROW_WORDS = 8
GROUPED: dict[str, Any] = SIZES | {"num_key_value_heads": 1, "head_dim": 8}
SLIDING: dict[str, Any] = GROUPED | {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
RELATIVE: dict[str, Any] = SIZES | {
    "relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0,
}  # fmt: skip
VERSION_3: dict[str, Any] = RELATIVE | {"share_att_key": True, "norm_rel_ebd": "layer_norm", "position_buckets": 4}
SPECIALS = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
COMMON: dict[str, Any] = {name: SIZES[name] for name in ("vocab_size", "pad_token_id", "initializer_range", "num_labels")}
SETTINGS: dict[str, dict[str, Any]] = {
    "albert": SIZES | {"embedding_size": NARROW_WORDS},
    "bert": SIZES,
    "deberta-v2": RELATIVE,
    "deberta-v2, version 3": VERSION_3,
    "deberta-v2, version 3 with convolution": VERSION_3 | {"conv_kernel_size": 3},
    "distilbert": COMMON | {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 20},
    "electra": SIZES | {"embedding_size": NARROW_WORDS},
    "gemma": GROUPED,
    "gemma2": SLIDING,
    "gemma3_text": SLIDING,
    "gpt2": COMMON | {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 20},
    "llama": GROUPED,
    "mobilebert": SIZES | {"embedding_size": NARROW_WORDS, "intra_bottleneck_size": 8},
    "modernbert": SIZES | SPECIALS | {"global_attn_every_n_layers": 2, "local_attention": 4},
    "mpnet": SIZES,
    "qwen2": GROUPED,
    "qwen3": SLIDING | {"use_sliding_window": True},
    "roberta": SIZES,
    "xlm-roberta": SIZES,
    "xlnet": COMMON | {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32},
}
CONFIGURATIONS: dict[str, PreTrainedConfig] = {
    kind: AutoConfig.for_model(kind.partition(",")[0], **settings) for kind, settings in SETTINGS.items()
}
"""A tiny model of every supported type."""
WITH_TOKEN_TYPES = ("albert", "bert", "electra", "gpt2", "mobilebert", "xlnet")


def of_type(kind: str, attention: str | None = None, **changed: Any) -> PreTrainedModel:
    """A frozen classifier of a type with random weights, its configuration changed so."""
    set_seed(1)
    config = copy.deepcopy(CONFIGURATIONS[kind])
    config.update(changed)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation=attention)
    with torch.no_grad():  # what starts as zeros or ones, biases and norms, takes part too
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return freeze(model)


def rows_of(kind: str, lengths: tuple[int, ...] = LENGTHS) -> Batch:
    """A batch of random rows of these lengths for a model of a type."""
    generator = torch.Generator().manual_seed(2)
    ids = [torch.randint(4, UNUSED, (length,), generator=generator).numpy() for length in lengths]
    types = [torch.randint(0, 2, (length,), generator=generator).numpy() for length in lengths]
    return collate(ids, types if kind in WITH_TOKEN_TYPES else None, PAD)


def alone(batch: Batch, row: int) -> Batch:
    """One row of a batch, without padding."""
    length = int(batch["attention_mask"][row].sum())
    return {name: value[row : row + 1, :length] for name, value in batch.items()}


def plain(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """What transformers itself answers to each row by itself, from ids, without padding or mask."""
    singles = [alone(batch, row) for row in range(len(batch["input_ids"]))]
    return torch.cat([model(**{n: value for n, value in one.items() if n != "attention_mask"}).logits for one in singles])


def assert_as_plain(model: PreTrainedModel, batch: Batch) -> None:
    """From ids and from embeddings, together and one by one, every row has the logits of transformers."""
    wanted = plain(model, batch)
    assert torch.pdist(wanted).min() > 1e-3, "the rows must have different answers for the comparison to mean something"
    singles = [alone(batch, row) for row in range(len(wanted))]
    found = {
        "ids": logits_from_ids(model, batch),
        "embeddings": logits_from_embeddings(model, batch, embed(model, batch["input_ids"])),
        "ids, alone": torch.cat([logits_from_ids(model, one) for one in singles]),
        "embeddings, alone": torch.cat([logits_from_embeddings(model, one, embed(model, one["input_ids"])) for one in singles]),
    }
    for name, logits in found.items():
        torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=1e-5, msg=lambda fault, name=name: f"{name}: {fault}")
