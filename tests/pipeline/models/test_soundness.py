import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from pipeline.models.pretrained import check_folder

from pipeline.config.errors import PipelineError
from pipeline.models.folder import config_of, load_tokenizer
from pipeline.models.loading import check_classifier, load_classifier
from pipeline.models.soundness import check_label_names, check_token_types, check_values, check_vocabulary
from tests.architectures import of_type
from tests.world import make_task, make_tokenizer, rewrite, save_teacher

LAYERS = "bert.encoder.layer"


@pytest.fixture
def folder(teacher: Path, tmp_path: Path) -> Path:
    """A classifier that a test may harm."""
    return Path(shutil.copytree(teacher, tmp_path / "model"))


def add_weights(folder: Path, *names: str) -> None:
    path = folder / "model.safetensors"
    weights = safetensors.torch.load_file(path) | {name: torch.ones(3) for name in names}
    safetensors.torch.save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("new_head", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        f"{LAYERS}.0.attention.self.distance_embedding.weight",
        f"{LAYERS}.1.output.adapters.sst.adapter_up.weight",
        f"{LAYERS}.4.output.dense.weight",
        "bert.embeddings.extra_embeddings.weight",
    ],
)
def test_a_body_of_which_transformers_leaves_weights_out_is_refused_with_their_names(
    name: str, new_head: bool, folder: Path
) -> None:
    add_weights(folder, name)
    for look in (
        lambda: check_classifier(folder, new_head),
        lambda: load_classifier(folder, make_task() if new_head else None),
    ):
        with pytest.raises(PipelineError, match=rf"holds 1 weight that transformers does not load \({name}\), so it would not"):
            look()


def test_a_body_saved_without_a_prefix_is_looked_at_too(folder: Path, tmp_path: Path) -> None:
    load_classifier(folder).base_model.save_pretrained(tmp_path / "body")
    check_classifier(tmp_path / "body", new_head=True)
    add_weights(tmp_path / "body", "encoder.layer.0.attention.self.distance_embedding.weight")
    with pytest.raises(PipelineError, match=r"holds 1 weight that transformers does not load \(encoder.layer.0.attention"):
        check_classifier(tmp_path / "body", new_head=True)


@pytest.mark.parametrize(
    ("names", "new_head"),
    [
        (["bert.embeddings.position_ids", "cls.predictions.bias", "cls.seq_relationship.weight"], False),
        (["lm_head.weight", "qa_outputs.weight", "my_own_head.weight"], True),
    ],
)
def test_leftovers_that_change_no_answer_pass(names: list[str], new_head: bool, folder: Path) -> None:
    add_weights(folder, *names)
    check_classifier(folder, new_head)


def test_a_layer_between_the_body_and_an_adopted_head_is_none_of_them(folder: Path) -> None:
    add_weights(folder, "dense_between.weight")
    check_classifier(folder, new_head=True)
    with pytest.raises(PipelineError, match=r"dense_between\.weight"):
        check_classifier(folder, new_head=False)


def test_a_pooler_that_a_type_does_not_read_passes(tmp_path: Path) -> None:
    of_type("roberta").save_pretrained(tmp_path)
    add_weights(tmp_path, "roberta.pooler.dense.weight", "roberta.pooler.dense.bias")
    check_classifier(tmp_path, new_head=False)


@pytest.mark.parametrize("tokens", [["<url>", "@user"], ["word"]])
def test_added_tokens_without_an_embedding_are_refused_by_name(tokens: list[str], folder: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(tokens)
    with pytest.raises(PipelineError, match=rf"has embeddings for 65 tokens, .* that have none \({', '.join(tokens)}\); call"):
        check_vocabulary(folder, tokenizer)


def test_an_added_special_token_may_lack_one_unless_inputs_are_given_it(folder: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    check_vocabulary(folder, tokenizer)
    tokenizer.add_special_tokens({"mask_token": "<new mask>"})
    with pytest.raises(PipelineError, match=r"that have none \(<new mask>\)"):
        check_vocabulary(folder, tokenizer)


def test_token_types_beyond_the_models_are_refused_where_its_task_gives_some(folder: Path) -> None:
    rewrite(folder / "config.json", type_vocab_size=1)
    check_token_types(folder, make_tokenizer(), pair=False)
    check_token_types(folder, make_tokenizer(types=False), pair=True)
    with pytest.raises(PipelineError, match=r"has type_vocab_size: 1, but its tokenizer gives a pair the token type 1; save"):
        check_token_types(folder, make_tokenizer(), pair=True)
    rewrite(folder / "config.json", type_vocab_size=0)  # as DeBERTa's, which reads none
    check_token_types(folder, make_tokenizer(), pair=True)


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
        check_label_names(folder)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"id2label": ["bad", "good"]}, r'id2label in its config.json must be a mapping such as .*, not \["bad", "good"\]'),
        ({"id2label": "bad, good"}, r'id2label in its config.json must be a mapping such as .*, not "bad, good"'),
        ({"id2label": {"bad": 0, "good": 1}}, r"id2label in its config.json must be a mapping such as"),
        ({"label2id": ["bad", "good"]}, r"label2id in its config.json must be a mapping such as"),
        ({"num_labels": "2"}, r'num_labels in its config.json must be a whole number, not "2"'),
        ({"hidden_size": "wide"}, r"hidden_size"),
        ({"model_type": "no such type"}, r"no such type"),
        ({"dtype": "float99"}, r"float99"),
    ],
)
def test_a_configuration_of_another_form_is_a_sentence(changed: dict[str, Any], sentence: str, folder: Path) -> None:
    rewrite(folder / "config.json", **changed)
    with pytest.raises(PipelineError, match=rf"no model can be loaded from {folder}: .*{sentence}"):
        config_of(folder)


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
        check_label_names(folder)
        return
    with pytest.raises(PipelineError, match=sentence):
        check_label_names(folder)


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
        check_values(regression)
        return
    with pytest.raises(PipelineError, match=sentence):
        check_values(regression)


def test_a_head_that_is_fitted_here_has_no_activation_behind_it(regression: Path) -> None:
    sigmoid = "torch.nn.modules.activation.Sigmoid"
    rewrite(
        regression / "config.json",
        sentence_transformers={"activation_fn": sigmoid, "version": "5.0"},
        sbert_ce_default_activation_function=sigmoid,
    )
    config = load_classifier(regression, make_task("regression")).config
    assert config.sentence_transformers == {"activation_fn": "torch.nn.modules.linear.Identity", "version": "5.0"}
    assert config.sbert_ce_default_activation_function == "torch.nn.modules.linear.Identity"


def test_no_copy_of_a_model_names_code_that_came_beside_it(folder: Path, tmp_path: Path) -> None:
    rewrite(folder / "config.json", auto_map={"AutoModel": "modeling.Model"}, custom_pipelines={"x": {"impl": "p.P"}})
    rewrite(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization.T", None]})
    load_classifier(folder).save_pretrained(tmp_path / "copy")
    load_tokenizer(folder).save_pretrained(tmp_path / "copy")
    for name in ("config.json", "tokenizer_config.json"):
        assert not {"auto_map", "custom_pipelines"} & json.loads((tmp_path / "copy" / name).read_text()).keys()


def needs_a_package(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word"]))
    told = {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "mecab", "subword_tokenizer_type": "wordpiece"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))


def of_git_lfs(name: str) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n")

    return harm


def cut(name: str) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:40])

    return harm


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (needs_a_package, "You need to install fugashi"),
        (of_git_lfs("tokenizer.json"), "tokenizer.json is a Git LFS pointer, not the file: git lfs pull"),
        (cut("tokenizer.json"), "tokenizer.json is no JSON, copy it again"),
        (cut("tokenizer_config.json"), "tokenizer_config.json is no JSON, copy it again"),
    ],
)
def test_a_tokenizer_that_cannot_be_loaded_is_one_sentence(harm: Callable[[Path], None], sentence: str, folder: Path) -> None:
    harm(folder)
    with pytest.raises(PipelineError, match=rf"no tokenizer can be loaded from {folder}: .*{sentence}"):
        load_tokenizer(folder)


@pytest.mark.parametrize("most", [{}, "long", float("nan")])
def test_a_tokenizers_greatest_length_that_is_none_is_one_sentence(most: Any, folder: Path) -> None:
    rewrite(folder / "tokenizer_config.json", model_max_length=most)
    with pytest.raises(PipelineError, match=rf"the tokenizer of {folder} has model_max_length: .*; it must be a whole number"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    "quantised", [{"quant_method": "bitsandbytes", "load_in_8bit": True}, {"quant_method": "gptq", "bits": 4}]
)
def test_a_quantised_checkpoint_is_one_sentence(quantised: dict[str, Any], folder: Path) -> None:
    rewrite(folder / "config.json", quantization_config=quantised)
    with pytest.raises(PipelineError, match=rf"{folder} is quantised \({quantised['quant_method']}\); load it where"):
        check_classifier(folder, new_head=False)


def test_weights_of_git_lfs_and_an_adapter_beside_a_model_are_told_before_anything_is_loaded(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(PipelineError, match="beside the model it holds an adapter: merge that into its model"):
        check_folder(folder, "classifier")
    of_git_lfs("model.safetensors")(folder)
    with pytest.raises(PipelineError, match=r"model.safetensors is a Git LFS pointer, not the file: git lfs pull"):
        check_folder(folder, "classifier")
