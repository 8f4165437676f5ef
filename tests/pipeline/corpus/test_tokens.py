from collections.abc import Sequence

import pytest
from tokenizers.normalizers import Replace
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pipeline.corpus import tokens
from pipeline.corpus.rows import Row
from pipeline.corpus.tables import ErrorList
from pipeline.corpus.tokens import Reader, check_tokens
from tests.world import SPECIAL, WORDS, make_tokenizer

VOCABULARY = len(SPECIAL + WORDS)


def bare() -> PreTrainedTokenizerFast:
    """A tokenizer that adds no special token and drops zero-width spaces."""
    backend = make_tokenizer().backend_tokenizer
    backend.post_processor = None
    backend.normalizer = Replace("\u200b", "")
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


def checked(
    *texts: str | tuple[str, str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    vocabulary: int = VOCABULARY,
    most: int = 16,
) -> tuple[list[str], dict[str, int]]:
    """Errors and notes for a train split with these texts."""
    rows = (Row((text,) if isinstance(text, str) else text, "a", "x.csv", number) for number, text in enumerate(texts, start=2))
    errors = ErrorList()
    reader = Reader("my/teacher", tokenizer or make_tokenizer(), most, vocabulary)
    notes = check_tokens({"train": {str(row.number): row for row in rows}, "dev": {}}, reader, errors)
    return errors.lines(), notes


def test_rows_without_a_token_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "ROWS_AT_ONCE", 2)
    (line,), notes = checked("\u200b", "word1", "word2", " ", "word3", tokenizer=bare())
    assert line.startswith("x.csv, rows 2, 5: the tokenizer of my/teacher makes no token of the text")
    assert notes == {}


UNKNOWN = "% of the tokens of all texts are unknown to the tokenizer of my/teacher"


@pytest.mark.parametrize(
    ("texts", "notes"),
    [
        (["word1 word2", "word3 strange"], {}),
        ([("word1", "word2"), ("word3", "word4 " * 30)], {}),
        ([" ", "word1"], {"row(s) of train have only special tokens": 1}),
        ([(" ", "word1"), ("word2", "word3")], {}),
        (["a b c word1"], {UNKNOWN: 75}),
        (["a b word2 word1"], {}),
    ],
)
def test_rows_of_special_tokens_and_many_unknown_tokens_are_noted(
    texts: Sequence[str | tuple[str, str]], notes: dict[str, int]
) -> None:
    assert checked(*texts) == ([], notes)


def test_texts_of_unknown_tokens_are_an_error_unless_the_unknown_token_has_another_role() -> None:
    (line,), notes = checked("ภาษา ไทย", "strange")
    assert line.startswith("the tokenizer of my/teacher: all tokens of the texts are unknown")
    assert notes == {}
    tokenizer = make_tokenizer()
    tokenizer.sep_token = "[UNK]"
    assert checked("strange", tokenizer=tokenizer)[0] == []


def test_tokens_without_an_embedding_are_named_with_their_rows() -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<a>", "<b>", "<c>", "<d>"])
    (line,), notes = checked("word1", "word2 <b> word3 <b>", "<a> <b> <c> <d>", tokenizer=tokenizer)
    assert line.startswith("x.csv, rows 3 ('<b>'), 4 ('<a>', '<b>', '<c>', …): my/teacher has embeddings for 65 tokens")
    assert "resize_token_embeddings" in line
    assert notes == {}
    assert checked("word1 <a>", tokenizer=tokenizer, vocabulary=VOCABULARY + 4) == ([], {})
    assert checked("word1", tokenizer=tokenizer) == ([], {})
