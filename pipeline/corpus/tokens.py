"""Validation of a corpus as the teacher's tokenizer reads it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from pipeline.config.corpus import Split
from pipeline.corpus.encoding import Ids, check_length, encode
from pipeline.corpus.rows import Row, shown
from pipeline.corpus.tables import ErrorList

ROWS_AT_ONCE = 10_000
"""Rows tokenised at once, which bounds memory."""

TOKENS_SHOWN = 3
MANY_UNKNOWN = 0.5
"""A larger share of unknown tokens is noted."""

ROLES = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "pad_token_id", "mask_token_id")


@dataclass(frozen=True)
class Reader:
    """The properties of a teacher that decide which rows it can read."""

    name: str
    """Its name in error messages."""
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    """Most tokens of a row."""
    vocabulary: int
    """Number of token embeddings."""


def check_tokens(examples: Mapping[Split, Mapping[str, Row]], reader: Reader, errors: ErrorList) -> dict[str, int]:
    """Report rows that a teacher cannot read.

    Args:
        examples: the rows of each split, all single texts or all pairs.
        reader: the teacher.
        errors: receives what is wrong.

    Returns:
        What is allowed but looks like a mistake, with the number of rows or the percentage of tokens.

    Raises:
        PipelineError: ``max_length`` is too small for the special tokens, or the tokenizer ignores it.
    """
    notes, unknown = Counter[str](), _unknown_id(reader.tokenizer)
    special = [number for number in reader.tokenizer.all_special_ids if number != unknown]
    ordinary_tokens = unknown_tokens = 0
    for split, part in examples.items():
        for row, ids in _encoded(list(part.values()), reader):
            ordinary = ids[~np.isin(ids, special)]
            ordinary_tokens += len(ordinary)
            unknown_tokens += int((ordinary == unknown).sum())
            _check_ids(row, ids, reader, errors)
            if len(ids) and not len(ordinary):
                notes[f"row(s) of {split} have only special tokens"] += 1
    if 0 < unknown_tokens == ordinary_tokens:
        message = "all tokens of the texts are unknown to it; use a teacher whose tokenizer was made for this language"
        errors.add(f"the tokenizer of {reader.name}", message)
    elif unknown_tokens > MANY_UNKNOWN * ordinary_tokens:
        share = round(100 * unknown_tokens / ordinary_tokens)
        notes[f"% of the tokens of all texts are unknown to the tokenizer of {reader.name}"] = share
    return dict(notes)


def _encoded(rows: Sequence[Row], reader: Reader) -> Iterator[tuple[Row, Ids]]:
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        first, *others = map(list, zip(*(row.texts for row in part), strict=True))
        check_length(reader.tokenizer, bool(others), reader.max_length, reader.name)
        encoded = encode(reader.tokenizer, first, others[0] if others else None, reader.max_length)
        yield from zip(part, encoded.input_ids, strict=True)


def _unknown_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the unknown token; -1 if there is none or it has another role too."""
    unknown = tokenizer.unk_token_id
    return -1 if unknown is None or unknown in {getattr(tokenizer, role) for role in ROLES} else int(unknown)


def _check_ids(row: Row, ids: Ids, reader: Reader, errors: ErrorList) -> None:
    if not len(ids):
        errors.add(row.table, f"the tokenizer of {reader.name} makes no token of the text; remove these rows", row.number)
    elif ids.max() >= reader.vocabulary:
        tokens = reader.tokenizer.convert_ids_to_tokens(list(dict.fromkeys(ids[ids >= reader.vocabulary].tolist())))
        more = ", …" if len(tokens) > TOKENS_SHOWN else ""
        message = (
            f"{reader.name} has embeddings for {reader.vocabulary} tokens, but none for these; add them "
            "(resize_token_embeddings) and fine-tune it, or remove the added tokens from its tokenizer"
        )
        errors.add(row.table, message, row.number, ", ".join(map(shown, tokens[:TOKENS_SHOWN])) + more)
