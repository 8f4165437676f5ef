import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
from tokenizers.normalizers import Lowercase
from transformers import (
    AutoConfig,
    BertJapaneseTokenizer,
    BertweetTokenizer,
)

from pipeline.config.errors import PipelineError
from pipeline.models.folder import check_saving, load_tokenizer, model_hash, source_hash, tokenizer_hash
from pipeline.models.loading import load_classifier
from tests.world import make_task, make_tokenizer, rewrite, save_on_hub, save_teacher


def test_a_model_of_the_hub_is_named_by_the_commit_that_its_id_means_now(tmp_path: Path, hub: Path) -> None:
    save_on_hub(hub, {"main": 1, "v1": 1})
    before, pinned = source_hash("org/teacher"), source_hash("org/teacher@v1")
    assert before == pinned == f"org/teacher@{1:040x}"
    save_on_hub(hub, {"main": 2})
    assert source_hash("org/teacher") == f"org/teacher@{2:040x}"
    assert source_hash("org/teacher@v1") == source_hash(f"org/teacher@{1:040x}") == pinned
    with pytest.raises(PipelineError, match="no model can be loaded from org/teacher@v9"):
        source_hash("org/teacher@v9")


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
def test_a_model_has_another_hash_once_its_logits_may_differ(
    teacher: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    folder = Path(shutil.copytree(teacher, tmp_path / "changed"))
    before = model_hash(folder)
    change(folder)
    assert model_hash(folder) != before


def test_a_model_has_the_same_hash_wherever_it_lies_and_whoever_saved_it(teacher: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(teacher, tmp_path / "copied"))
    rewrite(copied / "config.json", _name_or_path="elsewhere", transformers_version="9.9.9")
    load_classifier(teacher).save_pretrained(tmp_path / "saved again")
    assert model_hash(copied) == model_hash(tmp_path / "saved again") == model_hash(teacher)


def test_a_tokenizer_has_another_hash_once_its_ids_may_differ() -> None:
    named = {"as it is": tokenizer_hash(make_tokenizer())}
    for name in ("word added", "lower case", "other unknown", "special token", "no token types"):
        changed = make_tokenizer()
        match name:
            case "word added":
                changed.add_tokens(["word60"])
            case "lower case":
                changed.backend_tokenizer.normalizer = Lowercase()
            case "other unknown":
                changed.backend_tokenizer.model.unk_token = "[MASK]"
            case "special token":
                changed.add_special_tokens({"additional_special_tokens": ["word3"]})
            case "no token types":
                changed.model_input_names = ["input_ids", "attention_mask"]
        named[name] = tokenizer_hash(changed)
    assert len(set(named.values())) == len(named), named


def test_a_tokenizer_has_the_same_hash_whatever_it_did_before_and_wherever_it_lies(tmp_path: Path) -> None:
    used = make_tokenizer()
    used(["word1 word2", "word3"], truncation=True, max_length=3, padding="max_length")
    used.model_max_length = 7
    used.save_pretrained(tmp_path / "saved")
    hashes = {tokenizer_hash(used), tokenizer_hash(make_tokenizer()), tokenizer_hash(load_tokenizer(tmp_path / "saved"))}
    assert len(hashes) == 1


def test_a_tokenizer_has_another_hash_once_a_token_has_another_role() -> None:
    """An edit masks with one, a mixture is filled up with another; the ids that are special are the same."""
    usual, turned = make_tokenizer(), make_tokenizer()
    turned.pad_token, turned.mask_token = usual.mask_token, usual.pad_token
    assert sorted(usual.all_special_ids) == sorted(turned.all_special_ids)
    assert tokenizer_hash(usual) != tokenizer_hash(turned)


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
    named = tokenizer_hash(load_tokenizer(usual))
    assert len({named, *(tokenizer_hash(load_tokenizer(folder)) for folder in others)}) == 3
    elsewhere = load_tokenizer(Path(shutil.copytree(usual, tmp_path / "elsewhere")))
    elsewhere.model_max_length = 7
    elsewhere.save_pretrained(tmp_path / "again")
    assert {tokenizer_hash(elsewhere), tokenizer_hash(load_tokenizer(tmp_path / "again"))} == {named}
    check_saving("usual", elsewhere)


def test_a_tokenizer_that_saving_changes_is_refused(tmp_path: Path) -> None:
    """This one drops the last column of its merges at every reading and writes one less."""
    (tmp_path / "vocab.txt").write_text("".join(f"{token} 1\n" for token in ("wo@@", "w@@", "o@@", "rd", "r@@", "d")))
    (tmp_path / "bpe.codes").write_text("w o 5\nr d 4\n")
    tokenizer = BertweetTokenizer(str(tmp_path / "vocab.txt"), str(tmp_path / "bpe.codes"))
    with pytest.raises(PipelineError, match="a BertweetTokenizer, is another one once transformers has saved it; save the"):
        check_saving("some-model", tokenizer)


def test_two_teachers_share_the_tokenizer_and_not_the_model(teacher: Path, tmp_path: Path) -> None:
    other = save_teacher(tmp_path / "other", make_task(), seed=1)
    assert tokenizer_hash(load_tokenizer(other)) == tokenizer_hash(load_tokenizer(teacher))
    assert model_hash(other) != model_hash(teacher)
    assert AutoConfig.from_pretrained(other).to_dict() == AutoConfig.from_pretrained(teacher).to_dict() | {
        "_name_or_path": str(other)
    }
