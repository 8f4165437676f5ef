import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline.models.pretrained import check_folder
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

from pipeline.config.errors import PipelineError
from pipeline.models.architectures import labels_of
from pipeline.models.folder import config_of, embedding_width, load_tokenizer, longest_input, tokenizer_hash
from pipeline.models.forward import (
    logits_from_ids,
    word_embeddings,
)
from pipeline.models.loading import check_classifier, load_classifier, load_pretrained
from tests.architectures import CONFIGURATIONS, LENGTHS, NARROW_WORDS, PAD, VOCABULARY, assert_as_plain, of_type, rows_of
from tests.world import make_task, make_tokenizer, rewrite, save_on_hub, save_teacher


def test_a_revision_of_a_model_is_loaded_where_one_is_named(tmp_path: Path, hub: Path) -> None:
    save_on_hub(hub, {"main": 0, "v1": 1})
    for name, seed in (("org/teacher", 0), ("org/teacher@v1", 1), (f"org/teacher@{1:040x}", 1)):
        wanted, found = load_classifier(save_teacher(tmp_path / str(seed), make_task(), seed)), load_classifier(name)
        assert torch.equal(found.get_input_embeddings().weight, wanted.get_input_embeddings().weight)
        assert load_tokenizer(name).get_vocab() == make_tokenizer().get_vocab()


def test_a_folder_with_an_at_in_its_name_is_a_folder(tmp_path: Path) -> None:
    folder = save_teacher(tmp_path / "teacher@v1", make_task())
    assert config_of(str(folder)).num_hidden_layers == 4


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_the_width_is_that_of_the_word_embeddings_and_read_without_weights(kind: str, tmp_path: Path) -> None:
    of_type(kind).save_pretrained(tmp_path)
    assert word_embeddings(load_classifier(tmp_path)).shape == (VOCABULARY, embedding_width(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    assert embedding_width(tmp_path) == (NARROW_WORDS if kind in ("albert", "electra", "mobilebert") else 16)


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_a_saved_classifier_is_loaded_whole_and_a_bare_body_gets_a_head_for_a_task(kind: str, tmp_path: Path) -> None:
    model, batch = of_type(kind), rows_of(kind)
    model.save_pretrained(tmp_path / "whole")
    assert torch.equal(logits_from_ids(load_classifier(tmp_path / "whole"), batch), logits_from_ids(model, batch))
    body = AutoModel.from_config(CONFIGURATIONS[kind])
    body.save_pretrained(tmp_path / "body")
    for refused in (load_classifier, partial(check_classifier, new_head=False)):
        with pytest.raises(PipelineError, match="is not a finished classifier: it lacks weights"):
            refused(tmp_path / "body")
    check_classifier(tmp_path / "whole", new_head=False)
    check_classifier(tmp_path / "body", new_head=True)
    headed = load_classifier(tmp_path / "body", make_task())
    assert torch.equal(headed.get_input_embeddings().weight, body.get_input_embeddings().weight)
    assert logits_from_ids(headed, batch).shape == (len(LENGTHS), 2)


def test_weights_made_up_on_loading_are_named_in_order_and_a_tied_one_is_not_among_them(tmp_path: Path) -> None:
    AutoModelForMaskedLM.from_config(CONFIGURATIONS["bert"]).save_pretrained(tmp_path)
    assert load_pretrained(AutoModelForMaskedLM, tmp_path, "model", False)[1] == []
    _, fresh = load_pretrained(AutoModelForSequenceClassification, tmp_path, "model", True, intermediate_size=48)
    parts = [f"bert.encoder.layer.{layer}.{name}" for layer in (0, 1) for name in (
        "intermediate.dense.bias", "intermediate.dense.weight", "output.dense.weight",
    )]  # fmt: skip
    head = ["bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight"]
    assert fresh == [*parts, *head]


def tokenizer_with(**special: str) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with no other special tokens than these."""
    return PreTrainedTokenizerFast(tokenizer_object=make_tokenizer().backend_tokenizer, model_max_length=77, **special)


@pytest.mark.parametrize(
    ("special", "padding"),
    [({"eos_token": "[SEP]", "pad_token": "[PAD]"}, 0), ({"eos_token": "[SEP]"}, 3)],
    ids=["a padding token", "only an end"],
)
def test_a_decoder_whose_configuration_names_no_padding_token_keeps_it_so_and_its_tokenizer_pads(
    special: dict[str, str], padding: int, tmp_path: Path
) -> None:
    of_type("gpt2", pad_token_id=None).save_pretrained(tmp_path)
    tokenizer_with(**special).save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token_id == padding
    model = load_classifier(tmp_path)
    assert_as_plain(model, rows_of("gpt2"))
    assert model.config.pad_token_id is None, "a saved copy would read other tokens of some texts"
    load_tokenizer(tmp_path).save_pretrained(tmp_path / "again")
    assert tokenizer_hash(load_tokenizer(tmp_path / "again")) == tokenizer_hash(load_tokenizer(tmp_path))


@pytest.mark.parametrize(("kind", "padding"), [("llama", PAD), ("bert", 0)])
def test_the_tokenizer_of_a_decoder_pads_with_what_its_configuration_names(kind: str, padding: int, tmp_path: Path) -> None:
    """Batches that transformers pads with another token would be read at their padding."""
    of_type(kind).save_pretrained(tmp_path)
    tokenizer_with(eos_token="[SEP]", unk_token="[UNK]", pad_token="[PAD]").save_pretrained(tmp_path)
    assert load_classifier(tmp_path).config.pad_token_id == PAD
    assert load_tokenizer(tmp_path).pad_token_id == padding


def test_a_model_that_was_saved_without_its_tokenizer_is_refused(teacher: Path, tmp_path: Path) -> None:
    load_classifier(teacher).save_pretrained(tmp_path / "alone")
    with pytest.raises(PipelineError, match=rf"^{tmp_path / 'alone'} holds no tokenizer: .* \(tokenizer.save_pretrained\)$"):
        load_tokenizer(tmp_path / "alone")


@pytest.mark.parametrize("load", [load_tokenizer, load_classifier])
@pytest.mark.parametrize("place", ["data/raw/nowhere", "/nowhere", "./nowhere"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(load: Any, place: str) -> None:
    with pytest.raises(PipelineError, match=rf"can be loaded from {place}: there is no such folder$"):
        load(place)


def test_a_tokenizer_that_has_nothing_to_pad_with_is_refused(tmp_path: Path) -> None:
    tokenizer_with(unk_token="[UNK]").save_pretrained(tmp_path)
    with pytest.raises(PipelineError, match=rf"the tokenizer of {tmp_path} has neither a padding nor an end-of-text token"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(("kind", "most"), [("xlnet", 77), ("gpt2", 20), ("llama", 20), ("bert", 20), ("roberta", 18)])
def test_the_longest_input_is_what_both_tokenizer_and_positions_take(kind: str, most: int, tmp_path: Path) -> None:
    CONFIGURATIONS[kind].save_pretrained(tmp_path)
    assert longest_input(tmp_path, tokenizer_with(pad_token="[PAD]")) == most
    short = tokenizer_with(pad_token="[PAD]")
    short.model_max_length = 5
    assert longest_input(tmp_path, short) == 5


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


def test_a_checkpoint_that_is_only_a_pickle_is_refused_and_not_opened(teacher: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(teacher, tmp_path / "pickled"))
    (folder / "model.safetensors").unlink()
    torch.save({"trap": Trap(tmp_path / "sprung")}, folder / "pytorch_model.bin")
    with pytest.raises(PipelineError, match=rf"no classifier can be loaded from {folder}.*safetensors"):
        load_classifier(folder)
    assert not (tmp_path / "sprung").exists()


def test_code_that_comes_with_a_checkpoint_is_not_run(teacher: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(teacher, tmp_path / "coded"))
    rewrite(
        folder / "config.json", auto_map={"AutoModelForSequenceClassification": "modeling.Model", "AutoConfig": "modeling.C"}
    )
    (folder / "modeling.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    assert load_classifier(folder).config.model_type == "bert"
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=f"no classifier can be loaded from {tmp_path}/nothing"):
        load_classifier(tmp_path / "nothing")
    with pytest.raises(PipelineError, match=f"no tokenizer can be loaded from {tmp_path}/nothing"):
        load_tokenizer(tmp_path / "nothing")


def test_a_classifier_comes_in_float32_for_evaluation_with_the_weights_of_the_file(teacher: Path, tmp_path: Path) -> None:
    half = load_classifier(teacher).half()
    half.save_pretrained(tmp_path)
    loaded = load_classifier(tmp_path)
    assert not loaded.training
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    for name, weight in half.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight.float()), name


def test_a_task_gives_the_head_its_size_and_its_names_and_keeps_the_body(teacher: Path) -> None:
    model = load_classifier(teacher, make_task(labels=("a", "b", "c")))
    assert model.num_labels == 3
    assert labels_of(model) == ("a", "b", "c")
    assert model.config.problem_type == "single_label_classification"
    assert torch.equal(word_embeddings(model), word_embeddings(load_classifier(teacher)))
    regression = load_classifier(teacher, make_task("regression"))
    assert (regression.num_labels, regression.config.problem_type) == (1, "regression")


def test_weights_that_were_not_copied_whole_are_damaged_before_anything_is_loaded(teacher: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(teacher, tmp_path / "cut"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(PipelineError, match=r"no classifier can be loaded from .*: model.safetensors is damaged \("):
        check_folder(folder, "classifier")


def test_a_configuration_that_transformers_refuses_is_a_sentence_with_the_field(teacher: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(teacher, tmp_path / "wrong"))
    rewrite(folder / "config.json", hidden_size="wide")
    with pytest.raises(PipelineError, match=r"no model can be loaded from .*: .*hidden_size"):
        config_of(folder)


def test_a_classifier_that_lacks_layers_is_not_told_to_name_labels(teacher: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(teacher, tmp_path / "deeper"))
    rewrite(folder / "config.json", num_hidden_layers=5)
    with pytest.raises(PipelineError, match=r"bert.encoder.layer.4.*; name a checkpoint of this architecture, whose"):
        load_classifier(folder)
