import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, PreTrainedTokenizerBase

from pipeline.config.errors import PipelineError
from pipeline.models.architectures import head_settings
from pipeline.models.folder import ModelFolder
from pipeline.models.soundness import (
    check_label_names,
    check_outputs,
    check_token_types,
    check_tokenizer,
    check_values,
    check_vocabulary,
)
from tests.world import make_task, make_tokenizer, rewrite


@pytest.fixture
def folder(teacher: Path, tmp_path: Path) -> Path:
    """A classifier that a test may harm."""
    return Path(shutil.copytree(teacher, tmp_path / "model"))


def refused(sentence: str | None) -> AbstractContextManager[Any]:
    """Expects an error with this sentence, or none."""
    return nullcontext() if sentence is None else pytest.raises(PipelineError, match=sentence)


def with_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> ModelFolder:
    tokenizer.save_pretrained(folder)
    return ModelFolder(folder)


def test_added_tokens_need_an_embedding_unless_they_are_special_and_without_a_role(folder: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    check_vocabulary(with_tokenizer(folder, tokenizer))
    tokenizer.add_special_tokens({"mask_token": "<new mask>"})
    tokenizer.add_tokens(["@user"])
    with pytest.raises(PipelineError, match=r"has embeddings for 65 tokens, .* that have none \(<new mask>, @user\)"):
        check_vocabulary(with_tokenizer(folder, tokenizer))


def test_token_types_without_an_embedding_are_refused_if_the_task_needs_them(folder: Path) -> None:
    rewrite(folder / "config.json", type_vocab_size=1)
    check_token_types(with_tokenizer(folder, make_tokenizer()), pair=False)
    check_token_types(with_tokenizer(folder, make_tokenizer(types=False)), pair=True)
    with pytest.raises(PipelineError, match=r"has type_vocab_size: 1, but its tokenizer gives a pair the token type 1; save"):
        check_token_types(with_tokenizer(folder, make_tokenizer()), pair=True)
    rewrite(folder / "config.json", type_vocab_size=0)  # as DeBERTa's, which reads none
    check_token_types(with_tokenizer(folder, make_tokenizer()), pair=True)


NAMED = {"0": "bad", "1": "good"}


@pytest.mark.parametrize(
    ("names", "numbers", "sentence"),
    [
        ({"0": 0, "1": 1}, {}, "does not name its labels"),
        ({"0": None, "1": "good"}, {}, "does not name its labels"),
        ({"0": "bad", "1": " "}, {}, "does not name its labels"),
        ({"1": "bad", "2": "good"}, {}, "does not name its labels"),
        ({"0": ["bad"], "1": {"good": 1}}, {}, "does not name its labels"),
        ({"0": "\ud800", "1": "good"}, {}, "does not name its labels"),
        (NAMED, {"bad": 1, "good": 0}, "contradicts itself"),
        (NAMED, {"bad": 0, "good": 1, "fine": 2}, "contradicts itself"),
        (NAMED, {"negative": 0, "positive": 1}, "contradicts itself"),
        ({"0": "good", "1": " good"}, {}, "gives two labels one name"),
        ({"0": "café", "1": "cafe\u0301"}, {}, "gives two labels one name"),
        (NAMED, {"bad": 0, "good": 1}, None),
        ({"0": "bad", "1": " good"}, {"bad": 0, " good": 1}, None),
        (NAMED, {}, None),
        (NAMED, {"LABEL_0": 0, "LABEL_1": 1}, None),
    ],
)
def test_labels_are_named_in_text_and_without_contradiction(
    names: dict[str, Any], numbers: dict[str, int], sentence: str | None, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    rewrite(tmp_path / "config.json", id2label=names, label2id=numbers)
    with refused(sentence):
        check_label_names(ModelFolder(tmp_path))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({}, None),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "5.0"}}, None),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.ReLU"}}, "that applies a ReLU to its logit"),
        ({"sentence_transformers": {"version": "5.0"}}, "that applies a Sigmoid to its logit"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.activation.Tanh"}, "that applies a Tanh to its logit"),
        ({"problem_type": None}, "does not say problem_type: regression, so transformers.pipeline serves its sigmoid"),
    ],
)
def test_a_regression_whose_logit_is_not_its_answer_is_refused(
    changed: dict[str, Any], sentence: str | None, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "id2label": {"0": "value"}, "problem_type": "regression"}')
    rewrite(tmp_path / "config.json", **changed)
    with refused(sentence):
        check_values(ModelFolder(tmp_path))


def test_a_masked_language_model_needs_the_teachers_tokenizer_with_a_mask_token() -> None:
    theirs, ours = make_tokenizer(), make_tokenizer()
    check_tokenizer("the/model", theirs, ours)
    ours.name_or_path, ours.mask_token = "the/teacher", None
    with pytest.raises(PipelineError, match=r"model the/model has another tokenizer \(\w+\) than the teacher the/teacher \("):
        check_tokenizer("the/model", theirs, ours)
    with pytest.raises(PipelineError, match=r"the tokenizer of the/teacher has no mask token, so no word can be masked"):
        check_tokenizer("the/model", ours, ours)


@pytest.mark.parametrize(
    ("labels", "remedy"),
    [
        (("good", "bad"), r'list them in the checkpoint\'s order: corpus.labels: \["good", "bad"\]'),
        (("LABEL_0", "LABEL_1"), "write what these stand for into id2label and label2id of the checkpoint's config.json"),
        (("bad", "fine"), r'if they mean the same, say which of the table\'s is which: corpus.labels: {…: "bad", …: "fine"}'),
        (("bad", "good", "fine"), r'list all of the classifier\'s, in its order: corpus.labels: \["bad", "good", "fine"\]'),
        (("bad", "well", "fine"), "a classifier of as many labels is needed, or teacher.fine_tune: true"),
    ],
)
def test_other_labels_than_the_tasks_are_an_error_with_the_remedy(labels: tuple[str, ...], remedy: str, tmp_path: Path) -> None:
    BertConfig(**head_settings(make_task(labels=labels))).save_pretrained(tmp_path)
    model = ModelFolder(tmp_path)
    check_outputs(model, "tiny", "classification", labels)
    with pytest.raises(PipelineError, match=remedy):
        check_outputs(model, "tiny", "classification", ("bad", "good"))


def test_outputs_of_another_kind_than_the_tasks_are_an_error(folder: Path) -> None:
    with pytest.raises(PipelineError, match="answers 2 classes, but tiny is a regression"):
        check_outputs(ModelFolder(folder), "tiny", "regression", ())
    rewrite(folder / "config.json", problem_type="multi_label_classification")
    with pytest.raises(PipelineError, match=r"model gives each label an answer of its own .*, but tiny has one"):
        check_outputs(ModelFolder(folder), "tiny", "classification", ("bad", "good"))
