from collections.abc import Sequence

import pytest
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pipeline.config.errors import PipelineError
from pipeline.corpus import tokens
from pipeline.corpus.faults import FoundFaults
from pipeline.corpus.rows import Row
from pipeline.corpus.tokens import Reader, check_tokens
from tests.world import SPECIAL, WORDS, make_tokenizer

VOCABULARY = len(SPECIAL + WORDS)


def bare() -> PreTrainedTokenizerFast:
    """A tokenizer that adds no special token."""
    backend = make_tokenizer().backend_tokenizer
    backend.post_processor = None
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


def checked(
    *texts: str | tuple[str, str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    vocabulary: int = VOCABULARY,
    most: int = 16,
) -> tuple[list[str], dict[str, int]]:
    """The faults and the notes of a train split with these texts."""
    rows = (Row((text,) if isinstance(text, str) else text, "a", "x.csv", number) for number, text in enumerate(texts, start=2))
    found = FoundFaults()
    reader = Reader("my/teacher", tokenizer or make_tokenizer(), most, vocabulary)
    notes = check_tokens({"train": {str(row.number): row for row in rows}, "dev": {}}, reader, found)
    return found.lines(), notes


def test_rows_that_a_tokenizer_can_tell_apart_are_left_in_peace() -> None:
    assert checked("word1 word2", "word3 strange") == ([], {})
    assert checked(("word1", "word2"), ("word3", "word4 " * 30)) == ([], {})


def test_rows_of_no_token_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "ROWS_AT_ONCE", 2)
    texts = ["\u200b", "word1", "word2", " ", "word3"]
    tokenizer = bare()
    tokenizer.backend_tokenizer.normalizer = no_zero_width()
    assert checked(*texts, tokenizer=tokenizer) == (
        ["x.csv, rows 2, 5: the tokenizer of my/teacher makes no token of the text; remove these rows"],
        {},
    )
    assert checked(("\u200b", "word1"), ("word2", "word3"), tokenizer=tokenizer) == ([], {})


def no_zero_width() -> object:
    from tokenizers.normalizers import Replace

    return Replace("\u200b", "")


def test_rows_of_nothing_but_special_tokens_are_noted_and_a_pair_with_a_token_is_not() -> None:
    assert checked(" ", "word1") == ([], {"row(s) of train hold no token but special ones": 1})
    assert checked((" ", "word1"), ("word2", "word3")) == ([], {})


def test_a_tokenizer_that_knows_nothing_of_the_texts_is_a_fault_and_one_that_knows_little_is_noted() -> None:
    assert checked("ภาษา ไทย", "strange") == (
        [
            "the tokenizer of my/teacher: it knows none of the texts, all their tokens are unknown; "
            "take a teacher whose tokenizer was made for this language"
        ],
        {},
    )
    note = "% of the tokens of all texts are unknown to the tokenizer of my/teacher"
    assert checked("a b c word1") == ([], {note: 75})
    assert checked("a b word2 word1") == ([], {})


def test_an_unknown_token_that_also_ends_texts_is_not_taken_for_an_unknown_one() -> None:
    tokenizer = make_tokenizer()
    tokenizer.sep_token = "[UNK]"
    assert checked("strange", tokenizer=tokenizer)[0] == []


def test_tokens_of_which_the_model_has_no_embedding_are_named_with_their_rows() -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<a>", "<b>", "<c>", "<d>"])
    meaning = (
        "my/teacher has embeddings of 65 tokens, and none of these; give it some (resize_token_embeddings) and fine-tune it, "
        "or take the tokens that were added out of its tokenizer"
    )
    assert checked("word1", "word2 <b> word3 <b>", "<a> <b> <c> <d>", tokenizer=tokenizer) == (
        [f"x.csv, rows 3 ('<b>'), 4 ('<a>', '<b>', '<c>', …): {meaning}"],
        {},
    )
    assert checked("word1 <a>", tokenizer=tokenizer, vocabulary=VOCABULARY + 4) == ([], {})
    assert checked("word1", tokenizer=tokenizer) == ([], {})


@pytest.mark.parametrize(("texts", "least"), [(["word1"], 3), ([("word1", "word2")], 5)])
def test_a_length_that_holds_no_text_is_refused_and_the_least_that_does_is_not(
    texts: Sequence[str | tuple[str, str]], least: int
) -> None:
    with pytest.raises(PipelineError, match=f"set it to at least {least}$"):
        checked(*texts, most=least - 1)
    assert checked(*texts, most=least) == ([], {})
