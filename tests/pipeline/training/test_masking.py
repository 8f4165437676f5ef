from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import BertForMaskedLM

from pipeline.models.folder import load_tokenizer
from pipeline.training.masked_lm import IGNORED, FitSettings, MaskedRows, loss_of, masked_rows
from pipeline.training.order import MicroBatch
from tests.world import FIT, MAX_LENGTH, make_task, make_tokenizer, save_masked_lm, save_prepared

ROWS = 400


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_prepared(tmp_path_factory.mktemp("prepared"), make_task(pair=True), {"train": ROWS, "dev": 40, "test": 4})


def rows_of(prepared: Path, **changed: object) -> MaskedRows:
    settings = FitSettings.model_validate(FIT | changed)
    return masked_rows(prepared, "train", make_tokenizer(), len(make_tokenizer()), MAX_LENGTH, settings)


def at(rows: list[int], epoch: int = 0) -> MicroBatch:
    return MicroBatch(np.array(rows), epoch, 0.0, 1.0)


def test_a_batch_shows_every_token_that_is_not_asked_for_and_asks_for_those_it_hides(prepared: Path) -> None:
    tokenizer, rows = make_tokenizer(), rows_of(prepared)
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


def test_of_too_many_rows_those_are_read_whose_ids_are_drawn_in_their_order(prepared: Path) -> None:
    every, some, fewer, other = (
        rows_of(prepared, **changed) for changed in ({}, {"rows": 50}, {"rows": 20}, {"rows": 50, "seed": 2})
    )
    assert (len(every), len(some), len(fewer)) == (ROWS, 50, 20)
    assert set(fewer.example_ids) < set(some.example_ids) < set(every.example_ids)
    assert some.example_ids == sorted(some.example_ids)
    assert set(other.example_ids) != set(some.example_ids)
    by_id = dict(zip(every.example_ids, every.input_ids, strict=True))
    assert all(by_id[name].tolist() == ids.tolist() for name, ids in zip(some.example_ids, some.input_ids, strict=True))


def test_a_token_that_the_model_does_not_know_stands_in_no_others_place(prepared: Path) -> None:
    """A tokenizer may name one that was added and that no text has."""
    tokenizer, settings = make_tokenizer(), FitSettings.model_validate(FIT | {"masked": 0.9})
    known = len(tokenizer)
    tokenizer.add_tokens([f"added{number}" for number in range(known)])
    rows = masked_rows(prepared, "train", tokenizer, known, MAX_LENGTH, settings)
    assert int(rows.batch(at(list(range(ROWS))))["input_ids"].max()) < known


def test_the_shares_are_those_of_bert(prepared: Path) -> None:
    rows, tokenizer = rows_of(prepared, masked=0.3), make_tokenizer()
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


def test_every_text_is_asked_about_however_short_and_small_the_share(prepared: Path) -> None:
    batch = rows_of(prepared, masked=0.0001).batch(at(list(range(ROWS))))
    assert (batch["labels"] != IGNORED).sum(dim=1).tolist() == [1] * ROWS


def test_what_is_asked_is_a_function_of_seed_example_and_epoch(prepared: Path) -> None:
    rows = rows_of(prepared)
    alone, among = rows.batch(at([3])), rows.batch(at([9, 3, 1]))
    assert among["labels"][1, : alone["labels"].shape[1]].equal(alone["labels"][0])
    for other in (rows.batch(at([3], epoch=1)), rows_of(prepared, seed=2).batch(at([3]))):
        assert not other["input_ids"].equal(alone["input_ids"])


def test_the_loss_is_the_cross_entropy_of_the_tokens_asked_for_as_transformers_has_it(prepared: Path, tmp_path: Path) -> None:
    model = BertForMaskedLM.from_pretrained(save_masked_lm(tmp_path)).eval()
    batch = rows_of(prepared).batch(at([0, 1, 2, 3]))
    found = loss_of(model, batch)
    for row in range(4):
        inputs = {name: batch[name][row : row + 1] for name in ("input_ids", "attention_mask", "token_type_ids")}
        wanted = functional.cross_entropy(model(**inputs).logits[0], batch["labels"][row], ignore_index=IGNORED)
        torch.testing.assert_close(found[row], wanted, atol=1e-5, rtol=1e-5)


def test_a_text_without_words_costs_nothing_and_breaks_nothing(tmp_path: Path) -> None:
    model, tokenizer = BertForMaskedLM.from_pretrained(save_masked_lm(tmp_path)).eval(), load_tokenizer(tmp_path)
    ids = [np.array(tokenizer(text)["input_ids"]) for text in ("", "")]
    special = np.array(sorted(tokenizer.all_special_ids))
    rows = MaskedRows(["a", "b"], ids, None, FitSettings.model_validate(FIT), special, 4, 0, len(tokenizer))
    assert loss_of(model, rows.batch(at([0, 1]))).tolist() == [0.0, 0.0]
