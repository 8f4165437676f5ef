from pathlib import Path

import pytest
import safetensors.torch
from transformers import BertConfig

from pipeline.config.errors import PipelineError
from pipeline.models.loading import load_masked_lm
from pipeline.models.soundness import check_tokenizer
from pipeline.training.masked_lm import WORDS_FILE, WordsFacts, words_in
from tests.world import make_task, make_tokenizer, save_masked_lm, save_teacher


def test_a_folder_that_the_stage_did_not_write_is_refused_and_a_damaged_note_too(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=rf"{tmp_path} has no words\.json; the stage words writes it"):
        words_in(tmp_path)
    (tmp_path / WORDS_FILE).write_text('{"model": 3}')
    with pytest.raises(PipelineError, match=r"words\.json is damaged: model is not what this version .*dvc repro$"):
        words_in(tmp_path)


def test_what_a_person_is_told() -> None:
    assert WordsFacts(model=None).told() == "no masked language model, since the task asks for none"
    assert WordsFacts(model="some", fitted=True, perplexity=62.5).told() == (
        "fitted, 0.0160 on dev: the probability of a masked token (perplexity 62.5)"
    )
    assert WordsFacts(model="some").told() == "adopted as it is"


def test_another_tokenizer_than_the_teacher_s_is_refused_and_both_are_named() -> None:
    theirs, ours = make_tokenizer(), make_tokenizer()
    check_tokenizer("the/model", theirs, ours)
    ours.add_tokens(["more"])
    ours.name_or_path = "the/teacher"
    with pytest.raises(PipelineError) as error:
        check_tokenizer("the/model", theirs, ours)
    assert str(error.value).startswith("the masked language model the/model has another tokenizer (")
    assert "than the teacher the/teacher (" in str(error.value)


def test_a_tokenizer_without_a_mask_token_is_refused() -> None:
    tokenizer = make_tokenizer()
    tokenizer.mask_token = None
    tokenizer.name_or_path = "the/teacher"
    with pytest.raises(PipelineError, match=r"the tokenizer of the/teacher has no mask token, so no word can be masked"):
        check_tokenizer("the/model", tokenizer, tokenizer)


def test_a_classifier_is_not_a_masked_language_model(tmp_path: Path) -> None:
    save_teacher(tmp_path, make_task())
    with pytest.raises(PipelineError, match=r"is not a finished masked language model: it lacks .*cls\.predictions"):
        load_masked_lm(tmp_path)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    save_masked_lm(tmp_path)
    BertConfig.from_pretrained(tmp_path, intermediate_size=48).save_pretrained(tmp_path)
    with pytest.raises(PipelineError, match=r"in another shape \(bert\.encoder\.layer\.0\.intermediate"):
        load_masked_lm(tmp_path)


def test_a_checkpoint_that_holds_a_tied_projection_once_is_finished(tmp_path: Path) -> None:
    save_masked_lm(tmp_path)
    assert "cls.predictions.decoder.weight" not in safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert load_masked_lm(tmp_path)


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    (save_masked_lm(tmp_path) / "model.safetensors").rename(tmp_path / "elsewhere")
    with pytest.raises(PipelineError, match=f"no masked language model can be loaded from {tmp_path}: "):
        load_masked_lm(tmp_path)
