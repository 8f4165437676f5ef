import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    PreTrainedTokenizerBase,
)

from pipeline.config.errors import PipelineError
from pipeline.models.architectures import ENCODERS, head_settings
from pipeline.models.folder import ModelFolder
from pipeline.models.forward import logits_from_ids, word_embeddings
from pipeline.models.loading import (
    check_classifier,
    check_label_names,
    check_outputs,
    check_token_types,
    check_tokenizer,
    check_values,
    check_vocabulary,
    load_classifier,
    load_masked_lm,
    load_pretrained,
)
from tests.architectures import CONFIGURATIONS, LENGTHS, of_type, rows_of
from tests.world import make_task, make_tokenizer, rewrite, save_masked_lm, save_on_hub, save_teacher

LAYERS = "bert.encoder.layer"


@pytest.fixture
def folder(teacher: Path, tmp_path: Path) -> Path:
    """A copy of the classifier that a test may change."""
    return Path(shutil.copytree(teacher, tmp_path / "model"))


def test_a_revision_of_a_model_is_loaded_if_one_is_named(hub: Path) -> None:
    save_on_hub(hub, {"main": 0, "v1": 1})
    main, tag, commit = (
        word_embeddings(load_classifier(ModelFolder(name)))
        for name in ("org/teacher", "org/teacher@v1", f"org/teacher@{1:040x}")
    )
    assert torch.equal(tag, commit)
    assert not torch.equal(tag, main)
    assert ModelFolder("org/teacher@v1").tokenizer.get_vocab() == make_tokenizer().get_vocab()


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_a_saved_classifier_is_loaded_whole_and_a_bare_body_gets_a_head_for_a_task(kind: str, tmp_path: Path) -> None:
    model, batch = of_type(kind), rows_of(kind)
    model.save_pretrained(tmp_path / "whole")
    saved = ModelFolder(tmp_path / "whole")
    assert torch.equal(logits_from_ids(load_classifier(saved), batch), logits_from_ids(model, batch))
    assert saved.embedding_width == model.get_input_embeddings().embedding_dim
    body = AutoModel.from_config(CONFIGURATIONS[kind])
    body.save_pretrained(tmp_path / "body")
    with pytest.raises(PipelineError, match="is not a finished classifier: it lacks weights"):
        check_classifier(ModelFolder(tmp_path / "body"), new_head=False)
    headed = load_classifier(ModelFolder(tmp_path / "body"), make_task())
    assert torch.equal(word_embeddings(headed), word_embeddings(body))
    assert logits_from_ids(headed, batch).shape == (len(LENGTHS), 2)


def test_missing_weights_are_named_in_order_and_a_tied_one_is_not_among_them(tmp_path: Path) -> None:
    AutoModelForMaskedLM.from_config(CONFIGURATIONS["bert"]).save_pretrained(tmp_path)
    assert load_pretrained(AutoModelForMaskedLM, ModelFolder(tmp_path), False)[1] == []
    _, fresh = load_pretrained(AutoModelForSequenceClassification, ModelFolder(tmp_path), True, intermediate_size=48)
    parts = [f"bert.encoder.layer.{layer}.{name}" for layer in (0, 1) for name in (
        "intermediate.dense.bias", "intermediate.dense.weight", "output.dense.weight",
    )]  # fmt: skip
    head = ["bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight"]
    assert fresh == [*parts, *head]


def test_a_classifier_is_loaded_in_float32_and_evaluation_mode(teacher: Path, tmp_path: Path) -> None:
    half = load_classifier(ModelFolder(teacher)).half()
    half.save_pretrained(tmp_path)
    loaded = load_classifier(ModelFolder(tmp_path))
    assert not loaded.training
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    for name, weight in half.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight.float()), name


def test_a_new_head_has_no_activation(tmp_path: Path) -> None:
    regression = save_teacher(tmp_path / "regression", make_task("regression"))
    sigmoid, identity = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"
    written = {"activation_fn": sigmoid, "version": "5.0"}
    rewrite(regression / "config.json", sentence_transformers=written, sbert_ce_default_activation_function=sigmoid)
    config = load_classifier(ModelFolder(regression), make_task("regression")).config
    assert config.sentence_transformers == {"activation_fn": identity, "version": "5.0"}
    assert config.sbert_ce_default_activation_function == identity


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


def test_a_checkpoint_that_is_only_a_pickle_is_not_opened(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"trap": Trap(tmp_path / "sprung")}, folder / "pytorch_model.bin")
    for load in (load_classifier, load_masked_lm):
        with pytest.raises(PipelineError, match=rf"no model can be loaded from {folder}.*safetensors"):
            load(ModelFolder(folder))
    assert not (tmp_path / "sprung").exists()


def test_code_shipped_with_a_checkpoint_is_neither_run_nor_copied(folder: Path, tmp_path: Path) -> None:
    auto_map = {"AutoModelForSequenceClassification": "modeling.Model", "AutoConfig": "modeling.C"}
    rewrite(folder / "config.json", auto_map=auto_map, custom_pipelines={"x": {"impl": "p.P"}})
    rewrite(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization.T", None]})
    (folder / "modeling.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    load_classifier(ModelFolder(folder)).save_pretrained(tmp_path / "copy")
    ModelFolder(folder).tokenizer.save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "ran").exists()
    for name in ("config.json", "tokenizer_config.json"):
        assert not {"auto_map", "custom_pipelines"} & json.loads((tmp_path / "copy" / name).read_text()).keys()


def add_weights(folder: Path, *names: str) -> None:
    path = folder / "model.safetensors"
    weights = safetensors.torch.load_file(path) | {name: torch.ones(3) for name in names}
    safetensors.torch.save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "new_head"),
    [
        (f"{LAYERS}.0.attention.self.distance_embedding.weight", True),
        (f"{LAYERS}.1.output.adapters.sst.adapter_up.weight", False),
        (f"{LAYERS}.4.output.dense.weight", True),
        ("bert.embeddings.extra_embeddings.weight", False),
        ("dense_between.weight", False),
    ],
)
def test_weights_that_transformers_ignores_are_an_error_with_their_names(name: str, new_head: bool, folder: Path) -> None:
    add_weights(folder, name)
    with pytest.raises(PipelineError, match=rf"holds 1 weight that transformers does not load \({name}\), so its logits"):
        load_classifier(ModelFolder(folder), make_task() if new_head else None)


def test_ignored_weights_of_a_body_saved_without_a_prefix_are_an_error(folder: Path, tmp_path: Path) -> None:
    AutoModel.from_pretrained(folder).save_pretrained(tmp_path / "body")
    check_classifier(ModelFolder(tmp_path / "body"), new_head=True)
    add_weights(tmp_path / "body", "encoder.layer.0.attention.self.distance_embedding.weight")
    with pytest.raises(PipelineError, match=r"holds 1 weight that transformers does not load \(encoder.layer.0.attention"):
        check_classifier(ModelFolder(tmp_path / "body"), new_head=True)


@pytest.mark.parametrize(
    ("kind", "names", "new_head"),
    [
        ("bert", ["bert.embeddings.position_ids", "cls.predictions.bias", "cls.seq_relationship.weight"], False),
        ("bert", ["lm_head.weight", "qa_outputs.weight", "my_own_head.weight", "dense_between.weight"], True),
        ("roberta", ["roberta.pooler.dense.weight", "roberta.pooler.dense.bias"], False),
    ],
)
def test_weights_that_change_no_logit_may_be_ignored(kind: str, names: list[str], new_head: bool, tmp_path: Path) -> None:
    of_type(kind).save_pretrained(tmp_path)
    add_weights(tmp_path, *names)
    check_classifier(ModelFolder(tmp_path), new_head)


def test_the_error_about_missing_layers_does_not_mention_labels(folder: Path) -> None:
    rewrite(folder / "config.json", num_hidden_layers=5)
    with pytest.raises(PipelineError, match=r"bert.encoder.layer.4.*; name a checkpoint of this architecture"):
        load_classifier(ModelFolder(folder))


def test_a_quantised_checkpoint_is_an_error(folder: Path) -> None:
    rewrite(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(PipelineError, match=rf"{folder} is quantised \(gptq\)"):
        check_classifier(ModelFolder(folder), new_head=False)


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_classifier_is_not_a_masked_language_model(kind: str, tmp_path: Path) -> None:
    of_type(kind).save_pretrained(tmp_path)
    with pytest.raises(PipelineError, match=r"is not a finished masked language model: it lacks weights"):
        load_masked_lm(ModelFolder(tmp_path), device_map="meta")


def test_weights_of_another_shape_are_missing(tmp_path: Path) -> None:
    save_masked_lm(tmp_path)
    BertConfig.from_pretrained(tmp_path, intermediate_size=48).save_pretrained(tmp_path)
    with pytest.raises(PipelineError, match=r"in another shape \(bert\.encoder\.layer\.0\.intermediate"):
        load_masked_lm(ModelFolder(tmp_path))


def rejection(sentence: str | None) -> AbstractContextManager[Any]:
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


def test_token_types_without_an_embedding_are_an_error_if_the_task_needs_them(folder: Path) -> None:
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
    with rejection(sentence):
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
def test_a_regression_whose_logit_is_not_its_prediction_is_an_error(
    changed: dict[str, Any], sentence: str | None, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "id2label": {"0": "value"}, "problem_type": "regression"}')
    rewrite(tmp_path / "config.json", **changed)
    with rejection(sentence):
        check_values(ModelFolder(tmp_path))


def test_a_masked_language_model_needs_the_teachers_tokenizer_with_a_mask_token() -> None:
    model, teachers = ModelFolder("the/model"), make_tokenizer()
    model.tokenizer = make_tokenizer()
    check_tokenizer(model, teachers)
    teachers.name_or_path, teachers.mask_token = "the/teacher", None
    with pytest.raises(PipelineError, match=r"model the/model has another tokenizer \(\w+\) than the teacher the/teacher \("):
        check_tokenizer(model, teachers)
    other = ModelFolder("the/teacher")
    other.tokenizer = teachers
    with pytest.raises(PipelineError, match=r"the tokenizer of the/teacher has no mask token, so no word can be masked"):
        check_tokenizer(other, teachers)


@pytest.mark.parametrize(
    ("labels", "remedy"),
    [
        (("good", "bad"), r'list them in the checkpoint\'s order: corpus.labels: \["good", "bad"\]'),
        (("LABEL_0", "LABEL_1"), "write what these mean into id2label and label2id of the checkpoint's config.json"),
        (("bad", "fine"), r'if they mean the same, map the table\'s names to them: corpus.labels: {…: "bad", …: "fine"}'),
        (("bad", "good", "fine"), r'list all of the classifier\'s, in its order: corpus.labels: \["bad", "good", "fine"\]'),
        (("bad", "well", "fine"), "a classifier of as many labels is needed, or teacher.fine_tune: true"),
    ],
)
def test_labels_other_than_the_tasks_are_an_error_with_a_remedy(labels: tuple[str, ...], remedy: str, tmp_path: Path) -> None:
    BertConfig(**head_settings(make_task(labels=labels))).save_pretrained(tmp_path)
    model = ModelFolder(tmp_path)
    check_outputs(model, "tiny", "classification", labels)
    with pytest.raises(PipelineError, match=remedy):
        check_outputs(model, "tiny", "classification", ("bad", "good"))


def test_outputs_of_another_kind_than_the_tasks_are_an_error(folder: Path) -> None:
    with pytest.raises(PipelineError, match="predicts 2 classes, but tiny is a regression"):
        check_outputs(ModelFolder(folder), "tiny", "regression", ())
    rewrite(folder / "config.json", problem_type="multi_label_classification")
    with pytest.raises(PipelineError, match=r"model predicts each label independently .*, but tiny has one label"):
        check_outputs(ModelFolder(folder), "tiny", "classification", ("bad", "good"))
