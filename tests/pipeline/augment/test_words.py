import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipeline.augment.candidates import Pieces
from pipeline.augment.text_edits import special_ids
from pipeline.config.errors import PipelineError
from tests import vocabularies
from tests.vocabularies import BERT_SPECIALS, ROBERTA_SPECIALS, with_frame


def wordpiece() -> PreTrainedTokenizerFast:
    """Pieces that begin a word and pieces that continue one (##)."""
    return vocabularies.wordpiece(["ba", "bami", "tu", "##ko", "##mi", ",", "-"])


def byte_level() -> PreTrainedTokenizerFast:
    """☺ is the three bytes âĺº."""
    merges = [("b", "a"), ("k", "o"), ("m", "i"), ("s", "e"), ("Ġ", "ba"), ("Ġba", "mi"), ("Ġ", "â")]
    return vocabularies.byte_level("baokmise,!-Ġâĺº", merges)


def sentencepiece() -> PreTrainedTokenizerFast:
    """XLM-R's: Unigram pieces, a space as ▁."""
    pieces = [*ROBERTA_SPECIALS, "▁", *",!-", "▁baba", "▁bami", "ba", "mi", "se", "▁ko", "▁se"]
    backend = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=1))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return with_frame(backend, ROBERTA_SPECIALS, "<s> $A </s> </s> $B </s>")


def words_of(tokenizer: PreTrainedTokenizerFast, *texts: str) -> list[list[str]]:
    """The words of a row, each as its pieces."""
    row = tokenizer(*texts)
    return [row.tokens()[start:stop] for start, stop in Pieces.of(tokenizer).words(np.array(row["input_ids"], np.int32))]


def test_words_of_wordpiece_end_where_no_continuing_piece_follows() -> None:
    assert words_of(wordpiece(), "bako bamimi, xyz", "tu-tu") == [
        ["ba", "##ko"], ["bami", "##mi"], [","], ["[UNK]"], ["tu"], ["-"], ["tu"],
    ]  # fmt: skip


def test_words_of_byte_level_pieces_begin_with_a_space_and_punctuation_stands_apart() -> None:
    assert words_of(byte_level(), "baba, bamimi-se !", "koko ☺") == [
        ["ba", "ba"], [","], ["Ġbami", "mi"], ["-"], ["se"], ["Ġ", "!"], ["ko", "ko"], ["Ġâ", "ĺ", "º"],
    ]  # fmt: skip


def test_words_of_sentencepiece_begin_with_a_space_and_punctuation_stands_apart() -> None:
    assert words_of(sentencepiece(), "baba, bamimi-se !", "koxx xx") == [
        ["▁baba"], [","], ["▁bami", "mi"], ["-"], ["se"], ["▁", "!"], ["▁ko", "xx"], ["▁", "xx"],
    ]  # fmt: skip


def test_every_piece_of_a_script_without_spaces_is_a_word() -> None:
    """Else a clause would be one word, and one piece would take its place."""
    pieces = [*ROBERTA_SPECIALS, "▁", "，", "▁ba", "ba", "我", "喜欢", "这", "部", "电影", "ความ", "สุข", "すき"]
    backend = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=1))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = with_frame(backend, ROBERTA_SPECIALS, "<s> $A </s> </s> $B </s>")
    assert words_of(tokenizer, "我喜欢这部电影，baba喜欢", "ความสุข すき") == [
        ["▁", "我"], ["喜欢"], ["这"], ["部"], ["电影"], ["，"], ["ba", "ba"], ["喜欢"], ["▁", "ความ"], ["สุข"], ["▁", "すき"],
    ]  # fmt: skip
    whole = np.flatnonzero(Pieces.of(tokenizer).whole).tolist()
    assert {"我", "喜欢", "电影", "ความ", "สุข", "すき", "，", "▁ba"} <= set(tokenizer.convert_ids_to_tokens(whole))


def test_every_token_of_a_word_level_tokenizer_is_a_word() -> None:
    vocabulary = {word: i for i, word in enumerate([*BERT_SPECIALS, "ba", "##ko"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = with_frame(backend, BERT_SPECIALS, "[CLS] $A [SEP] $B [SEP]")
    assert words_of(tokenizer, "ba ##ko zz") == [["ba"], ["##ko"], ["[UNK]"]]
    assert Pieces.of(tokenizer).whole.tolist() == [False] * 5 + [True] * 2


def test_an_added_token_is_a_word_of_its_own_and_no_candidate() -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<name>", normalized=False)])
    assert words_of(tokenizer, "bako<name>mi") == [["ba", "ko"], ["<name>"], ["mi"]]
    assert not Pieces.of(tokenizer).whole[tokenizer.convert_tokens_to_ids("<name>")]


def test_a_piece_that_is_blank_a_broken_character_or_the_middle_of_a_word_is_no_whole_word() -> None:
    tokenizer = byte_level()
    whole = np.flatnonzero(Pieces.of(tokenizer).whole).tolist()
    assert set(tokenizer.convert_ids_to_tokens(whole)) == {"Ġba", "Ġbami", ",", "!", "-"}


def test_a_tokenizer_that_does_not_mark_its_words_is_refused() -> None:
    backend = Tokenizer(models.BPE({"b": 0, "a": 1, "ba</w>": 2}, [], end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(PipelineError, match=r"cannot tell where words begin .* choose another augmentation"):
        Pieces.of(PreTrainedTokenizerFast(tokenizer_object=backend))


def test_the_unknown_word_is_ordinary_and_all_else_that_is_special_is_not() -> None:
    assert special_ids(wordpiece()) == {0, 2, 3, 4}
    assert special_ids(byte_level()) == {0, 1, 2, 4}
