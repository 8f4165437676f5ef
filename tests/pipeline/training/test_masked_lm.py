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
from torch.nn import functional
from transformers import BartConfig, BartForConditionalGeneration, BertForMaskedLM, BertModel

from pipeline.augment.batches import Inputs
from pipeline.augment.candidates import MaskedLM
from pipeline.config.errors import PipelineError
from pipeline.config.settings import MaskedLMSettings, TeacherSettings
from pipeline.models.architectures import ENCODERS
from pipeline.models.folder import ModelFolder
from pipeline.training.masked_lm import (
    MaskedLMFacts,
    MaskedRows,
    check_masked_lm,
    loss_of,
    masked_lm_in,
    masked_rows,
    prepare_masked_lm,
)
from pipeline.training.order import MicroBatch
from pipeline.training.trainer import HISTORY_FILE, IGNORED
from tests.architectures import WITH_TOKEN_TYPES, of_type
from tests.world import (
    MASKED_LM,
    MAX_LENGTH,
    SPECIAL,
    WORDS,
    augment_settings,
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


def settings_of(**changed: Any) -> MaskedLMSettings:
    return MaskedLMSettings.model_validate(MASKED_LM | changed)


def trained(prepared: Path, model: Path, out: Path, **changed: Any) -> MaskedLMFacts:
    teacher = TeacherSettings(model=str(model), fine_tune=True, max_length=MAX_LENGTH)
    return prepare_masked_lm(prepared, teacher, settings_of(**changed), out)


def dev_of(folder: Path) -> list[float]:
    """The probability of a masked token on dev, by epoch."""
    return [float(row["dev"]) for row in csv.DictReader((folder / HISTORY_FILE).open())]


def proposals(folder: Path, candidates: int, texts: list[str]) -> list[Any]:
    opened = ModelFolder(folder)
    settings = augment_settings(masked_lm={"replace": 0.4, "candidates": candidates})
    ids = [np.array(opened.tokenizer(text)["input_ids"], np.int32) for text in texts]
    return [row.ids for row in MaskedLM(opened, settings, opened.tokenizer).candidates(Inputs(texts, ids, None))]


def test_a_fine_tuned_model_learns_which_word_was_masked_and_proposes_it(prepared: Path, encoder: Path, tmp_path: Path) -> None:
    facts = trained(prepared, encoder, tmp_path / "out", num_train_epochs=12, batch_size=16, learning_rate=1e-2)
    measured = dev_of(tmp_path / "out")
    assert 0 < measured[0] < 0.6 * max(measured) < 1
    assert facts.perplexity == pytest.approx(1 / max(measured))
    assert (
        masked_lm_in(tmp_path / "out")
        == facts
        == MaskedLMFacts(model=ModelFolder(encoder).hash, fitted=True, perplexity=facts.perplexity)
    )
    found = proposals(tmp_path / "out", 1, [" ".join([word] * 3) for word in WORDS[:8]])
    assert sum(int((ids == len(SPECIAL) + number).sum()) for number, ids in enumerate(found)) > 20, "of 24"


def test_a_new_head_begins_by_comparing_the_output_with_the_words(prepared: Path, encoder: Path, tmp_path: Path) -> None:
    trained(prepared, encoder, tmp_path / "out", max_rows=8, num_train_epochs=1, learning_rate=1e-12)
    head = BertForMaskedLM.from_pretrained(tmp_path / "out").cls.predictions
    torch.testing.assert_close(head.transform.dense.weight, torch.eye(len(head.transform.dense.weight)))
    torch.testing.assert_close(head.decoder.weight, BertModel.from_pretrained(encoder).embeddings.word_embeddings.weight)


def test_a_finished_model_is_adopted_as_it_is_or_fine_tuned_from_its_weights(prepared: Path, tmp_path: Path) -> None:
    finished = save_masked_lm(tmp_path / "finished")
    facts = trained(prepared, finished, tmp_path / "adopted", fine_tune=False)
    assert (facts.fitted, facts.perplexity) == (False, None)
    assert ModelFolder(tmp_path / "adopted").hash == ModelFolder(finished).hash
    trained(prepared, finished, tmp_path / "fitted", max_rows=8, num_train_epochs=1, learning_rate=1e-12)
    given, fitted = (BertForMaskedLM.from_pretrained(folder).cls.predictions for folder in (finished, tmp_path / "fitted"))
    torch.testing.assert_close(fitted.transform.dense.weight, given.transform.dense.weight)


def with_more_tokens(folder: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(folder)


def configured(**changed: int) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder / "config.json", **changed)


def as_bart(folder: Path) -> None:
    sizes: dict[str, Any] = {
        "d_model": 16,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_layers": 1,
        "decoder_layers": 1,
    }
    BartForConditionalGeneration(BartConfig(vocab_size=65, **sizes)).save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "fine_tune", "sentence"),
    [
        (with_more_tokens, True, r"masked language model .*/model has another tokenizer"),
        (as_bart, False, r"model is a 'bart' model, which fills no masks here; supported are albert"),
        (configured(max_position_embeddings=20), False, r"takes at most 20 tokens, but teacher"),
        (configured(vocab_size=60), True, r"knows 60 tokens, but its tokenizer gives 65"),
        (configured(num_hidden_layers=3), True, r"not a finished encoder: .*encoder\.layer\.2"),
        (configured(), False, r"not a finished masked language model: .*or train this one: masked_lm\.fine_tune: true"),
    ],
)
def test_a_model_that_cannot_be_the_masked_language_model_is_an_error(
    damage: Callable[[Path], None], fine_tune: bool, sentence: str, encoder: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(encoder, tmp_path / "model"))
    damage(model)
    with pytest.raises(PipelineError, match=sentence):
        check_masked_lm(ModelFolder(model), ModelFolder(encoder), fine_tune, MAX_LENGTH)


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_encoder_is_fine_tuned_from_a_classifier_and_proposes_words(prepared: Path, tmp_path: Path, kind: str) -> None:
    model = save_encoder(tmp_path / "encoder", kind)
    trained(prepared, model, tmp_path / "out", max_rows=80, num_train_epochs=3, learning_rate=3e-3)
    measured = dev_of(tmp_path / "out")
    assert max(measured) > measured[0]
    assert [ids.shape for ids in proposals(tmp_path / "out", 3, ["word4 word5"])] == [(6,)]


def test_a_task_without_masked_words_needs_no_model(prepared: Path, tmp_path: Path) -> None:
    teacher = TeacherSettings(model="no/model", fine_tune=True, max_length=MAX_LENGTH)
    facts = prepare_masked_lm(prepared, teacher, None, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["masked_lm.json"]
    assert masked_lm_in(tmp_path / "out") == facts == MaskedLMFacts(model=None)


ROWS = 400


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_prepared(tmp_path_factory.mktemp("prepared"), make_task(pair=True), {"train": ROWS, "dev": 40, "test": 4})


def rows_of(pairs: Path, **changed: object) -> MaskedRows:
    return masked_rows(pairs / "train.parquet", make_tokenizer(), len(make_tokenizer()), MAX_LENGTH, settings_of(**changed))


def at(rows: list[int], epoch: int = 0) -> MicroBatch:
    return MicroBatch(np.array(rows), epoch, 0.0, 1.0)


def test_a_batch_labels_the_hidden_tokens_and_shows_all_others(pairs: Path) -> None:
    tokenizer, rows = make_tokenizer(), rows_of(pairs)
    batch = rows.batch(at([5, 0, 7]))
    guessed = batch["labels"] != IGNORED
    for place, row in enumerate((5, 0, 7)):
        whole = torch.tensor(rows.input_ids[row])
        assert torch.where(guessed, batch["labels"], batch["input_ids"])[place, : len(whole)].equal(whole)
        assert batch["attention_mask"][place].sum() == len(whole)
        assert not guessed[place, len(whole) :].any()
        separators = (whole == tokenizer.sep_token_id).long()
        assert batch["token_type_ids"][place, : len(whole)].equal(separators.cumsum(0) - separators)
    assert not torch.isin(batch["labels"][guessed], torch.tensor(tokenizer.all_special_ids)).any()


def test_max_rows_samples_by_id_and_keeps_the_order(pairs: Path) -> None:
    every, some, fewer, other = (
        rows_of(pairs, max_rows=rows, seed=seed) for rows, seed in ((None, 1), (50, 1), (20, 1), (50, 2))
    )
    assert (len(every), len(some), len(fewer)) == (ROWS, 50, 20)
    assert set(fewer.example_ids) < set(some.example_ids) != set(other.example_ids)
    assert some.example_ids == sorted(some.example_ids)


def test_a_token_without_an_embedding_is_not_drawn(pairs: Path) -> None:
    """A tokenizer may name tokens that were added and occur in no text."""
    tokenizer, known = make_tokenizer(), len(make_tokenizer())
    tokenizer.add_tokens([f"added{number}" for number in range(known)])
    rows = masked_rows(pairs / "train.parquet", tokenizer, known, MAX_LENGTH, settings_of(mlm_probability=0.9))
    assert int(rows.batch(at(list(range(ROWS))))["input_ids"].max()) < known


def test_masked_replaced_and_kept_shares_are_those_of_bert(pairs: Path) -> None:
    rows, tokenizer = rows_of(pairs, mlm_probability=0.3), make_tokenizer()
    batches = [rows.batch(at(list(range(ROWS)), epoch)) for epoch in range(3)]
    shown, labels = (torch.cat([batch[name].flatten() for batch in batches]) for name in ("input_ids", "labels"))
    guessed = labels != IGNORED
    ordinary = sum(int((~np.isin(ids, tokenizer.all_special_ids)).sum()) for ids in rows.input_ids) * 3
    assert int(guessed.sum()) / ordinary == pytest.approx(0.3, abs=0.02)
    hidden = shown[guessed] == tokenizer.mask_token_id
    assert float(hidden.float().mean()) == pytest.approx(0.8, abs=0.02)
    same = shown[guessed] == labels[guessed]
    assert float(same.float().mean()) == pytest.approx(0.1, abs=0.02)
    others = shown[guessed][~hidden & ~same]
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


def test_the_loss_is_transformers_cross_entropy_of_the_masked_tokens(pairs: Path, tmp_path: Path) -> None:
    model = BertForMaskedLM.from_pretrained(save_masked_lm(tmp_path)).eval()
    batch = rows_of(pairs).batch(at([0, 1, 2, 3]))
    found = loss_of(model, batch)
    for row in range(4):
        inputs = {name: batch[name][row : row + 1] for name in ("input_ids", "attention_mask", "token_type_ids")}
        wanted = functional.cross_entropy(model(**inputs).logits[0], batch["labels"][row], ignore_index=IGNORED)
        torch.testing.assert_close(found[row], wanted, atol=1e-5, rtol=1e-5)


def test_a_text_without_words_has_no_loss(tmp_path: Path) -> None:
    model, tokenizer = BertForMaskedLM.from_pretrained(save_masked_lm(tmp_path)).eval(), ModelFolder(tmp_path).tokenizer
    ids = [np.array(tokenizer(text)["input_ids"]) for text in ("", "")]
    special = np.array(sorted(tokenizer.all_special_ids))
    rows = MaskedRows(["a", "b"], ids, None, settings_of(), special, 4, 0, len(tokenizer))
    assert loss_of(model, rows.batch(at([0, 1]))).tolist() == [0.0, 0.0]
