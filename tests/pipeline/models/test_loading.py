import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, BertConfig

from pipeline.config.errors import PipelineError
from pipeline.models.folder import ModelFolder, load_tokenizer
from pipeline.models.forward import logits_from_ids
from pipeline.models.loading import check_classifier, load_classifier, load_masked_lm, load_pretrained
from tests.architectures import CONFIGURATIONS, LENGTHS, of_type, rows_of
from tests.world import make_task, make_tokenizer, rewrite, save_masked_lm, save_on_hub, save_teacher

LAYERS = "bert.encoder.layer"


@pytest.fixture
def folder(teacher: Path, tmp_path: Path) -> Path:
    """A classifier that a test may harm."""
    return Path(shutil.copytree(teacher, tmp_path / "model"))


def test_a_revision_of_a_model_is_loaded_if_one_is_named(hub: Path) -> None:
    save_on_hub(hub, {"main": 0, "v1": 1})
    main, tag, commit = (
        load_classifier(name).get_input_embeddings().weight
        for name in ("org/teacher", "org/teacher@v1", f"org/teacher@{1:040x}")
    )
    assert torch.equal(tag, commit)
    assert not torch.equal(tag, main)
    assert load_tokenizer("org/teacher@v1").get_vocab() == make_tokenizer().get_vocab()


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_a_saved_classifier_is_loaded_whole_and_a_bare_body_gets_a_head_for_a_task(kind: str, tmp_path: Path) -> None:
    model, batch = of_type(kind), rows_of(kind)
    model.save_pretrained(tmp_path / "whole")
    assert torch.equal(logits_from_ids(load_classifier(tmp_path / "whole"), batch), logits_from_ids(model, batch))
    assert ModelFolder(tmp_path / "whole").embedding_width == model.get_input_embeddings().weight.shape[1]
    body = AutoModel.from_config(CONFIGURATIONS[kind])
    body.save_pretrained(tmp_path / "body")
    with pytest.raises(PipelineError, match="is not a finished classifier: it lacks weights"):
        check_classifier(tmp_path / "body", new_head=False)
    headed = load_classifier(tmp_path / "body", make_task())
    assert torch.equal(headed.get_input_embeddings().weight, body.get_input_embeddings().weight)
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


def test_a_classifier_comes_in_float32_for_evaluation_with_the_weights_of_the_file(teacher: Path, tmp_path: Path) -> None:
    half = load_classifier(teacher).half()
    half.save_pretrained(tmp_path)
    loaded = load_classifier(tmp_path)
    assert not loaded.training
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    for name, weight in half.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight.float()), name


def test_a_new_head_has_no_activation_behind_it(tmp_path: Path) -> None:
    regression = save_teacher(tmp_path / "regression", make_task("regression"))
    sigmoid, identity = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"
    written = {"activation_fn": sigmoid, "version": "5.0"}
    rewrite(regression / "config.json", sentence_transformers=written, sbert_ce_default_activation_function=sigmoid)
    config = load_classifier(regression, make_task("regression")).config
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
            load(folder)
    assert not (tmp_path / "sprung").exists()


def test_code_that_comes_with_a_checkpoint_is_neither_run_nor_copied(folder: Path, tmp_path: Path) -> None:
    auto_map = {"AutoModelForSequenceClassification": "modeling.Model", "AutoConfig": "modeling.C"}
    rewrite(folder / "config.json", auto_map=auto_map, custom_pipelines={"x": {"impl": "p.P"}})
    rewrite(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization.T", None]})
    (folder / "modeling.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    load_classifier(folder).save_pretrained(tmp_path / "copy")
    load_tokenizer(folder).save_pretrained(tmp_path / "copy")
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
        load_classifier(folder, make_task() if new_head else None)


def test_ignored_weights_of_a_body_saved_without_a_prefix_are_an_error(folder: Path, tmp_path: Path) -> None:
    load_classifier(folder).base_model.save_pretrained(tmp_path / "body")
    check_classifier(tmp_path / "body", new_head=True)
    add_weights(tmp_path / "body", "encoder.layer.0.attention.self.distance_embedding.weight")
    with pytest.raises(PipelineError, match=r"holds 1 weight that transformers does not load \(encoder.layer.0.attention"):
        check_classifier(tmp_path / "body", new_head=True)


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
    check_classifier(tmp_path, new_head)


def test_a_classifier_that_lacks_layers_is_not_told_to_name_labels(folder: Path) -> None:
    rewrite(folder / "config.json", num_hidden_layers=5)
    with pytest.raises(PipelineError, match=r"bert.encoder.layer.4.*; name a checkpoint of this architecture"):
        load_classifier(folder)


def test_a_quantised_checkpoint_is_an_error(folder: Path) -> None:
    rewrite(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(PipelineError, match=rf"{folder} is quantised \(gptq\)"):
        check_classifier(folder, new_head=False)


def test_a_classifier_is_not_a_masked_language_model(folder: Path) -> None:
    with pytest.raises(PipelineError, match=r"is not a finished masked language model: it lacks .*cls\.predictions"):
        load_masked_lm(folder)


def test_weights_of_another_shape_are_missing(tmp_path: Path) -> None:
    save_masked_lm(tmp_path)
    BertConfig.from_pretrained(tmp_path, intermediate_size=48).save_pretrained(tmp_path)
    with pytest.raises(PipelineError, match=r"in another shape \(bert\.encoder\.layer\.0\.intermediate"):
        load_masked_lm(tmp_path)
