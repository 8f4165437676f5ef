"""How the tokens of a row form words, read off the tokenizer: where a word begins and ends, and which pieces are one alone.

Knows a tokenizer's vocabulary and rules; must not know models, settings or shards.
"""

import json
import unicodedata
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from pipeline.augment.text_edits import runs, special_ids
from pipeline.config.errors import PipelineError
from pipeline.corpus.encoding import Ids

Booleans = npt.NDArray[np.bool_]

BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What a decoder gives for bytes that are only a part of a character."""

UNSPACED = ("CJK ", "HALFWIDTH KATAKANA", "HIRAGANA", "KATAKANA", "KHMER", "LAO", "MYANMAR", "THAI", "TIBETAN")
"""How Unicode's names begin of characters whose scripts put no space between words."""


@dataclass(frozen=True)
class Pieces:
    """What each id of a vocabulary is within a word, as booleans [ids]."""

    begins: Booleans
    """Begins a word wherever it stands."""
    apart: Booleans
    """Is a word of its own, but joins a lone space before it: added tokens and, where spaces are marked, punctuation and
    pieces of scripts that have none."""
    blank: Booleans
    """Is a lone space, which begins a word."""
    whole: Booleans
    """Can be a word by itself: readable, and neither special nor added to the vocabulary later."""
    special: frozenset[int]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Pieces":
        """Read off a tokenizer's vocabulary.

        Raises:
            PipelineError: the tokenizer does not say how its words begin.
        """
        continuing, space = _marks(tokenizer)
        vocabulary, added = tokenizer.get_vocab(), {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
        known = added - {tokenizer.unk_token_id}
        begins, apart, blank, whole = np.zeros((4, max(vocabulary.values()) + 1), dtype=np.bool_)
        for piece, number in vocabulary.items():
            text = _text(tokenizer, piece)
            begins[number] = piece.startswith(space) and not (continuing and piece.startswith(continuing))
            apart[number] = number in known or (space != "" and (_is_punctuation(text) or _is_unspaced(text)))
            blank[number] = piece == space
            whole[number] = (begins[number] or apart[number]) and text != "" and BROKEN not in text and number not in added
        return cls(begins, apart, blank, whole, special_ids(tokenizer))

    def words(self, input_ids: Ids) -> Ids:
        """First position of every word of a row and the one behind its last, [words, 2]; no word crosses a special token."""
        here, before = input_ids[1:], input_ids[:-1]
        behind = self.begins[here] | ((self.apart[here] | self.apart[before]) & ~self.blank[before])
        spans: list[tuple[int, int]] = []
        for start, stop in runs(input_ids, self.special):
            starts = [start, *(start + 1 + np.flatnonzero(behind[start : stop - 1]))]
            spans += zip(starts, [*starts[1:], stop], strict=True)
        return np.array(spans, dtype=np.int32).reshape(-1, 2)


def _marks(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What a piece starts with that continues a word, and what one starts with that begins a word; "" where there is none."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {"model": {"type": "none"}}
    around = json.dumps([rules.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")], ensure_ascii=False)
    if rules["model"]["type"] == "WordLevel":
        return "", ""
    if continuing := rules["model"].get("continuing_subword_prefix"):
        return continuing, ""
    for sign, space in (("▁", "▁"), ('"ByteLevel"', "Ġ")):
        if sign in around:
            return "", space
    raise PipelineError(
        f"masked-LM replacement cannot tell where words begin in the tokenizer of {tokenizer.name_or_path}: it knows word "
        "pieces (##), byte-level pieces (Ġ), SentencePiece (▁) and whole words; choose another augmentation"
    )


def _text(tokenizer: PreTrainedTokenizerBase, piece: str) -> str:
    """A piece as a person reads it, without the space before it."""
    decoder = tokenizer.backend_tokenizer.decoder
    return (piece if decoder is None else str(decoder.decode([piece]))).strip()


def _is_punctuation(text: str) -> bool:
    return text != "" and all(character != BROKEN and unicodedata.category(character)[0] in "PS" for character in text)


def _is_unspaced(text: str) -> bool:
    """Whether a piece stands in a script without spaces: where its word ends, nothing says, so the piece is taken for one."""
    return not text.isascii() and any(unicodedata.name(character, "").startswith(UNSPACED) for character in text)
