from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.errors import PipelineError
from pipeline.corpus import encoding
from pipeline.corpus.encoding import EVEN_ROWS, check_length, collate, encode, length_buckets, ordinary_tokens
from tests.world import make_tokenizer

TOKENIZER = make_tokenizer()
words = st.integers(0, 69).map(lambda number: f"word{number}")
texts = st.lists(words, max_size=15).map(" ".join)
pairs = st.lists(st.tuples(texts, texts), min_size=1, max_size=6)
lists_of_ids = st.lists(st.lists(st.integers(1, 64), min_size=1, max_size=12), min_size=1, max_size=6)


@pytest.mark.parametrize("fast", [True, False])
@given(examples=pairs, max_length=st.integers(6, 30))
def test_texts_are_tokenised_in_parts_as_the_tokenizer_does_one_by_one(
    examples: list[tuple[str, str]], max_length: int, fast: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "TEXTS_AT_ONCE", 4)
        patch.setattr(type(TOKENIZER), "is_fast", fast)
        check_one_by_one(examples, max_length)


def check_one_by_one(examples: list[tuple[str, str]], max_length: int) -> None:
    single = encode(TOKENIZER, [a for a, _ in examples], None, max_length)
    paired = encode(TOKENIZER, [a for a, _ in examples], [b for _, b in examples], max_length)
    lengths = [len(a.split()) + len(b.split()) + 3 for a, b in examples]
    assert paired.truncated == sum(length > max_length for length in lengths)
    for number, (a, b) in enumerate(examples):
        alone = make_tokenizer()([a], truncation=True, max_length=max_length)
        both = make_tokenizer()([a], [b], truncation="longest_first", max_length=max_length)
        assert single.token_type_ids is not None
        assert paired.token_type_ids is not None
        assert single.input_ids[number].tolist() == alone["input_ids"][0]
        assert single.token_type_ids[number].tolist() == alone["token_type_ids"][0]
        assert paired.input_ids[number].tolist() == both["input_ids"][0]
        assert paired.token_type_ids[number].tolist() == both["token_type_ids"][0]


@pytest.mark.parametrize(("pair", "special", "least"), [(False, 2, 3), (True, 3, 5)])
def test_a_max_length_must_hold_the_special_tokens_and_one_of_each_text(pair: bool, special: int, least: int) -> None:
    check_length(TOKENIZER, pair, least, "my/teacher")
    with pytest.raises(PipelineError, match=rf"adds {special} special tokens to a .*; set it to at least {least}$"):
        check_length(TOKENIZER, pair, least - 1, "my/teacher")
    both = ["word1 word2 word3"], ["word4 word5"] if pair else None
    (ids,) = encode(TOKENIZER, *both, least).input_ids
    assert len(ids) == least
    assert all(word in TOKENIZER.decode(ids) for word in (["word1", "word4"] if pair else ["word1"]))


def test_a_row_that_its_tokenizer_does_not_cut_is_an_error() -> None:
    with pytest.raises(PipelineError, match=r"the tokenizer leaves \d+ tokens where max_length is 2; raise max_length"):
        encode(make_tokenizer(), ["word1", "word2 word3"], ["word4", "word5"], 2)


def cost_of(lengths: npt.NDArray[np.int64], sizes: Sequence[int], rows: int) -> float:
    """Tokens computed and a tenth of a full batch's for each batch, of rows taken longest first."""
    ordered, ends = np.sort(lengths)[::-1], np.cumsum([0, *sizes])
    tokens = sum(size * int(ordered[start]) for start, size in zip(ends[:-1], sizes, strict=True))
    return tokens + len(sizes) * rows * float(lengths.mean()) / 10


def compositions(units: int, most: int) -> Iterator[list[int]]:
    """All ways to write a number as a sum of 1..most, in order."""
    if not units:
        yield []
    for first in range(1, min(units, most) + 1):
        yield from ([first, *rest] for rest in compositions(units - first, most))


@given(lengths=st.lists(st.integers(1, 100), min_size=8, max_size=64).map(lambda row: row[: len(row) // 8 * 8]))
def test_no_other_cut_into_batches_costs_less(lengths: list[int]) -> None:
    found = np.array(lengths, dtype=np.int64)
    buckets = length_buckets(found, 32)
    flat = np.concatenate(buckets)
    np.testing.assert_array_equal(flat, np.argsort(-found, kind="stable"), "longest first, rows of one length in their order")
    assert all(len(bucket) % EVEN_ROWS == 0 for bucket in buckets[:-1]), "so that a halved batch has the same bits"
    own = cost_of(found, [len(bucket) for bucket in buckets], 32)
    ways = ([8 * units for units in way] for way in compositions(len(lengths) // 8, 4))
    assert own == pytest.approx(min(cost_of(found, way, 32) for way in ways))


@given(rows=lists_of_ids, pad=st.integers(0, 3))
def test_a_batch_is_what_the_tokenizers_own_padding_makes(rows: list[list[int]], pad: int) -> None:
    types = [[number % 2 for number in range(len(row))] for row in rows]
    tokenizer = make_tokenizer()
    tokenizer.pad_token_id = pad
    wanted = tokenizer.pad({"input_ids": rows, "token_type_ids": types}, return_tensors="pt", padding_side="right")
    batch = collate([np.array(row, np.int32) for row in rows], [np.array(row, np.int8) for row in types], pad)
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids"}
    for name, found in batch.items():
        assert found.dtype == torch.int64
        assert torch.equal(found, wanted[name])


@given(rows=lists_of_ids, tokens=st.integers(0, 20))
def test_a_batch_is_padded_at_least_to_the_length_asked_for_and_never_cut(rows: list[list[int]], tokens: int) -> None:
    types = [[1] * len(row) for row in rows]
    usual, longer = collate(rows, types, 9), collate(rows, types, 9, tokens)
    assert "token_type_ids" not in collate(rows, None, 9)
    longest = max(map(len, rows))
    for name, fill in (("input_ids", 9), ("attention_mask", 0), ("token_type_ids", 0)):
        assert longer[name].shape == (len(rows), max(longest, tokens))
        assert torch.equal(longer[name][:, :longest], usual[name])
        assert longer[name][:, longest:].eq(fill).all()


@pytest.mark.parametrize("second", [None, ["word7", "word8 unheard"]])
def test_words_are_ordinary_even_unknown_ones_while_special_tokens_and_padding_are_not(second: list[str] | None) -> None:
    encoded = encode(TOKENIZER, ["word1 unheard word2", "word3 [MASK]"], second, 24)
    batch = collate(encoded.input_ids, encoded.token_type_ids, 0)
    ordinary = ordinary_tokens(batch, TOKENIZER)
    assert ordinary.dtype == torch.bool
    read = [TOKENIZER.convert_ids_to_tokens(ids) for ids in batch["input_ids"].tolist()]
    special = {"[CLS]", "[SEP]", "[PAD]", "[MASK]"}
    assert ordinary.tolist() == [[token not in special for token in row] for row in read]
    assert "[UNK]" in read[0]
    padded = collate([[2, 9, 3], [2, 3]], None, pad_token_id=9)
    assert ordinary_tokens(padded, TOKENIZER).tolist() == [[False, True, False], [False, False, False]], "9 is a word too"
