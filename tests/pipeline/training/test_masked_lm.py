import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from click.testing import CliRunner
from torch.nn import functional
from transformers import BartConfig, BartForConditionalGeneration, BertForMaskedLM, BertModel

from pipeline.augment.batches import Inputs
from pipeline.augment.candidates import MaskedLM, MaskedLMSettings
from pipeline.config.errors import PipelineError
from pipeline.models.architectures import ENCODERS
from pipeline.models.folder import ModelFolder, load_tokenizer, model_hash
from pipeline.training.masked_lm import (
    IGNORED,
    FitSettings,
    MaskedRows,
    WordsFacts,
    WordsSettings,
    check_words,
    loss_of,
    masked_rows,
    prepare_words,
    words_in,
)
from pipeline.training.order import MicroBatch
from pipeline.training.teacher import TeacherSettings
from pipeline.training.trainer import HISTORY_FILE
from stages.words import main
from tests.architectures import WITH_TOKEN_TYPES, of_type
from tests.world import (
    FIT,
    MAX_LENGTH,
    RUNTIME,
    SPECIAL,
    WORDS,
    make_task,
    make_tokenizer,
    rewrite,
    save_masked_lm,
    save_prepared,
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every text is one word three times, so that a masked one is known."""
    folder = save_prepared(tmp_path_factory.mktemp("prepared"), make_task(), {"train": 160, "dev": 16, "test": 4})
    for split in ("train", "dev"):
        table = pq.read_table(folder / f"{split}.parquet")
        texts = [" ".join([WORDS[number % 8]] * 3) for number in range(len(table))]
        pq.write_table(table.set_column(1, "text_a", pa.array(texts)), folder / f"{split}.parquet")
    return folder


def save_encoder(folder: Path, kind: str = "bert") -> Path:
    """A classifier of a type, which has no head that fills masks, with the tiny tokenizer."""
    of_type(kind, vocab_size=len(make_tokenizer()), max_position_embeddings=64).save_pretrained(folder)
    make_tokenizer(types=kind in WITH_TOKEN_TYPES).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


def fit_settings(**changed: Any) -> FitSettings:
    return FitSettings.model_validate(FIT | changed)


def made(prepared: Path, model: Path, out: Path, fit: bool = True, **changed: Any) -> WordsFacts:
    teacher = TeacherSettings(model=str(model), fine_tune=True, max_length=MAX_LENGTH)
    return prepare_words(prepared, teacher, WordsSettings(model=str(model), fit=fit), fit_settings(**changed), out)


def dev_of(folder: Path) -> list[float]:
    """The probability of a masked token on dev, by epoch."""
    return [float(row["dev"]) for row in csv.DictReader((folder / HISTORY_FILE).open())]


def proposals(folder: Path, candidates: int, texts: list[str]) -> list[Any]:
    tokenizer = load_tokenizer(folder)
    model = MaskedLM(folder, MaskedLMSettings(replace=0.4, candidates=candidates, batch_rows=8), tokenizer)
    ids = [np.array(tokenizer(text)["input_ids"], np.int32) for text in texts]
    return [row.ids for row in model.candidates(Inputs(texts, ids, None))]


def test_a_fitted_model_learns_which_word_was_masked_and_proposes_it(prepared: Path, encoder: Path, tmp_path: Path) -> None:
    facts = made(prepared, encoder, tmp_path / "words", num_train_epochs=12, batch_size=16, learning_rate=1e-2)
    measured = dev_of(tmp_path / "words")
    assert 0 < measured[0] < 0.6 * max(measured) < 1
    assert facts.perplexity == pytest.approx(1 / max(measured))
    assert (
        words_in(tmp_path / "words") == facts == WordsFacts(model=model_hash(encoder), fitted=True, perplexity=facts.perplexity)
    )
    found = proposals(tmp_path / "words", 1, [" ".join([word] * 3) for word in WORDS[:8]])
    assert sum(int((ids == len(SPECIAL) + number).sum()) for number, ids in enumerate(found)) > 20, "of 24"


def test_a_new_head_begins_by_comparing_the_output_with_the_words(prepared: Path, encoder: Path, tmp_path: Path) -> None:
    made(prepared, encoder, tmp_path / "words", rows=8, num_train_epochs=1, learning_rate=1e-12)
    head = BertForMaskedLM.from_pretrained(tmp_path / "words").cls.predictions
    torch.testing.assert_close(head.transform.dense.weight, torch.eye(len(head.transform.dense.weight)))
    torch.testing.assert_close(head.decoder.weight, BertModel.from_pretrained(encoder).embeddings.word_embeddings.weight)


def test_a_finished_model_is_adopted_with_its_weights_and_fitted_from_them(prepared: Path, tmp_path: Path) -> None:
    finished = save_masked_lm(tmp_path / "finished")
    facts = made(prepared, finished, tmp_path / "adopted", fit=False)
    assert (facts.fitted, facts.perplexity) == (False, None)
    assert model_hash(tmp_path / "adopted") == model_hash(finished)
    made(prepared, finished, tmp_path / "fitted", rows=8, num_train_epochs=1, learning_rate=1e-12)
    given, fitted = (BertForMaskedLM.from_pretrained(folder).cls.predictions for folder in (finished, tmp_path / "fitted"))
    torch.testing.assert_close(fitted.transform.dense.weight, given.transform.dense.weight)


def with_more_tokens(folder: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(folder)


def configured(**changed: int) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder / "config.json", **changed)


def as_bart(folder: Path) -> None:
    sizes = {
        "d_model": 16,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_layers": 1,
        "decoder_layers": 1,
    }
    BartForConditionalGeneration(BartConfig(vocab_size=65, **sizes)).save_pretrained(folder)


@pytest.mark.parametrize(
    ("harm", "fit", "sentence"),
    [
        (with_more_tokens, True, r"masked language model .*/model has another tokenizer"),
        (as_bart, False, r"model is a 'bart' model, which fills no masks here; supported are albert"),
        (configured(max_position_embeddings=20), False, r"takes at most 20 tokens, but teacher"),
        (configured(vocab_size=60), True, r"knows 60 tokens, but its tokenizer gives 65"),
        (configured(num_hidden_layers=3), True, r"not a finished encoder: .*encoder\.layer\.2"),
        (configured(), False, r"not a finished masked language model but a BertForS.* or fit this one: tasks\.<task>"),
    ],
)
def test_a_model_that_cannot_serve_is_refused(
    harm: Callable[[Path], None], fit: bool, sentence: str, encoder: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(encoder, tmp_path / "model"))
    harm(model)
    with pytest.raises(PipelineError, match=sentence):
        check_words(ModelFolder(model), ModelFolder(encoder), fit, MAX_LENGTH)


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_encoder_is_fitted_from_a_classifier_and_proposes_words(prepared: Path, tmp_path: Path, kind: str) -> None:
    model = save_encoder(tmp_path / "encoder", kind)
    made(prepared, model, tmp_path / "words", rows=80, num_train_epochs=3, learning_rate=3e-3)
    measured = dev_of(tmp_path / "words")
    assert max(measured) > measured[0]
    assert [ids.shape for ids in proposals(tmp_path / "words", 3, ["word4 word5"])] == [(6,)]


@pytest.mark.parametrize("words", ["absent", None])
def test_a_task_says_that_it_needs_no_words(words: str | None, prepared: Path, encoder: Path, tmp_path: Path) -> None:
    out, task = tmp_path / "words", {"teacher": {"model": str(encoder), "fine_tune": True, "max_length": MAX_LENGTH}}
    sections = {"tasks": {"tiny": task | ({} if words else {"words": None})}, "words": FIT, "runtime": RUNTIME}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(sections))
    given = {"--task": "tiny", "--prepared": prepared, "--params": tmp_path / "params.yaml", "--out": out}
    result = CliRunner().invoke(main, [str(part) for pair in given.items() for part in pair])
    if words:
        assert "tasks.tiny.words is missing; null says that the task needs no masked language model" in result.output
        assert (result.exit_code, out.exists()) == (1, False)
    else:
        assert f"{out}: no masked language model" in result.output
        assert words_in(out) == WordsFacts(model=None)


ROWS = 400


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_prepared(tmp_path_factory.mktemp("prepared"), make_task(pair=True), {"train": ROWS, "dev": 40, "test": 4})


def rows_of(pairs: Path, **changed: object) -> MaskedRows:
    return masked_rows(pairs / "train.parquet", make_tokenizer(), len(make_tokenizer()), MAX_LENGTH, fit_settings(**changed))


def at(rows: list[int], epoch: int = 0) -> MicroBatch:
    return MicroBatch(np.array(rows), epoch, 0.0, 1.0)


def test_a_batch_shows_every_token_that_is_not_to_be_guessed_and_labels_those_it_hides(pairs: Path) -> None:
    tokenizer, rows = make_tokenizer(), rows_of(pairs)
    batch = rows.batch(at([5, 0, 7]))
    asked = batch["labels"] != IGNORED
    for place, row in enumerate((5, 0, 7)):
        whole = torch.tensor(rows.input_ids[row])
        assert torch.where(asked, batch["labels"], batch["input_ids"])[place, : len(whole)].equal(whole)
        assert batch["attention_mask"][place].sum() == len(whole)
        assert not asked[place, len(whole) :].any()
        separators = (whole == tokenizer.sep_token_id).long()
        assert batch["token_type_ids"][place, : len(whole)].equal(separators.cumsum(0) - separators)
    assert not torch.isin(batch["labels"][asked], torch.tensor(tokenizer.all_special_ids)).any()


def test_of_too_many_rows_those_are_read_whose_ids_are_drawn_in_their_order(pairs: Path) -> None:
    every, some, fewer, other = (rows_of(pairs, rows=rows, seed=seed) for rows, seed in ((None, 1), (50, 1), (20, 1), (50, 2)))
    assert (len(every), len(some), len(fewer)) == (ROWS, 50, 20)
    assert set(fewer.example_ids) < set(some.example_ids) != set(other.example_ids)
    assert some.example_ids == sorted(some.example_ids)


def test_a_token_that_the_model_does_not_know_is_not_drawn(pairs: Path) -> None:
    """A tokenizer may name tokens that were added and occur in no text."""
    tokenizer, known = make_tokenizer(), len(make_tokenizer())
    tokenizer.add_tokens([f"added{number}" for number in range(known)])
    rows = masked_rows(pairs / "train.parquet", tokenizer, known, MAX_LENGTH, fit_settings(mlm_probability=0.9))
    assert int(rows.batch(at(list(range(ROWS))))["input_ids"].max()) < known


def test_the_shares_are_those_of_bert(pairs: Path) -> None:
    rows, tokenizer = rows_of(pairs, mlm_probability=0.3), make_tokenizer()
    batches = [rows.batch(at(list(range(ROWS)), epoch)) for epoch in range(3)]
    shown, labels = (torch.cat([batch[name].flatten() for batch in batches]) for name in ("input_ids", "labels"))
    asked = labels != IGNORED
    ordinary = sum(int((~np.isin(ids, tokenizer.all_special_ids)).sum()) for ids in rows.input_ids) * 3
    assert int(asked.sum()) / ordinary == pytest.approx(0.3, abs=0.02)
    hidden = shown[asked] == tokenizer.mask_token_id
    assert float(hidden.float().mean()) == pytest.approx(0.8, abs=0.02)
    same = shown[asked] == labels[asked]
    assert float(same.float().mean()) == pytest.approx(0.1, abs=0.02)
    others = shown[asked][~hidden & ~same]
    assert len(others.unique()) > 10, "another token is drawn from the whole vocabulary"
    assert not torch.isin(others, torch.tensor(tokenizer.all_special_ids)).any()


def test_every_text_has_a_token_to_guess_however_short_and_small_the_share(pairs: Path) -> None:
    batch = rows_of(pairs, mlm_probability=0.0001).batch(at(list(range(ROWS))))
    assert (batch["labels"] != IGNORED).sum(dim=1).tolist() == [1] * ROWS


def test_what_is_masked_is_a_function_of_seed_example_and_epoch(pairs: Path) -> None:
    rows = rows_of(pairs)
    alone, among = rows.batch(at([3])), rows.batch(at([9, 3, 1]))
    assert among["labels"][1, : alone["labels"].shape[1]].equal(alone["labels"][0])
    for other in (rows.batch(at([3], epoch=1)), rows_of(pairs, seed=2).batch(at([3]))):
        assert not other["input_ids"].equal(alone["input_ids"])


def test_the_loss_is_the_cross_entropy_of_the_masked_tokens_as_transformers_has_it(pairs: Path, tmp_path: Path) -> None:
    model = BertForMaskedLM.from_pretrained(save_masked_lm(tmp_path)).eval()
    batch = rows_of(pairs).batch(at([0, 1, 2, 3]))
    found = loss_of(model, batch)
    for row in range(4):
        inputs = {name: batch[name][row : row + 1] for name in ("input_ids", "attention_mask", "token_type_ids")}
        wanted = functional.cross_entropy(model(**inputs).logits[0], batch["labels"][row], ignore_index=IGNORED)
        torch.testing.assert_close(found[row], wanted, atol=1e-5, rtol=1e-5)


def test_a_text_without_words_costs_nothing_and_breaks_nothing(tmp_path: Path) -> None:
    model, tokenizer = BertForMaskedLM.from_pretrained(save_masked_lm(tmp_path)).eval(), load_tokenizer(tmp_path)
    ids = [np.array(tokenizer(text)["input_ids"]) for text in ("", "")]
    special = np.array(sorted(tokenizer.all_special_ids))
    rows = MaskedRows(["a", "b"], ids, None, fit_settings(), special, 4, 0, len(tokenizer))
    assert loss_of(model, rows.batch(at([0, 1]))).tolist() == [0.0, 0.0]
