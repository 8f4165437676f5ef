"""Tokenizers over small vocabularies that tests choose: BERT's word pieces, RoBERTa's bytes, and the frame of both."""

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

BERT_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_SPECIALS = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
"""Padding, unknown, first, last and mask."""


def with_frame(backend: Tokenizer, specials: Sequence[str], pair: str, **kept: Any) -> PreTrainedTokenizerFast:
    """A tokenizer that puts special tokens before and behind its texts; ``pair`` says how two of them follow each other."""
    pad, unknown, first, last, mask = specials
    known = [(token, backend.token_to_id(token)) for token in (first, last)]
    backend.post_processor = processors.TemplateProcessing(single=f"{first} $A {last}", pair=pair, special_tokens=known)
    names = {"pad_token": pad, "unk_token": unknown, "cls_token": first, "sep_token": last, "mask_token": mask}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names, **kept)


def wordpiece(pieces: Sequence[str], types: bool = True) -> PreTrainedTokenizerFast:
    """BERT's: pieces that begin a word and pieces that continue one (##)."""
    every = [*BERT_SPECIALS, *pieces]
    backend = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(every)}, unk_token="[UNK]"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    inputs = ["input_ids", "token_type_ids", "attention_mask"] if types else ["input_ids", "attention_mask"]
    return with_frame(backend, BERT_SPECIALS, "[CLS] $A [SEP] $B:1 [SEP]:1", model_input_names=inputs)


def byte_level(letters: Sequence[str], merges: Sequence[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """RoBERTa's: BPE on bytes, a space as Ġ, two separators in a pair, no token types."""
    pieces = dict.fromkeys(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters, *("".join(pair) for pair in merges)])
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, list(merges)))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return with_frame(backend, ROBERTA_SPECIALS, "<s> $A </s> </s> $B </s>", model_input_names=["input_ids", "attention_mask"])
