import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers.normalizers import Lowercase
from transformers import BertConfig, BertJapaneseTokenizer, BertweetTokenizer, PreTrainedTokenizerFast

from pipeline.config.errors import PipelineError
from pipeline.models.folder import ModelFolder, check_saving, load_tokenizer, model_hash, source_hash, tokenizer_hash
from pipeline.models.loading import load_classifier
from tests.architectures import CONFIGURATIONS, PAD, of_type
from tests.world import SPECIAL, make_tokenizer, rewrite, save_on_hub, spoil


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


def test_a_folder_with_an_at_in_its_name_is_a_folder(folder: Path) -> None:
    assert ModelFolder(str(folder.rename(folder.with_name("teacher@v1")))).depth == 4


def test_label_names_come_in_the_order_of_the_logits(tmp_path: Path) -> None:
    names = {number: f"name{number}" for number in (10, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9)}
    BertConfig(id2label=names).save_pretrained(tmp_path)
    assert ModelFolder(tmp_path).labels == tuple(f"name{number}" for number in range(11))


def tokenizer_with(most: int = 77, **special: str) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with no other special tokens than these."""
    return PreTrainedTokenizerFast(tokenizer_object=make_tokenizer().backend_tokenizer, model_max_length=most, **special)


@pytest.mark.parametrize(
    ("kind", "tokenizers", "most"),
    [("xlnet", 77, 77), ("gpt2", 77, 20), ("bert", 77, 20), ("roberta", 77, 18), ("bert", 5, 5)],
)
def test_the_longest_input_is_what_both_tokenizer_and_positions_take(
    kind: str, tokenizers: int, most: int, tmp_path: Path
) -> None:
    CONFIGURATIONS[kind].save_pretrained(tmp_path)
    tokenizer_with(tokenizers, pad_token="[PAD]").save_pretrained(tmp_path)
    assert ModelFolder(tmp_path).longest_input == most


EVERY = {"eos_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]"}


@pytest.mark.parametrize(
    ("kind", "named", "special", "padding"),
    [
        ("gpt2", None, EVERY, 0),
        ("gpt2", None, {"eos_token": "[SEP]"}, 3),
        ("llama", PAD, EVERY, PAD),
        ("bert", PAD, EVERY, 0),
    ],
)
def test_the_tokenizer_of_a_decoder_pads_with_what_its_configuration_names_and_the_configuration_stays(
    kind: str, named: int | None, special: dict[str, str], padding: int, tmp_path: Path
) -> None:
    """Other tokens of some texts would be read if either were different in a saved copy."""
    of_type(kind, pad_token_id=named).save_pretrained(tmp_path)
    tokenizer_with(**special).save_pretrained(tmp_path)
    assert load_classifier(tmp_path).config.pad_token_id == named
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.pad_token_id == padding
    tokenizer.save_pretrained(tmp_path)
    assert ModelFolder(tmp_path).tokenizer_hash == tokenizer_hash(tokenizer)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: spoil(folder, "classifier.bias", 0, 1e-6),
        lambda folder: rewrite(folder / "config.json", id2label={"0": "good", "1": "bad"}),
        lambda folder: rewrite(folder / "config.json", layer_norm_eps=1e-5),
    ],
    ids=["weight", "label name", "layer norm"],
)
def test_a_model_has_another_hash_once_its_logits_may_differ(folder: Path, change: Callable[[Path], None]) -> None:
    before = model_hash(folder)
    change(folder)
    assert model_hash(folder) != before


def test_a_models_hash_does_not_depend_on_its_place_nor_on_who_saved_it(teacher: Path, folder: Path, tmp_path: Path) -> None:
    rewrite(folder / "config.json", _name_or_path="elsewhere", transformers_version="9.9.9")
    load_classifier(teacher).save_pretrained(tmp_path / "saved again")
    assert model_hash(folder) == model_hash(tmp_path / "saved again") == model_hash(teacher)


def test_a_hub_model_is_named_by_the_commit_that_its_id_means_now(hub: Path) -> None:
    save_on_hub(hub, {"main": 1, "v1": 1})
    before, pinned = source_hash("org/teacher"), source_hash("org/teacher@v1")
    assert before == pinned == f"org/teacher@{1:040x}"
    save_on_hub(hub, {"main": 2})
    assert source_hash("org/teacher") == f"org/teacher@{2:040x}"
    assert source_hash("org/teacher@v1") == source_hash(f"org/teacher@{1:040x}") == pinned
    with pytest.raises(PipelineError, match="no model can be loaded from org/teacher@v9"):
        source_hash("org/teacher@v9")


def test_errors_call_a_cached_hub_model_by_its_id(hub: Path) -> None:
    found = ModelFolder.at_hand("org/teacher")
    assert found is not None
    (found.path / "config.json").write_text("{")
    with pytest.raises(PipelineError, match=r"^no model can be loaded from org/teacher: ") as error:
        _ = found.config
    assert str(hub) not in str(error.value)
    assert ModelFolder.at_hand("org/other") is None


def swap_roles(tokenizer: PreTrainedTokenizerFast) -> None:
    """The special ids stay the same, but edits mask with one and mixtures pad with another."""
    tokenizer.pad_token, tokenizer.mask_token = tokenizer.mask_token, tokenizer.pad_token


CHANGES: list[Callable[[PreTrainedTokenizerFast], object]] = [
    lambda tokenizer: None,
    lambda tokenizer: tokenizer.add_tokens(["word60"]),
    lambda tokenizer: setattr(tokenizer.backend_tokenizer, "normalizer", Lowercase()),
    lambda tokenizer: setattr(tokenizer.backend_tokenizer.model, "unk_token", "[MASK]"),
    lambda tokenizer: tokenizer.add_special_tokens({"additional_special_tokens": ["word3"]}),
    lambda tokenizer: setattr(tokenizer, "model_input_names", ["input_ids", "attention_mask"]),
    swap_roles,
]


def test_a_tokenizer_has_another_hash_once_its_ids_may_differ() -> None:
    tokenizers = [make_tokenizer() for _ in CHANGES]
    for tokenizer, change in zip(tokenizers, CHANGES, strict=True):
        change(tokenizer)
    assert len({tokenizer_hash(tokenizer) for tokenizer in tokenizers}) == len(CHANGES)


def test_a_tokenizers_hash_depends_neither_on_its_place_nor_on_its_use(tmp_path: Path) -> None:
    used = make_tokenizer()
    used(["word1 word2", "word3"], truncation=True, max_length=3, padding="max_length")
    used.model_max_length = 7
    used.save_pretrained(tmp_path)
    assert len({tokenizer_hash(used), tokenizer_hash(make_tokenizer()), ModelFolder(tmp_path).tokenizer_hash}) == 1


def test_a_tokenizer_in_python_is_named_by_its_settings_and_files_but_not_by_its_place(tmp_path: Path) -> None:
    def save(name: str, lower_case: bool = False, words: str = "word WORD wo ##rd") -> str:
        (tmp_path / name).mkdir()
        vocabulary = tmp_path / name / "vocab.txt"
        vocabulary.write_text("\n".join([*SPECIAL, *words.split()]))
        tokenizer = BertJapaneseTokenizer(str(vocabulary), do_lower_case=lower_case, word_tokenizer_type="basic")
        tokenizer.save_pretrained(tmp_path / name)
        return ModelFolder(tmp_path / name).tokenizer_hash

    usual = save("usual")
    assert len({usual, save("lower case", lower_case=True), save("other words", words="word Word wo ##rd")}) == 3
    elsewhere = load_tokenizer(tmp_path / "usual")
    assert not elsewhere.is_fast
    elsewhere.model_max_length = 7
    elsewhere.save_pretrained(tmp_path / "again")
    assert tokenizer_hash(elsewhere) == ModelFolder(tmp_path / "again").tokenizer_hash == usual
    check_saving("usual", elsewhere)


def test_a_tokenizer_that_saving_changes_is_an_error(tmp_path: Path) -> None:
    """This one drops the last column of its merges when it reads them, and writes one fewer."""
    (tmp_path / "vocab.txt").write_text("".join(f"{token} 1\n" for token in ("wo@@", "w@@", "o@@", "rd", "r@@", "d")))
    (tmp_path / "bpe.codes").write_text("w o 5\nr d 4\n")
    tokenizer = BertweetTokenizer(str(tmp_path / "vocab.txt"), str(tmp_path / "bpe.codes"))
    with pytest.raises(PipelineError, match="tokenizer of some-model, a BertweetTokenizer, changes when transformers saves"):
        check_saving("some-model", tokenizer)


@pytest.mark.parametrize("place", ["data/raw/nowhere", "/nowhere", "./nowhere", Path("nowhere")])
def test_a_missing_folder_is_not_looked_for_on_the_hub(place: str | Path) -> None:
    for load in (load_tokenizer, load_classifier):
        with pytest.raises(PipelineError, match=rf"can be loaded from {place}: there is no such folder$"):
            load(place)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"id2label": ["bad", "good"]}, r'id2label in its config.json must be a mapping such as .*, not \["bad", "good"\]'),
        ({"id2label": {"bad": 0, "good": 1}}, "id2label in its config.json must be a mapping"),
        ({"num_labels": "2"}, r'num_labels in its config.json must be a whole number, not "2"'),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"model_type": "no such type"}, "no such type"),
        ({"dtype": "float99"}, "float99"),
    ],
)
def test_a_malformed_configuration_is_an_error_with_the_entry(changed: dict[str, Any], sentence: str, folder: Path) -> None:
    rewrite(folder / "config.json", **changed)
    with pytest.raises(PipelineError, match=rf"no model can be loaded from {folder}: .*{sentence}"):
        _ = ModelFolder(folder).config


def without_tokenizer(folder: Path) -> None:
    for file in folder.glob("token*"):
        file.unlink()


def of_git_lfs(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n")


def cut(name: str, kept: int = 40) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:kept])


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (of_git_lfs("tokenizer.json"), "no tokenizer .*: tokenizer.json is a Git LFS pointer, not the file: git lfs pull"),
        (cut("tokenizer.json"), "no tokenizer .*; tokenizer.json is not valid JSON, copy it again"),
        (cut("tokenizer_config.json"), "no tokenizer .*; tokenizer_config.json is not valid JSON, copy it again"),
        (without_tokenizer, r"holds no tokenizer: .* \(tokenizer.save_pretrained\)"),
        (tokenizer_with(unk_token="[UNK]").save_pretrained, "has neither a padding nor an end-of-text token"),
        (
            lambda folder: rewrite(folder / "tokenizer_config.json", model_max_length="long"),
            "has model_max_length: 'long'; it must be a whole number",
        ),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_an_error(harm: Callable[[Path], None], sentence: str, folder: Path) -> None:
    harm(folder)
    with pytest.raises(PipelineError, match=sentence) as error:
        load_tokenizer(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "beside the model it holds an adapter: merge"),
        (of_git_lfs("model.safetensors"), "model.safetensors is a Git LFS pointer, not the file: git lfs pull"),
        (cut("model.safetensors", -100), r"model.safetensors is damaged \("),
    ],
)
def test_incomplete_weights_are_an_error_before_anything_is_loaded(
    harm: Callable[[Path], None], sentence: str, folder: Path
) -> None:
    harm(folder)
    with pytest.raises(PipelineError, match=rf"no model can be loaded from {folder}: {sentence}"):
        ModelFolder(folder).check_files()
