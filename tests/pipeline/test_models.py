import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tokenizers.normalizers import Lowercase
from transformers import (
    AlbertConfig,
    AutoConfig,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    XLMRobertaConfig,
    set_seed,
)

from pipeline.encoding import Batch, collate
from pipeline.errors import PipelineError
from pipeline.models import (
    SUPPORTED,
    embedding_width,
    freeze,
    labels_of,
    load_classifier,
    load_tokenizer,
    logits_from_embeddings,
    model_hash,
    parameter_count,
    saved_labels,
    tokenizer_hash,
    word_embeddings,
)
from tests.world import make_task, make_tokenizer, save_teacher

VOCABULARY, PAD = 40, 1
LENGTHS = (11, 3, 7, 2)
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": PAD,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 20,
    "initializer_range": 0.3,
    "num_labels": 3,
}
NARROW_WORDS = 8
CONFIGURATIONS: dict[str, PreTrainedConfig] = {
    "albert": AlbertConfig(**SIZES, embedding_size=NARROW_WORDS),
    "bert": BertConfig(**SIZES),
    "deberta-v2": DebertaV2Config(
        **SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"], position_biased_input=False, type_vocab_size=0
    ),
    "distilbert": DistilBertConfig(
        vocab_size=VOCABULARY, pad_token_id=PAD, dim=16, n_layers=2, n_heads=2, hidden_dim=32,
        max_position_embeddings=20, initializer_range=0.3, num_labels=3,
    ),
    "electra": ElectraConfig(**SIZES, embedding_size=NARROW_WORDS),
    "modernbert": ModernBertConfig(
        **SIZES, global_attn_every_n_layers=2, local_attention=4, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3
    ),
    "mpnet": MPNetConfig(**SIZES),
    "roberta": RobertaConfig(**SIZES),
    "xlm-roberta": XLMRobertaConfig(**SIZES),
}  # fmt: skip
WITH_TOKEN_TYPES = ("albert", "bert", "electra")


def of_type(kind: str) -> PreTrainedModel:
    set_seed(1)
    model = AutoModelForSequenceClassification.from_config(CONFIGURATIONS[kind])
    with torch.no_grad():  # what starts as zeros or ones, biases and norms, takes part too
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return freeze(model)


def rows_of(kind: str, lengths: tuple[int, ...] = LENGTHS) -> Batch:
    generator = torch.Generator().manual_seed(2)
    ids = [torch.randint(4, VOCABULARY, (length,), generator=generator).numpy() for length in lengths]
    types = [torch.randint(0, 2, (length,), generator=generator).numpy() for length in lengths]
    return collate(ids, types if kind in WITH_TOKEN_TYPES else None, PAD)


def alone(batch: Batch, row: int) -> Batch:
    length = int(batch["attention_mask"][row].sum())
    return {name: value[row : row + 1, :length] for name, value in batch.items()}


def test_every_supported_type_is_tried_here() -> None:
    assert sorted(CONFIGURATIONS) == sorted(SUPPORTED)


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_ids_and_embeddings_give_equal_logits_padded_and_alone(kind: str) -> None:
    model, batch = of_type(kind), rows_of(kind)
    table = word_embeddings(model)
    from_ids = model(**batch).logits
    assert from_ids.std(dim=0).min() > 1e-2, "the rows must have different answers for the comparison to mean something"
    torch.testing.assert_close(logits_from_embeddings(model, batch, table[batch["input_ids"]]), from_ids, atol=1e-5, rtol=1e-5)
    for row in range(len(LENGTHS)):
        single = alone(batch, row)
        torch.testing.assert_close(model(**single).logits, from_ids[row : row + 1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            logits_from_embeddings(model, single, table[single["input_ids"]]),
            from_ids[row : row + 1],
            atol=1e-5,
            rtol=1e-5,
        )


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_what_lies_on_padding_changes_no_logit_and_what_lies_on_a_token_does(kind: str) -> None:
    model, batch = of_type(kind), rows_of(kind)
    words = word_embeddings(model)[batch["input_ids"]]
    noise = torch.randn(words.shape, generator=torch.Generator().manual_seed(3))
    real = batch["attention_mask"].unsqueeze(-1)
    clean = logits_from_embeddings(model, batch, words)
    on_padding = logits_from_embeddings(model, batch, words + noise * (1 - real))
    torch.testing.assert_close(on_padding, clean, atol=1e-5, rtol=1e-5)
    on_last = torch.zeros_like(noise)
    for row, length in enumerate(LENGTHS):
        on_last[row, length - 1] = noise[row, length - 1]
    assert ((logits_from_embeddings(model, batch, words + on_last) - clean).abs().amax(dim=1) > 1e-4).all()


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_the_width_is_that_of_the_word_embeddings_and_read_without_weights(kind: str, tmp_path: Path) -> None:
    of_type(kind).save_pretrained(tmp_path)
    assert word_embeddings(load_classifier(tmp_path)).shape == (VOCABULARY, embedding_width(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    assert embedding_width(tmp_path) == (NARROW_WORDS if kind in ("albert", "electra") else 16)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("gpt2", GPT2Config()),
        ("bart", BartConfig()),
    ],
)
def test_an_unsupported_type_is_refused_by_name(kind: str, config: PreTrainedConfig, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(PipelineError) as refusal:
        load_classifier(tmp_path)
    assert str(refusal.value) == (
        f"{tmp_path} is a {kind!r} model; perturbing word embeddings is supported for {', '.join(SUPPORTED)}"
    )


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
    edit(folder / "config.json", auto_map={"AutoModelForSequenceClassification": "modeling.Model", "AutoConfig": "modeling.C"})
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


def test_label_names_come_in_the_order_of_the_logits(tmp_path: Path) -> None:
    names = {number: f"name{number}" for number in (10, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9)}
    BertConfig(id2label=names).save_pretrained(tmp_path)
    assert saved_labels(tmp_path) == tuple(f"name{number}" for number in range(11))


def test_freezing_leaves_nothing_to_learn_and_drops_out_nothing(teacher: Path) -> None:
    model = freeze(load_classifier(teacher).train())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_parameter_that_is_shared_is_counted_once() -> None:
    model = of_type("bert")
    held = sum(weight.numel() for weight in model.state_dict().values())
    model.twin = model.get_input_embeddings()
    assert parameter_count(model) == held


def edit(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def nudge_one_weight(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["classifier.bias"][0] += 1e-6
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "change",
    [
        nudge_one_weight,
        lambda folder: edit(folder / "config.json", id2label={"0": "good", "1": "bad"}),
        lambda folder: edit(folder / "config.json", hidden_act="relu"),
        lambda folder: edit(folder / "config.json", layer_norm_eps=1e-5),
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
    edit(copied / "config.json", _name_or_path="elsewhere", transformers_version="9.9.9")
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
