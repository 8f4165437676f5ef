"""Whether a tokenizer can tell the rows of a corpus apart. Knows rows and tokenizers, no model's weights."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from pipeline.corpus.encoding import Ids, check_length, encode
from pipeline.corpus.faults import FoundFaults
from pipeline.corpus.rows import Row, shown
from pipeline.corpus.task import Split

ROWS_AT_ONCE = 10_000
"""So that memory does not grow with the corpus."""

TOKENS_SHOWN = 3

MANY_UNKNOWN = 0.5
"""A larger share of unknown tokens is noted."""

ROLES = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "pad_token_id", "mask_token_id")


@dataclass(frozen=True)
class Reader:
    """A teacher as far as it decides which rows it can read."""

    name: str
    """As errors call it."""
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    """The most tokens of a row."""
    vocabulary: int
    """How many tokens it has an embedding of."""


def check_tokens(examples: Mapping[Split, Mapping[str, Row]], reader: Reader, found: FoundFaults) -> dict[str, int]:
    """Note rows that a teacher cannot read once they are tokens.

    Args:
        examples: the rows of each split, all single texts or all pairs.
        reader: the teacher.
        found: takes the faults.

    Returns:
        What is allowed but looks like a mistake: what it is to the number of rows, or to the percentage of tokens.

    Raises:
        PipelineError: ``max_length`` does not hold the special tokens, or the tokenizer does not keep to it.
    """
    notes, unknown = Counter[str](), _unknown_id(reader.tokenizer)
    special = np.zeros(max(reader.tokenizer.get_vocab().values()) + 1, dtype=bool)
    special[[number for number in reader.tokenizer.all_special_ids if number != unknown]] = True
    ordinary_tokens = unknown_tokens = 0
    for split, part in examples.items():
        for row, ids in _encoded(list(part.values()), reader):
            ordinary = ids[~special[ids]]
            ordinary_tokens += len(ordinary)
            unknown_tokens += int((ordinary == unknown).sum())
            _check_ids(row, ids, reader, found)
            if len(ids) and not len(ordinary):
                notes[f"row(s) of {split} hold no token but special ones"] += 1
    if 0 < unknown_tokens == ordinary_tokens:
        way_out = "take a teacher whose tokenizer was made for this language"
        found.whole(f"the tokenizer of {reader.name}", f"it knows none of the texts, all their tokens are unknown; {way_out}")
    elif unknown_tokens > MANY_UNKNOWN * ordinary_tokens:
        share = round(100 * unknown_tokens / ordinary_tokens)
        notes[f"% of the tokens of all texts are unknown to the tokenizer of {reader.name}"] = share
    return dict(notes)


def _encoded(rows: Sequence[Row], reader: Reader) -> Iterator[tuple[Row, Ids]]:
    """The rows with their token ids."""
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        first, *others = map(list, zip(*(row.texts for row in part), strict=True))
        check_length(reader.tokenizer, bool(others), reader.max_length, reader.name)
        encoded = encode(reader.tokenizer, first, others[0] if others else None, reader.max_length)
        yield from zip(part, encoded.input_ids, strict=True)


def _unknown_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that stands for what a tokenizer does not know; -1 where it has none, or one that means something else too."""
    unknown = tokenizer.unk_token_id
    return -1 if unknown is None or unknown in {getattr(tokenizer, role) for role in ROLES} else int(unknown)


def _check_ids(row: Row, ids: Ids, reader: Reader, found: FoundFaults) -> None:
    """Note a row of no token, or of tokens without an embedding."""
    if not len(ids):
        found.row(row.table, row.number, f"the tokenizer of {reader.name} makes no token of the text; remove these rows")
    elif ids.max() >= reader.vocabulary:
        tokens = reader.tokenizer.convert_ids_to_tokens(list(dict.fromkeys(ids[ids >= reader.vocabulary].tolist())))
        more = ", …" if len(tokens) > TOKENS_SHOWN else ""
        meaning = (
            f"{reader.name} has embeddings of {reader.vocabulary} tokens, and none of these; give it some "
            "(resize_token_embeddings) and fine-tune it, or take the tokens that were added out of its tokenizer"
        )
        found.row(row.table, row.number, meaning, ", ".join(map(shown, tokens[:TOKENS_SHOWN])) + more)
