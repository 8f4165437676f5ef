import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from tokenizers.normalizers import Lowercase
from transformers import BertConfig, BertJapaneseTokenizer, BertweetTokenizer, PreTrainedTokenizerFast

from pipeline.config.errors import PipelineError
from pipeline.models.folder import ModelFolder, check_saving, load_tokenizer, model_hash, source_hash, tokenizer_hash
from pipeline.models.forward import word_embeddings
from pipeline.models.loading import load_classifier
from tests.architectures import CONFIGURATIONS, NARROW_WORDS, PAD, VOCABULARY, assert_as_plain, of_type, rows_of
from tests.world import make_task, make_tokenizer, rewrite, save_on_hub, save_teacher


@pytest.fixture
def folder(teacher: Path, tmp_path: Path) -> Path:
    """A classifier that a test may harm."""
    return Path(shutil.copytree(teacher, tmp_path / "model"))


def test_every_part_is_read_once(folder: Path) -> None:
    model, wanted = ModelFolder(folder), ModelFolder(folder).hash
    assert (model.hash, model.labels, model.embedding_width) == (wanted, ("bad", "good"), 32)
    assert model.tokenizer is model.tokenizer
    shutil.rmtree(folder)
    assert (model.depth, model.longest_input, model.identity) == (4, 24, wanted)
    assert model.tokenizer_hash == tokenizer_hash(model.tokenizer)


def test_a_folder_with_an_at_in_its_name_is_a_folder(tmp_path: Path) -> None:
    assert ModelFolder(str(save_teacher(tmp_path / "teacher@v1", make_task()))).depth == 4


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_the_width_is_that_of_the_word_embeddings_and_read_without_weights(kind: str, tmp_path: Path) -> None:
    of_type(kind).save_pretrained(tmp_path)
    assert word_embeddings(load_classifier(tmp_path)).shape == (VOCABULARY, ModelFolder(tmp_path).embedding_width)
    (tmp_path / "model.safetensors").unlink()
    assert ModelFolder(tmp_path).embedding_width == (NARROW_WORDS if kind in ("albert", "electra", "mobilebert") else 16)


def test_label_names_come_in_the_order_of_the_logits(tmp_path: Path) -> None:
    names = {number: f"name{number}" for number in (10, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9)}
    BertConfig(id2label=names).save_pretrained(tmp_path)
    assert ModelFolder(tmp_path).labels == tuple(f"name{number}" for number in range(11))


def tokenizer_with(**special: str) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with no other special tokens than these."""
    return PreTrainedTokenizerFast(tokenizer_object=make_tokenizer().backend_tokenizer, model_max_length=77, **special)


@pytest.mark.parametrize(
    ("kind", "most"), [("xlnet", 77), ("gpt2", 20), ("llama", 20), ("bert", 20), ("roberta", 18), ("short", 5)]
)
def test_the_longest_input_is_what_both_tokenizer_and_positions_take(kind: str, most: int, tmp_path: Path) -> None:
    CONFIGURATIONS["bert" if kind == "short" else kind].save_pretrained(tmp_path)
    tokenizer = tokenizer_with(pad_token="[PAD]")
    tokenizer.model_max_length = 5 if kind == "short" else 77
    tokenizer.save_pretrained(tmp_path)
    assert ModelFolder(tmp_path).longest_input == most


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
    assert ModelFolder(tmp_path / "again").tokenizer_hash == ModelFolder(tmp_path).tokenizer_hash


@pytest.mark.parametrize(("kind", "padding"), [("llama", PAD), ("bert", 0)])
def test_the_tokenizer_of_a_decoder_pads_with_what_its_configuration_names(kind: str, padding: int, tmp_path: Path) -> None:
    """Batches that transformers pads with another token would be read at their padding."""
    of_type(kind).save_pretrained(tmp_path)
    tokenizer_with(eos_token="[SEP]", unk_token="[UNK]", pad_token="[PAD]").save_pretrained(tmp_path)
    assert load_classifier(tmp_path).config.pad_token_id == PAD
    assert load_tokenizer(tmp_path).pad_token_id == padding


def nudge_one_weight(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["classifier.bias"][0] += 1e-6
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "change",
    [
        nudge_one_weight,
        lambda folder: rewrite(folder / "config.json", id2label={"0": "good", "1": "bad"}),
        lambda folder: rewrite(folder / "config.json", hidden_act="relu"),
        lambda folder: rewrite(folder / "config.json", layer_norm_eps=1e-5),
    ],
    ids=["weight", "label name", "activation", "layer norm"],
)
def test_a_model_has_another_hash_once_its_logits_may_differ(folder: Path, change: Callable[[Path], None]) -> None:
    before = model_hash(folder)
    change(folder)
    assert model_hash(folder) != before


def test_a_model_has_the_same_hash_wherever_it_lies_and_whoever_saved_it(teacher: Path, folder: Path, tmp_path: Path) -> None:
    rewrite(folder / "config.json", _name_or_path="elsewhere", transformers_version="9.9.9")
    load_classifier(teacher).save_pretrained(tmp_path / "saved again")
    assert model_hash(folder) == model_hash(tmp_path / "saved again") == model_hash(teacher)


def test_a_model_of_the_hub_is_named_by_the_commit_that_its_id_means_now(hub: Path) -> None:
    save_on_hub(hub, {"main": 1, "v1": 1})
    before, pinned = source_hash("org/teacher"), source_hash("org/teacher@v1")
    assert before == pinned == f"org/teacher@{1:040x}"
    save_on_hub(hub, {"main": 2})
    assert source_hash("org/teacher") == f"org/teacher@{2:040x}"
    assert source_hash("org/teacher@v1") == source_hash(f"org/teacher@{1:040x}") == pinned
    with pytest.raises(PipelineError, match="no model can be loaded from org/teacher@v9"):
        source_hash("org/teacher@v9")


def test_a_cached_model_of_the_hub_is_called_by_its_id(hub: Path) -> None:
    save_on_hub(hub, {"main": 1})
    found = ModelFolder.at_hand("org/teacher")
    assert found is not None
    (found.path / "config.json").write_text("{")
    with pytest.raises(PipelineError) as error:
        _ = found.config
    assert str(error.value).startswith("no model can be loaded from org/teacher: ")
    assert str(hub) not in str(error.value)
    assert ModelFolder.at_hand("org/other") is None


def changed_tokenizer(change: str) -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer()
    match change:
        case "word added":
            tokenizer.add_tokens(["word60"])
        case "lower case":
            tokenizer.backend_tokenizer.normalizer = Lowercase()
        case "other unknown":
            tokenizer.backend_tokenizer.model.unk_token = "[MASK]"
        case "special token":
            tokenizer.add_special_tokens({"additional_special_tokens": ["word3"]})
        case "no token types":
            tokenizer.model_input_names = ["input_ids", "attention_mask"]
        case "other roles":  # the ids that are special are the same, but edits mask with one and mixtures pad with another
            tokenizer.pad_token, tokenizer.mask_token = tokenizer.mask_token, tokenizer.pad_token
    return tokenizer


def test_a_tokenizer_has_another_hash_once_its_ids_may_differ() -> None:
    changes = ("none", "word added", "lower case", "other unknown", "special token", "no token types", "other roles")
    hashes = {change: tokenizer_hash(changed_tokenizer(change)) for change in changes}
    assert len(set(hashes.values())) == len(changes), hashes


def test_a_tokenizer_has_the_same_hash_whatever_it_did_before_and_wherever_it_lies(tmp_path: Path) -> None:
    used = make_tokenizer()
    used(["word1 word2", "word3"], truncation=True, max_length=3, padding="max_length")
    used.model_max_length = 7
    used.save_pretrained(tmp_path)
    assert len({tokenizer_hash(used), tokenizer_hash(make_tokenizer()), ModelFolder(tmp_path).tokenizer_hash}) == 1


def save_python_tokenizer(folder: Path, lower_case: bool = False, words: str = "word WORD wo ##rd") -> Path:
    """One that is a Python class."""
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words.split()]))
    tokenizer = BertJapaneseTokenizer(str(folder / "vocab.txt"), do_lower_case=lower_case, word_tokenizer_type="basic")
    assert not tokenizer.is_fast
    tokenizer.save_pretrained(folder)
    return folder


def test_a_tokenizer_in_python_is_named_by_its_settings_and_files_and_not_by_its_place(tmp_path: Path) -> None:
    usual = save_python_tokenizer(tmp_path / "usual")
    others = [
        save_python_tokenizer(tmp_path / "lower case", lower_case=True),
        save_python_tokenizer(tmp_path / "other words", words="word Word wo ##rd"),
    ]
    named = ModelFolder(usual).tokenizer_hash
    assert len({named, *(ModelFolder(folder).tokenizer_hash for folder in others)}) == 3
    elsewhere = load_tokenizer(Path(shutil.copytree(usual, tmp_path / "elsewhere")))
    elsewhere.model_max_length = 7
    elsewhere.save_pretrained(tmp_path / "again")
    assert {tokenizer_hash(elsewhere), ModelFolder(tmp_path / "again").tokenizer_hash} == {named}
    check_saving("usual", elsewhere)


def test_a_tokenizer_that_saving_changes_is_an_error(tmp_path: Path) -> None:
    """This one drops the last column of its merges at every reading and writes one less."""
    (tmp_path / "vocab.txt").write_text("".join(f"{token} 1\n" for token in ("wo@@", "w@@", "o@@", "rd", "r@@", "d")))
    (tmp_path / "bpe.codes").write_text("w o 5\nr d 4\n")
    tokenizer = BertweetTokenizer(str(tmp_path / "vocab.txt"), str(tmp_path / "bpe.codes"))
    with pytest.raises(PipelineError, match="tokenizer of some-model, a BertweetTokenizer, changes when transformers saves"):
        check_saving("some-model", tokenizer)


@pytest.mark.parametrize("load", [load_tokenizer, load_classifier])
@pytest.mark.parametrize("place", ["data/raw/nowhere", "/nowhere", "./nowhere", Path("nowhere")])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(load: Any, place: str | Path) -> None:
    with pytest.raises(PipelineError, match=rf"can be loaded from {place}: there is no such folder$"):
        load(place)


def test_a_model_that_was_saved_without_its_tokenizer_is_an_error(teacher: Path, tmp_path: Path) -> None:
    load_classifier(teacher).save_pretrained(tmp_path / "alone")
    with pytest.raises(PipelineError, match=rf"^{tmp_path / 'alone'} holds no tokenizer: .* \(tokenizer.save_pretrained\)$"):
        load_tokenizer(tmp_path / "alone")


def test_a_tokenizer_that_has_nothing_to_pad_with_is_an_error(tmp_path: Path) -> None:
    tokenizer_with(unk_token="[UNK]").save_pretrained(tmp_path)
    with pytest.raises(PipelineError, match=rf"the tokenizer of {tmp_path} has neither a padding nor an end-of-text token"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("most", [{}, "long", float("nan")])
def test_a_greatest_length_that_is_no_number_is_an_error(most: Any, folder: Path) -> None:
    rewrite(folder / "tokenizer_config.json", model_max_length=most)
    with pytest.raises(PipelineError, match=rf"the tokenizer of {folder} has model_max_length: .*; it must be a whole number"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"id2label": ["bad", "good"]}, r'id2label in its config.json must be a mapping such as .*, not \["bad", "good"\]'),
        ({"id2label": {"bad": 0, "good": 1}}, r"id2label in its config.json must be a mapping such as"),
        ({"label2id": ["bad", "good"]}, r"label2id in its config.json must be a mapping such as"),
        ({"num_labels": "2"}, r'num_labels in its config.json must be a whole number, not "2"'),
        ({"hidden_size": "wide"}, r"hidden_size"),
        ({"model_type": "no such type"}, r"no such type"),
        ({"dtype": "float99"}, r"float99"),
    ],
)
def test_a_configuration_of_another_form_is_an_error_with_the_entry(
    changed: dict[str, Any], sentence: str, folder: Path
) -> None:
    rewrite(folder / "config.json", **changed)
    with pytest.raises(PipelineError, match=rf"no model can be loaded from {folder}: .*{sentence}"):
        _ = ModelFolder(folder).config


def needs_a_package(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word"]))
    config = {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "mecab", "subword_tokenizer_type": "wordpiece"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def of_git_lfs(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n")


def cut(name: str, kept: int = 40) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:kept])


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (needs_a_package, "You need to install fugashi"),
        (of_git_lfs("tokenizer.json"), "tokenizer.json is a Git LFS pointer, not the file: git lfs pull"),
        (cut("tokenizer.json"), "tokenizer.json is not valid JSON, copy it again"),
        (cut("tokenizer_config.json"), "tokenizer_config.json is not valid JSON, copy it again"),
    ],
)
def test_a_tokenizer_that_cannot_be_loaded_is_one_sentence(harm: Callable[[Path], None], sentence: str, folder: Path) -> None:
    harm(folder)
    with pytest.raises(PipelineError, match=rf"no tokenizer can be loaded from {folder}: .*{sentence}"):
        load_tokenizer(folder)


def an_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (an_adapter, "beside the model it holds an adapter: merge that into its model"),
        (of_git_lfs("model.safetensors"), "model.safetensors is a Git LFS pointer, not the file: git lfs pull"),
        (cut("model.safetensors", -100), r"model.safetensors is damaged \("),
    ],
)
def test_weights_that_are_not_whole_are_an_error_before_anything_is_loaded(
    harm: Callable[[Path], None], sentence: str, folder: Path
) -> None:
    harm(folder)
    with pytest.raises(PipelineError, match=rf"no model can be loaded from {folder}: {sentence}"):
        ModelFolder(folder).check_files()
