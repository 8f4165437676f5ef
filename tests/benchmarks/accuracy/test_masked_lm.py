from pathlib import Path

import pytest

from benchmarks.accuracy import masked_lm
from benchmarks.accuracy.masked_lm import train_masked_lm
from pipeline.augment.candidates import MaskedLM, MaskedLMSettings
from pipeline.models.folder import load_tokenizer
from tests.world import MAX_LENGTH, make_task, save_teacher


def test_it_learns_which_word_was_masked_and_serves_the_text_edits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every text is one word three times over, so the masked one is known."""
    monkeypatch.setattr(masked_lm, "MAX_LENGTH", MAX_LENGTH)
    place = tmp_path / "data" / "trec"
    place.mkdir(parents=True)
    lines = [f"a\tword{number % 8} word{number % 8} word{number % 8} {number}" for number in range(320)]
    for split, rows in {"train": lines, "dev": lines[:32]}.items():
        (place / f"{split}.tsv").write_text("\n".join(["label\ttext", *rows]) + "\n")
    pretrained = str(save_teacher(tmp_path / "pretrained", make_task()))
    first, later = (
        train_masked_lm(tmp_path / "data", ["trec"], pretrained, epochs, tmp_path / f"out{epochs}") for epochs in (1, 12)
    )
    assert first.perplexity is not None
    assert later.perplexity is not None
    assert later.perplexity < 0.6 * first.perplexity
    settings = MaskedLMSettings(replace=0.4, candidates=5, batch_rows=8)
    assert MaskedLM(tmp_path / "out12", settings, load_tokenizer(Path(pretrained))) is not None
