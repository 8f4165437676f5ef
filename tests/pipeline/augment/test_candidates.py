from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    set_seed,
)

from pipeline.augment.batches import Inputs
from pipeline.augment.candidates import MaskedLM, MaskedLMSettings, Pieces, RowCandidates, replace
from pipeline.config.errors import PipelineError
from pipeline.corpus.encoding import encode
from tests import vocabularies
from tests.vocabularies import BERT_SPECIALS, ROBERTA_SPECIALS, with_frame

K = 5
SYLLABLES = ["ba", "ko", "mi", "tu", "se"]
WORDS = [first + second for first in SYLLABLES for second in SYLLABLES]
MARKS = [".", ",", "!", "-"]
SMILEY = "âĺº"
"""The three bytes of ☺ as byte-level tokenizers spell them."""

Found = list[tuple[int, int, list[int]]]
"""First position, the one behind the last, and the candidates of each word."""


def wordpiece(types: bool = True, extra: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Words, syllables that begin one and syllables that continue one (##)."""
    pieces = [*WORDS[::2], *SYLLABLES, *(f"##{syllable}" for syllable in SYLLABLES), *MARKS, *extra]
    return vocabularies.wordpiece(pieces, types)


def byte_level() -> PreTrainedTokenizerFast:
    """The same on bytes; a smiley's bytes are pieces without a meaning."""
    letters = sorted(
        {*"".join(SYLLABLES), *MARKS, "Ġ", *pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("☺")[0][0]}
    )
    merges = [(s[0], s[1]) for s in SYLLABLES] + [("Ġ", s) for s in SYLLABLES] + [(f"Ġ{w[:2]}", w[2:]) for w in WORDS[::2]]
    return vocabularies.byte_level(letters, [*merges, ("Ġ", SMILEY[0])])


SIZES: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 48,
    "initializer_range": 0.3,
}  # fmt: skip


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    set_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("bert"), wordpiece()
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer) + 3, **SIZES)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    set_seed(1)
    folder, tokenizer = tmp_path_factory.mktemp("roberta"), byte_level()
    RobertaForMaskedLM(RobertaConfig(vocab_size=len(tokenizer), pad_token_id=1, **SIZES)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def settings_of(**changed: Any) -> MaskedLMSettings:
    return MaskedLMSettings.model_validate({"replace": 0.4, "candidates": K, "batch_rows": 8} | changed)


def texts_of(count: int, seed: int = 0) -> list[str]:
    """Texts of 1 to 8 words, of one piece or two, with marks behind, between and apart, and a sign that is rarely known."""
    generator = np.random.default_rng(seed)
    attached = [f"{generator.choice(WORDS)}{mark}" for mark in MARKS] + [
        f"{generator.choice(WORDS)}-{word}" for word in WORDS[::4]
    ]
    choices = [*WORDS, *WORDS, *attached, *MARKS, "☺"]
    return [" ".join(generator.choice(choices, generator.integers(1, 9))) for _ in range(count)]


def rows_of(tokenizer: PreTrainedTokenizerFast, first: list[str], second: list[str] | None = None) -> Inputs:
    encoded = encode(tokenizer, first, second, 48)
    return Inputs([f"example {row}" for row in range(len(first))], encoded.input_ids, encoded.token_type_ids)


def listed(candidates: RowCandidates) -> Found:
    words = zip(candidates.starts.tolist(), candidates.stops.tolist(), candidates.ids.reshape(-1, K).tolist(), strict=True)
    return list(words)


class Plain:
    """The same by transformers alone: one row, one mask at a time; words as the tokenizer itself counts them."""

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerFast, whole: Sequence[str]) -> None:
        self.model = AutoModelForMaskedLM.from_pretrained(folder).eval()
        self.tokenizer = tokenizer
        self.whole = [number for piece, number in tokenizer.get_vocab().items() if piece in whole]

    def candidates(self, *texts: str) -> Found:
        row = self.tokenizer(*texts, return_tensors="pt")
        encoding = row.encodings[0]
        names = list(zip(encoding.sequence_ids, encoding.word_ids, strict=True))
        words = sorted({name: None for name in names if name[1] is not None})
        places = [[i for i, name in enumerate(names) if name == word] for word in words]
        return [(places[0], places[-1] + 1, self.best(row, places)) for places in places]

    @torch.inference_mode()
    def best(self, row: Any, places: list[int]) -> list[int]:
        if len(places) > 1:
            table = self.model.get_input_embeddings().weight
            mean = table[row["input_ids"][0, places]].mean(dim=0)
            scores = torch.cosine_similarity(mean[None], table, dim=1)
        else:
            masked = row["input_ids"].clone()
            masked[0, places] = self.tokenizer.mask_token_id
            scores = self.model(**{**row, "input_ids": masked}).logits[0, places[0]]
        return sorted(self.whole, key=lambda number: -float(scores[number]))[:K]


BERT_WHOLE = [*WORDS[::2], *SYLLABLES, *MARKS]
ROBERTA_WHOLE = [f"Ġ{word}" for word in [*WORDS[::2], *SYLLABLES]] + MARKS


@pytest.mark.parametrize(("pair", "batch_rows"), [(False, 1), (True, 7), (False, 1000)])
@pytest.mark.parametrize("kind", ["wordpiece", "byte level"])
def test_candidates_are_those_of_one_mask_at_a_time(bert: Path, roberta: Path, kind: str, pair: bool, batch_rows: int) -> None:
    folder, tokenizer, whole = (
        (bert, wordpiece(), BERT_WHOLE) if kind == "wordpiece" else (roberta, byte_level(), ROBERTA_WHOLE)
    )
    first, second = texts_of(8), texts_of(8, seed=9) if pair else None
    plain = Plain(folder, tokenizer, whole)
    found = MaskedLM(folder, settings_of(batch_rows=batch_rows), tokenizer).candidates(rows_of(tokenizer, first, second))
    want = [plain.candidates(*texts) for texts in (zip(first, second, strict=True) if second else zip(first))]
    assert [listed(row) for row in found] == want
    assert {stop - start for row in want for start, stop, _ in row} >= {1, 2}


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 8},
    "deberta-v2": {"position_biased_input": False, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "electra": {"embedding_size": 8},
    "mobilebert": {"embedding_size": 8, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    "modernbert": {"bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3},
    "mpnet": {},
    "xlm-roberta": {},
}


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_candidates_of_every_architecture_are_those_of_one_mask_at_a_time(kind: str, tmp_path: Path) -> None:
    tokenizer = wordpiece(types=kind in ("albert", "deberta-v2", "electra", "mobilebert"))
    set_seed(2)
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), pad_token_id=0, **SIZES | ARCHITECTURES[kind])
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = MaskedLM(tmp_path, settings_of(), tokenizer).candidates(rows_of(tokenizer, texts_of(4)))
    plain = Plain(tmp_path, tokenizer, BERT_WHOLE)
    assert [listed(row) for row in found] == [plain.candidates(text) for text in texts_of(4)]


@pytest.mark.parametrize(("kind", "most"), [("bert", 48), ("roberta", 46)])
def test_a_row_longer_than_the_model_takes_is_refused_and_the_longest_not(
    kind: str, most: int, request: pytest.FixtureRequest
) -> None:
    folder, tokenizer = request.getfixturevalue(kind), wordpiece() if kind == "bert" else byte_level()
    first, last = tokenizer("")["input_ids"]
    fits, long = (
        np.array([first, *[tokenizer.convert_tokens_to_ids("ba")] * (size - 2), last], np.int32) for size in (most, most + 1)
    )
    model = MaskedLM(folder, settings_of(), tokenizer)
    assert len(model.candidates(Inputs(["a"], [fits], None))) == 1
    with pytest.raises(
        PipelineError, match=rf"{folder} has too few positions: it takes at most {most} tokens, but a row has {most + 1};"
    ):
        model.candidates(Inputs(["a", "b"], [fits, long], None))


def test_a_model_whose_words_are_not_the_teacher_s_is_not_loaded(bert: Path) -> None:
    with pytest.raises(PipelineError, match=f"^the masked language model {bert} has another tokenizer"):
        MaskedLM(bert, settings_of(), wordpiece(extra=["more"]))


def test_more_candidates_than_the_vocabulary_has_words_are_refused(bert: Path) -> None:
    with pytest.raises(PipelineError, match=rf"candidates is \d+, but the tokenizer has only {len(BERT_WHOLE)} whole words"):
        MaskedLM(bert, settings_of(candidates=len(BERT_WHOLE) + 1), wordpiece())


def candidates_of(*words: tuple[int, int, list[int]]) -> RowCandidates:
    starts, stops, ids = ([word[part] for word in words] for part in range(3))
    return RowCandidates(np.array(starts, np.int32), np.array(stops, np.int32), np.array(ids, np.int32).ravel())


def replaced(
    row: list[int], types: list[int], candidates: RowCandidates, share: float, seed: int
) -> tuple[list[int], list[int]]:
    ids, new_types = replace(np.array(row, np.int32), np.array(types, np.int8), candidates, share, seed)
    assert new_types is not None
    assert ids.dtype == np.int32
    assert new_types.dtype == np.int8
    return ids.tolist(), new_types.tolist()


def test_a_replaced_word_is_one_of_its_candidates_and_of_one_piece() -> None:
    row, types = [2, 10, 11, 12, 3, 13, 14, 3], [0, 0, 0, 0, 0, 1, 1, 1]
    candidates = candidates_of((1, 3, [20, 21]), (3, 4, [30, 31]), (5, 7, [40, 41]))
    found = {tuple(replaced(row, types, candidates, 1.0, seed)[0]) for seed in range(200)}
    assert found == {(2, a, b, 3, c, 3) for a in (20, 21) for b in (30, 31) for c in (40, 41)}
    assert replaced(row, types, candidates, 1.0, 0)[1] == [0, 0, 0, 0, 1, 1]
    partly = {tuple(replaced(row, types, candidates, 0.5, seed)[0]) for seed in range(2000)}
    first, second, third = [(10, 11), (20,), (21,)], [(12,), (30,), (31,)], [(13, 14), (40,), (41,)]
    assert partly == {(2, *a, *b, 3, *c, 3) for a in first for b in second for c in third}


@given(st.lists(st.integers(1, 3), max_size=12), st.floats(0.01, 1), st.integers(0, 2**63 - 1))
def test_replacing_depends_on_the_seed_alone_and_never_lengthens(pieces: list[int], share: float, seed: int) -> None:
    stops = np.cumsum(pieces).tolist()
    words = [(stop - size, stop, [100 + stop]) for stop, size in zip(stops, pieces, strict=True)]
    row = [2, *range(10, 10 + sum(pieces)), 3]
    candidates = candidates_of(*((start + 1, stop + 1, ids) for start, stop, ids in words))
    ids, types = replaced(row, list(range(len(row))), candidates, share, seed)
    assert (ids, types) == replaced(row, list(range(len(row))), candidates, share, seed)
    assert len(ids) <= len(row)
    assert (ids[0], ids[-1]) == (2, 3)
    kept = [(token, place) for token, place in zip(ids, types, strict=True) if token < 100]
    assert kept == [(row[place], place) for _, place in kept]


def short_wordpiece() -> PreTrainedTokenizerFast:
    """Pieces that begin a word and pieces that continue one (##)."""
    return vocabularies.wordpiece(["ba", "bami", "tu", "##ko", "##mi", ",", "-"])


def short_byte_level() -> PreTrainedTokenizerFast:
    """☺ is the three bytes âĺº."""
    merges = [("b", "a"), ("k", "o"), ("m", "i"), ("s", "e"), ("Ġ", "ba"), ("Ġba", "mi"), ("Ġ", "â")]
    return vocabularies.byte_level("baokmise,!-Ġâĺº", merges)


def sentencepiece(*pieces: str) -> PreTrainedTokenizerFast:
    """XLM-R's: Unigram pieces, a space as ▁."""
    pieces = (*ROBERTA_SPECIALS, "▁", *pieces)
    backend = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=1))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return with_frame(backend, ROBERTA_SPECIALS, "<s> $A </s> </s> $B </s>")


def words_of(tokenizer: PreTrainedTokenizerFast, *texts: str) -> list[list[str]]:
    """The words of a row, each as its pieces."""
    row = tokenizer(*texts)
    return [row.tokens()[start:stop] for start, stop in Pieces.of(tokenizer).words(np.array(row["input_ids"], np.int32))]


def test_words_of_wordpiece_end_where_no_continuing_piece_follows() -> None:
    assert words_of(short_wordpiece(), "bako bamimi, xyz", "tu-tu") == [
        ["ba", "##ko"], ["bami", "##mi"], [","], ["[UNK]"], ["tu"], ["-"], ["tu"],
    ]  # fmt: skip


def test_words_of_byte_level_pieces_begin_with_a_space_and_punctuation_stands_apart() -> None:
    assert words_of(short_byte_level(), "baba, bamimi-se !", "koko ☺") == [
        ["ba", "ba"], [","], ["Ġbami", "mi"], ["-"], ["se"], ["Ġ", "!"], ["ko", "ko"], ["Ġâ", "ĺ", "º"],
    ]  # fmt: skip


def test_words_of_sentencepiece_begin_with_a_space_and_punctuation_stands_apart() -> None:
    assert words_of(sentencepiece(*",!-", "▁baba", "▁bami", "ba", "mi", "se", "▁ko"), "baba, bamimi-se !", "koxx xx") == [
        ["▁baba"], [","], ["▁bami", "mi"], ["-"], ["se"], ["▁", "!"], ["▁ko", "xx"], ["▁", "xx"],
    ]  # fmt: skip


def test_every_piece_of_a_script_without_spaces_is_a_word() -> None:
    """Else a clause would be one word, and one piece would take its place."""
    tokenizer = sentencepiece("，", "▁ba", "ba", "我", "喜欢", "这", "部", "电影", "ความ", "สุข", "すき")
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
    tokenizer = short_byte_level()
    tokenizer.add_tokens([AddedToken("<name>", normalized=False)])
    assert words_of(tokenizer, "bako<name>mi") == [["ba", "ko"], ["<name>"], ["mi"]]
    assert not Pieces.of(tokenizer).whole[tokenizer.convert_tokens_to_ids("<name>")]


def test_a_tokenizer_that_does_not_mark_its_words_is_refused() -> None:
    backend = Tokenizer(models.BPE({"b": 0, "a": 1, "ba</w>": 2}, [], end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(PipelineError, match=r"cannot tell where words begin .* choose another augmentation"):
        Pieces.of(PreTrainedTokenizerFast(tokenizer_object=backend))
