import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from pipeline.config.errors import PipelineError
from pipeline.models.folder import ModelFolder
from pipeline.models.soundness import (
    check_label_names,
    check_outputs,
    check_token_types,
    check_tokenizer,
    check_values,
    check_vocabulary,
)
from tests.world import make_task, make_tokenizer, rewrite, save_teacher


@pytest.fixture
def folder(teacher: Path, tmp_path: Path) -> Path:
    """A classifier that a test may harm."""
    return Path(shutil.copytree(teacher, tmp_path / "model"))


def with_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> ModelFolder:
    tokenizer.save_pretrained(folder)
    return ModelFolder(folder)


@pytest.mark.parametrize("tokens", [["<url>", "@user"], ["word"]])
def test_added_tokens_without_an_embedding_are_refused_by_name(tokens: list[str], folder: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(tokens)
    with pytest.raises(PipelineError, match=rf"has embeddings for 65 tokens, .* that have none \({', '.join(tokens)}\); call"):
        check_vocabulary(with_tokenizer(folder, tokenizer))


def test_an_added_special_token_may_lack_one_unless_inputs_are_given_it(folder: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    check_vocabulary(with_tokenizer(folder, tokenizer))
    tokenizer.add_special_tokens({"mask_token": "<new mask>"})
    with pytest.raises(PipelineError, match=r"that have none \(<new mask>\)"):
        check_vocabulary(with_tokenizer(folder, tokenizer))


def test_token_types_beyond_the_models_are_refused_where_its_task_gives_some(folder: Path) -> None:
    rewrite(folder / "config.json", type_vocab_size=1)
    check_token_types(with_tokenizer(folder, make_tokenizer()), pair=False)
    check_token_types(with_tokenizer(folder, make_tokenizer(types=False)), pair=True)
    with pytest.raises(PipelineError, match=r"has type_vocab_size: 1, but its tokenizer gives a pair the token type 1; save"):
        check_token_types(with_tokenizer(folder, make_tokenizer()), pair=True)
    rewrite(folder / "config.json", type_vocab_size=0)  # as DeBERTa's, which reads none
    check_token_types(with_tokenizer(folder, make_tokenizer()), pair=True)


@pytest.mark.parametrize(
    "names",
    [
        {"0": 0, "1": 1},
        {"0": None, "1": "good"},
        {"0": "bad", "1": " "},
        {"1": "bad", "2": "good"},
        {"0": True, "1": False},
        {"0": ["bad"], "1": {"good": 1}},
        {"0": "\ud800", "1": "good"},
    ],
)
def test_labels_that_are_not_named_in_text_are_a_sentence(names: dict[str, Any], folder: Path) -> None:
    rewrite(folder / "config.json", id2label=names, label2id={})
    with pytest.raises(PipelineError, match=r"does not name its labels: id2label in its config.json is \{.*\}; it must map"):
        check_label_names(ModelFolder(folder))


@pytest.mark.parametrize(
    ("names", "numbers", "sentence"),
    [
        ({"0": "bad", "1": "good"}, {"bad": 1, "good": 0}, "contradicts itself in its config.json"),
        ({"0": "bad", "1": "good"}, {"bad": 0, "good": 1, "fine": 2}, "contradicts itself in its config.json"),
        ({"0": "bad", "1": "good"}, {"negative": 0, "positive": 1}, "contradicts itself in its config.json"),
        ({"0": "good", "1": " good"}, {}, "gives two labels one name"),
        ({"0": "café", "1": "cafe\u0301"}, {}, "gives two labels one name"),
        ({"0": "bad", "1": "good"}, {"bad": 0, "good": 1}, None),
        ({"0": "bad", "1": " good"}, {"bad": 0, " good": 1}, None),
        ({"0": "bad", "1": "good"}, {}, None),
        ({"0": "bad", "1": "good"}, {"LABEL_0": 0, "LABEL_1": 1}, None),
    ],
)
def test_label_maps_agree_or_are_refused(
    names: dict[str, str], numbers: dict[str, int], sentence: str | None, folder: Path
) -> None:
    rewrite(folder / "config.json", id2label=names, label2id=numbers)
    if sentence is None:
        check_label_names(ModelFolder(folder))
        return
    with pytest.raises(PipelineError, match=sentence):
        check_label_names(ModelFolder(folder))


@pytest.fixture
def regression(tmp_path: Path) -> Path:
    return save_teacher(tmp_path / "regression", make_task("regression"))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({}, None),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "5.0"}}, None),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}, "that applies a Sigmoid to its"),
        ({"sentence_transformers": {"version": "5.0"}}, "that applies a Sigmoid to its logit"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.activation.Tanh"}, "that applies a Tanh to its logit"),
        ({"problem_type": None}, "does not say problem_type: regression, so transformers.pipeline serves its sigmoid"),
    ],
)
def test_a_regression_whose_logit_is_not_its_answer_is_refused(
    changed: dict[str, Any], sentence: str | None, regression: Path
) -> None:
    rewrite(regression / "config.json", **changed)
    if sentence is None:
        check_values(ModelFolder(regression))
        return
    with pytest.raises(PipelineError, match=sentence):
        check_values(ModelFolder(regression))


def test_another_tokenizer_than_the_teacher_s_is_an_error_that_names_both() -> None:
    theirs, ours = make_tokenizer(), make_tokenizer()
    check_tokenizer("the/model", theirs, ours)
    ours.add_tokens(["more"])
    ours.name_or_path = "the/teacher"
    with pytest.raises(PipelineError, match=r"model the/model has another tokenizer \(\w+\) than the teacher the/teacher \("):
        check_tokenizer("the/model", theirs, ours)


def test_a_tokenizer_without_a_mask_token_is_an_error() -> None:
    tokenizer = make_tokenizer()
    tokenizer.mask_token = None
    tokenizer.name_or_path = "the/teacher"
    with pytest.raises(PipelineError, match=r"the tokenizer of the/teacher has no mask token, so no word can be masked"):
        check_tokenizer("the/model", tokenizer, tokenizer)


@pytest.mark.parametrize(
    ("labels", "remedy"),
    [
        (
            ("good", "bad"),
            r'list them in the checkpoint\'s order: corpus.labels: \["good", "bad"\]; .* {…: "good", …: "bad"} with',
        ),
        (("LABEL_0", "LABEL_1"), "write what these stand for into id2label and label2id of the checkpoint's config.json"),
        (("bad", "fine"), r'if they mean the same, say which of the table\'s is which: corpus.labels: {…: "bad", …: "fine"}'),
        (("bad", "good", "fine"), r'list all of the classifier\'s, in its order: corpus.labels: \["bad", "good", "fine"\]'),
        (("bad", "well", "fine"), "a classifier of as many labels is needed, or teacher.fine_tune: true"),
    ],
)
def test_other_labels_than_the_tasks_are_an_error_with_the_remedy(labels: tuple[str, ...], remedy: str, tmp_path: Path) -> None:
    model = ModelFolder(save_teacher(tmp_path / "model", make_task(labels=labels)))
    check_outputs(model, "tiny", "classification", labels)
    with pytest.raises(PipelineError, match=remedy):
        check_outputs(model, "tiny", "classification", ("bad", "good"))


def test_outputs_of_another_kind_than_the_tasks_are_an_error(folder: Path) -> None:
    with pytest.raises(PipelineError, match="answers 2 classes, but tiny is a regression"):
        check_outputs(ModelFolder(folder), "tiny", "regression", ())
    rewrite(folder / "config.json", problem_type="multi_label_classification")
    with pytest.raises(PipelineError, match=r"model gives each label an answer of its own .*, but tiny has one"):
        check_outputs(ModelFolder(folder), "tiny", "classification", ("bad", "good"))
