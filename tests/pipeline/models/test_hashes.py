import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
from tokenizers.normalizers import Lowercase
from transformers import (
    AutoConfig,
)

from pipeline.models.hashes import model_hash, tokenizer_hash
from pipeline.models.pretrained import (
    load_classifier,
    load_tokenizer,
)
from tests.world import make_task, make_tokenizer, rewrite, save_teacher


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


def test_two_teachers_share_the_tokenizer_and_not_the_model(teacher: Path, tmp_path: Path) -> None:
    other = save_teacher(tmp_path / "other", make_task(), seed=1)
    assert tokenizer_hash(load_tokenizer(other)) == tokenizer_hash(load_tokenizer(teacher))
    assert model_hash(other) != model_hash(teacher)
    assert AutoConfig.from_pretrained(other).to_dict() == AutoConfig.from_pretrained(teacher).to_dict() | {
        "_name_or_path": str(other)
    }
