import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional
from transformers import BartConfig, BartForConditionalGeneration, BertForMaskedLM, BertModel

from pipeline.augment.batches import Inputs
from pipeline.augment.candidates import MaskedLM
from pipeline.config.settings import ReplacementSettings
from pipeline.config.errors import PipelineError
from pipeline.models.architectures import ENCODERS
from pipeline.models.folder import load_tokenizer, model_hash
from pipeline.training.masked_lm import IGNORED, WORDS_FILE, MaskedRows, WordsFacts, WordsSettings, loss_of, masked_rows, prepare_words, words_in
from pipeline.config.settings import ReplacementSettings
from pipeline.training.order import MicroBatch
from pipeline.config.settings import TeacherSettings
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
    save_teacher,
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every text is one word three times over, so that a masked one is known."""
    folder = save_prepared(tmp_path_factory.mktemp("prepared"), make_task(), {"train": 160, "dev": 16, "test": 4})
    for split in ("train", "dev"):
        table = pq.read_table(folder / f"{split}.parquet")
        texts = [" ".join([WORDS[number % 8]] * 3) for number in range(len(table))]
        pq.write_table(table.set_column(1, "text_a", pa.array(texts)), folder / f"{split}.parquet")
    return folder


def teacher_at(model: Path, max_length: int = MAX_LENGTH) -> TeacherSettings:
    return TeacherSettings(model=str(model), fine_tune=True, max_length=max_length)


def made(prepared: Path, model: Path, out: Path, fit: bool = True, **changed: Any) -> WordsFacts:
    words = WordsSettings(model=str(model), fit=fit)
    return prepare_words(prepared, teacher_at(model), words, MaskedLMSettings.model_validate(FIT | changed), out)


def test_a_fitted_model_learns_which_word_was_masked_and_proposes_it(prepared: Path, teacher: Path, tmp_path: Path) -> None:
    short, long = (
        made(prepared, teacher, tmp_path / str(epochs), num_train_epochs=epochs, learning_rate=3e-3) for epochs in (1, 12)
    )
    assert short.perplexity is not None
    assert long.perplexity is not None
    assert long.perplexity < 0.6 * short.perplexity
    measured = [float(row["dev"]) for row in csv.DictReader((tmp_path / "12" / HISTORY_FILE).open())]
    assert 0 < min(measured) < max(measured) < 1
    assert max(measured) == pytest.approx(1 / long.perplexity)
    assert words_in(tmp_path / "12") == long == WordsFacts(model=model_hash(teacher), fitted=True, perplexity=long.perplexity)
    tokenizer = load_tokenizer(teacher)
    model = MaskedLM(tmp_path / "12", ReplacementSettings(replace=0.4, candidates=1, batch_rows=8), tokenizer)
    texts = [" ".join([word] * 3) for word in WORDS[:8]]
    found = model.candidates(Inputs(texts, [np.array(tokenizer(text)["input_ids"], np.int32) for text in texts], None))
    right = [int((row.ids == len(SPECIAL) + number).sum()) for number, row in enumerate(found)]
    assert sum(right) > 20, "of 24"


def test_the_same_settings_make_the_same_model(prepared: Path, teacher: Path, tmp_path: Path) -> None:
    for name in ("first", "again"):
        made(prepared, teacher, tmp_path / name, num_train_epochs=1)
    made(prepared, teacher, tmp_path / "other", num_train_epochs=1, seed=2)
    first, again, other = (model_hash(tmp_path / name) for name in ("first", "again", "other"))
    assert first == again != other


def test_a_new_head_begins_by_asking_which_word_the_output_is_like(prepared: Path, teacher: Path, tmp_path: Path) -> None:
    made(prepared, teacher, tmp_path / "words", num_train_epochs=1, learning_rate=1e-12)
    head = BertForMaskedLM.from_pretrained(tmp_path / "words").cls.predictions
    torch.testing.assert_close(head.transform.dense.weight, torch.eye(len(head.transform.dense.weight)))
    torch.testing.assert_close(head.decoder.weight, BertModel.from_pretrained(teacher).embeddings.word_embeddings.weight)


def test_a_finished_model_is_adopted_with_its_weights_and_fitted_from_them(prepared: Path, tmp_path: Path) -> None:
    finished = save_masked_lm(tmp_path / "finished")
    facts = made(prepared, finished, tmp_path / "adopted", fit=False)
    assert (facts.fitted, facts.perplexity) == (False, None)
    assert model_hash(tmp_path / "adopted") == model_hash(finished)
    made(prepared, finished, tmp_path / "fitted", num_train_epochs=1, learning_rate=1e-12)
    weights = [BertForMaskedLM.from_pretrained(folder).cls.predictions.transform.dense.weight for folder in
               (finished, tmp_path / "fitted")]  # fmt: skip
    torch.testing.assert_close(*weights)


def test_a_task_without_words_has_a_note_and_no_model(prepared: Path, teacher: Path, tmp_path: Path) -> None:
    facts = prepare_words(prepared, teacher_at(teacher), None, MaskedLMSettings.model_validate(FIT), tmp_path / "words")
    assert facts == words_in(tmp_path / "words") == WordsFacts(model=None)
    assert [file.name for file in (tmp_path / "words").iterdir()] == [WORDS_FILE]


def test_an_encoder_is_not_adopted_and_the_way_out_is_to_fit_it(prepared: Path, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(
        PipelineError, match=r"is not a finished masked language model but a BertForS.* or fit this one: tasks\.<task>\.words"
    ):
        made(prepared, teacher, tmp_path / "words", fit=False)
    assert not (tmp_path / "words").exists()


def test_a_model_with_another_tokenizer_is_refused_before_it_is_fitted(prepared: Path, teacher: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(teacher, tmp_path / "other"))
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(other)
    words, settings = WordsSettings(model=str(other), fit=True), MaskedLMSettings.model_validate(FIT)
    with pytest.raises(PipelineError, match=rf"masked language model {other} has another tokenizer"):
        prepare_words(prepared, teacher_at(teacher), words, settings, tmp_path / "words")


def test_a_task_that_does_not_say_whether_it_needs_words_is_refused(prepared: Path, teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(f"tasks: {{tiny: {{teacher: {{model: {teacher}, fine_tune: true, max_length: 8}}}}}}")
    given = {"--task": "tiny", "--prepared": prepared, "--params": tmp_path / "params.yaml", "--out": tmp_path / "words"}
    result = CliRunner().invoke(main, [str(part) for pair in given.items() for part in pair])
    assert result.exit_code == 1
    assert "tasks.tiny.words is missing; null says that the task needs no masked language model" in result.output
    assert not (tmp_path / "words").exists()


@pytest.mark.parametrize("fit", [True, False])
def test_a_model_with_too_few_positions_is_refused(prepared: Path, teacher: Path, tmp_path: Path, fit: bool) -> None:
    words, settings = WordsSettings(model=str(teacher), fit=fit), MaskedLMSettings.model_validate(FIT)
    with pytest.raises(PipelineError, match=rf"takes at most {MAX_LENGTH} tokens, but teacher\.max_length is {MAX_LENGTH + 1}"):
        prepare_words(prepared, teacher_at(teacher, MAX_LENGTH + 1), words, settings, tmp_path / "words")


def test_a_model_of_a_type_that_fills_no_masks_is_refused_by_name(prepared: Path, teacher: Path, tmp_path: Path) -> None:
    sizes = {"vocab_size": 65, "d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    bart = BartConfig(encoder_layers=1, decoder_layers=1, **sizes)
    BartForConditionalGeneration(bart).save_pretrained(tmp_path / "bart")
    make_tokenizer().save_pretrained(tmp_path / "bart")
    for fit in (True, False):
        with pytest.raises(PipelineError, match=r"bart is a 'bart' model, which fills no masks here; supported are albert"):
            made(prepared, tmp_path / "bart", tmp_path / "words", fit=fit)


def test_a_tokenizer_with_more_tokens_than_its_model_is_refused(prepared: Path, tmp_path: Path) -> None:
    small = save_masked_lm(tmp_path / "small")
    rewrite(small / "config.json", vocab_size=60)
    with pytest.raises(PipelineError, match=r"small knows 60 tokens, but its tokenizer gives 65"):
        made(prepared, small, tmp_path / "words")


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_encoder_is_fitted_from_a_classifier_and_proposes_words(prepared: Path, tmp_path: Path, kind: str) -> None:
    of_type(kind, vocab_size=len(make_tokenizer()), max_position_embeddings=64).save_pretrained(tmp_path / "classifier")
    make_tokenizer(types=kind in WITH_TOKEN_TYPES).save_pretrained(tmp_path / "classifier")
    first, later = (
        made(prepared, tmp_path / "classifier", tmp_path / str(epochs), num_train_epochs=epochs, learning_rate=3e-3)
        for epochs in (1, 4)
    )
    assert first.perplexity is not None
    assert later.perplexity is not None
    assert later.perplexity < first.perplexity
    model = MaskedLM(tmp_path / "4", ReplacementSettings(replace=0.4, candidates=3, batch_rows=8), load_tokenizer(tmp_path / "4"))
    (row,) = model.candidates(Inputs(["a"], [np.array([2, 9, 10, 3], dtype=np.int32)], None))
    assert row.ids.shape == (6,)


def test_a_body_that_lacks_weights_is_refused(prepared: Path, tmp_path: Path) -> None:
    lacking = save_teacher(tmp_path / "lacking", make_task())
    config = BertModel.from_pretrained(lacking).config
    config.num_hidden_layers += 1
    config.save_pretrained(lacking)
    with pytest.raises(PipelineError, match=r"lacking is not a finished encoder: .*bert\.encoder\.layer"):
        made(prepared, lacking, tmp_path / "words")


@pytest.mark.parametrize("words", ["null", "{model: TEACHER, fit: true}"])
def test_the_stage_says_what_it_made(prepared: Path, teacher: Path, tmp_path: Path, words: str) -> None:
    fit = json.dumps(FIT | {"num_train_epochs": 1})
    (tmp_path / "params.yaml").write_text(
        f"tasks: {{tiny: {{teacher: {{model: {teacher}, fine_tune: true, max_length: {MAX_LENGTH}}}, "
        f"words: {words.replace('TEACHER', str(teacher))}}}}}\nwords: {fit}\nruntime: {json.dumps(RUNTIME)}\n"
    )
    given = {"--task": "tiny", "--prepared": prepared, "--params": tmp_path / "params.yaml", "--out": tmp_path / "words"}
    result = CliRunner().invoke(main, [str(part) for pair in given.items() for part in pair])
    assert result.exit_code == 0, result.output
    told = "no masked language model" if words == "null" else "fitted, "
    assert result.output.splitlines()[-1].startswith(f"{tmp_path / 'words'}: {told}")


def test_a_folder_that_the_stage_did_not_write_is_an_error_and_damaged_facts_too(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=rf"{tmp_path} has no words\.json; the stage words writes it"):
        words_in(tmp_path)
    (tmp_path / WORDS_FILE).write_text('{"model": 3}')
    with pytest.raises(PipelineError, match=r"words\.json is damaged: model is not what this version .*dvc repro$"):
        words_in(tmp_path)


ROWS = 400


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_prepared(tmp_path_factory.mktemp("prepared"), make_task(pair=True), {"train": ROWS, "dev": 40, "test": 4})


def rows_of(pairs: Path, **changed: object) -> MaskedRows:
    settings = MaskedLMSettings.model_validate(FIT | changed)
    return masked_rows(pairs / "train.parquet", make_tokenizer(), len(make_tokenizer()), MAX_LENGTH, settings)


def at(rows: list[int], epoch: int = 0) -> MicroBatch:
    return MicroBatch(np.array(rows), epoch, 0.0, 1.0)


def test_a_batch_shows_every_token_that_is_not_to_be_guessed_and_labels_those_it_hides(pairs: Path) -> None:
    tokenizer, rows = make_tokenizer(), rows_of(pairs)
    batch = rows.batch(at([5, 0, 7]))
    asked = batch["labels"] != IGNORED
    for place, row in enumerate((5, 0, 7)):
        whole = torch.tensor(rows.input_ids[row])
        length = len(whole)
        assert torch.where(asked, batch["labels"], batch["input_ids"])[place, :length].equal(whole)
        assert batch["attention_mask"][place].sum() == length
        assert not asked[place, length:].any()
        assert batch["token_type_ids"][place, :length].tolist() == tokenizer_types(tokenizer, whole)
    assert not torch.isin(batch["labels"][asked], torch.tensor(tokenizer.all_special_ids)).any()


def tokenizer_types(tokenizer: object, ids: torch.Tensor) -> list[int]:
    """0 up to the first separator, 1 behind it."""
    after_first = (ids == tokenizer.sep_token_id).cumsum(0) - (ids == tokenizer.sep_token_id).long()  # type: ignore[attr-defined]
    return after_first.tolist()


def test_of_too_many_rows_those_are_read_whose_ids_are_drawn_in_their_order(pairs: Path) -> None:
    every, some, fewer, other = (
        rows_of(pairs, **changed) for changed in ({}, {"rows": 50}, {"rows": 20}, {"rows": 50, "seed": 2})
    )
    assert (len(every), len(some), len(fewer)) == (ROWS, 50, 20)
    assert set(fewer.example_ids) < set(some.example_ids) < set(every.example_ids)
    assert some.example_ids == sorted(some.example_ids)
    assert set(other.example_ids) != set(some.example_ids)
    by_id = dict(zip(every.example_ids, every.input_ids, strict=True))
    assert all(by_id[name].tolist() == ids.tolist() for name, ids in zip(some.example_ids, some.input_ids, strict=True))


def test_a_token_that_the_model_does_not_know_stands_in_no_others_place(pairs: Path) -> None:
    """A tokenizer may name one that was added and that no text has."""
    tokenizer, settings = make_tokenizer(), MaskedLMSettings.model_validate(FIT | {"mlm_probability": 0.9})
    known = len(tokenizer)
    tokenizer.add_tokens([f"added{number}" for number in range(known)])
    rows = masked_rows(pairs / "train.parquet", tokenizer, known, MAX_LENGTH, settings)
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
    rows = MaskedRows(["a", "b"], ids, None, MaskedLMSettings.model_validate(FIT), special, 4, 0, len(tokenizer))
    assert loss_of(model, rows.batch(at([0, 1]))).tolist() == [0.0, 0.0]
