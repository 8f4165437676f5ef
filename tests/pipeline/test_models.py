import json
import math
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
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    FunnelConfig,
    Gemma3Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    XLNetConfig,
)

from pipeline.encoding import Batch, collate, encode
from pipeline.errors import PipelineError
from pipeline.models import (
    DECODERS,
    READ_AT_THE_END,
    SUPPORTED,
    embed,
    embedding_width,
    freeze,
    labels_of,
    load_classifier,
    load_pretrained,
    load_tokenizer,
    logits_and_states,
    logits_from_embeddings,
    logits_from_ids,
    longest_input,
    model_hash,
    parameter_count,
    positions_of,
    saved_labels,
    tokenizer_hash,
    word_embeddings,
)
from tests.architectures import CONFIGURATIONS, LENGTHS, NARROW_WORDS, PAD, UNUSED, VOCABULARY, of_type, rows_of
from tests.world import make_task, make_tokenizer, save_teacher


def alone(batch: Batch, row: int) -> Batch:
    length = int(batch["attention_mask"][row].sum())
    return {name: value[row : row + 1, :length] for name, value in batch.items()}


def plain(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """What transformers itself answers to each row by itself, from ids, without padding or mask."""
    singles = [alone(batch, row) for row in range(len(batch["input_ids"]))]
    return torch.cat([model(**{n: value for n, value in one.items() if n != "attention_mask"}).logits for one in singles])


def assert_as_plain(model: PreTrainedModel, batch: Batch) -> None:
    """From ids and from embeddings, together and one by one, every row has the logits of transformers."""
    wanted = plain(model, batch)
    assert torch.pdist(wanted).min() > 1e-3, "the rows must have different answers for the comparison to mean something"
    singles = [alone(batch, row) for row in range(len(wanted))]
    found = {
        "ids": logits_from_ids(model, batch),
        "embeddings": logits_from_embeddings(model, batch, embed(model, batch["input_ids"])),
        "ids, alone": torch.cat([logits_from_ids(model, one) for one in singles]),
        "embeddings, alone": torch.cat([logits_from_embeddings(model, one, embed(model, one["input_ids"])) for one in singles]),
    }
    for name, logits in found.items():
        torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=1e-5, msg=lambda fault, name=name: f"{name}: {fault}")


def test_every_supported_type_is_tried_here() -> None:
    assert {config.model_type for config in CONFIGURATIONS.values()} == set(SUPPORTED)


@pytest.mark.parametrize("lengths", [LENGTHS, (6, 5)], ids=["of many lengths", "one token longer"])
@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_ids_and_embeddings_give_the_logits_that_transformers_gives_each_row_alone(kind: str, lengths: tuple[int, ...]) -> None:
    assert_as_plain(of_type(kind), rows_of(kind, lengths))


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_states_are_those_that_transformers_has_of_each_row_alone_where_its_head_reads(kind: str) -> None:
    model, batch = of_type(kind), rows_of(kind)
    words = embed(model, batch["input_ids"])
    logits, states = logits_and_states(model, batch, words, [1, 2])
    torch.testing.assert_close(logits, logits_from_embeddings(model, batch, words))
    place = -1 if kind in READ_AT_THE_END else 0
    for row in range(len(logits)):
        one = {name: value for name, value in alone(batch, row).items() if name != "attention_mask"}
        found = model(**one, output_hidden_states=True).hidden_states
        wanted = torch.stack([found[layer][0, place] for layer in (1, 2)])
        torch.testing.assert_close(states[row], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_a_regression_is_run_alike(kind: str) -> None:
    model = of_type(kind, num_labels=1)
    assert logits_from_ids(model, rows_of(kind)).shape == (len(LENGTHS), 1)
    assert_as_plain(model, rows_of(kind))


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_what_lies_on_padding_changes_no_logit_and_what_lies_on_a_token_does(kind: str) -> None:
    model, batch = of_type(kind), rows_of(kind)
    words = embed(model, batch["input_ids"])
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
def test_the_gradient_is_a_number_and_lies_on_tokens_alone(kind: str) -> None:
    model, batch = of_type(kind), rows_of(kind)
    words = embed(model, batch["input_ids"]).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(logits_from_embeddings(model, batch, words)[:, 0].sum(), words)
    assert gradient.isfinite().all()
    assert torch.equal((gradient != 0).any(dim=-1), batch["attention_mask"] == 1)


@pytest.mark.parametrize("kind", sorted({*DECODERS} - {"gemma2"}))  # Gemma 2 has the eager one only
def test_either_attention_gives_the_same_numbers_where_a_query_sees_no_key(kind: str) -> None:
    """Padding in front leaves causal attention nothing to look at, which a softmax answers with NaN."""
    answers = []
    for attention in ("eager", "sdpa"):
        model, batch = of_type(kind, attention), rows_of(kind)
        assert model.config._attn_implementation == attention
        words = embed(model, batch["input_ids"]).detach().requires_grad_(True)
        logits = logits_from_embeddings(model, batch, words)
        answers.append((logits, torch.autograd.grad(logits[:, 0].sum(), words)[0]))
    torch.testing.assert_close(*answers, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", READ_AT_THE_END)
def test_a_row_that_ends_in_the_padding_token_is_read_at_its_end(kind: str) -> None:
    """Where the end-of-text token pads too, ids alone cannot tell a row's end; the mask can."""
    model, batch = of_type(kind), rows_of(kind)
    for row, length in enumerate(LENGTHS):
        batch["input_ids"][row, length - 1] = PAD
    by_ids = plain(model, batch)
    model.config.pad_token_id = UNUSED
    by_mask = plain(model, batch)
    model.config.pad_token_id = PAD
    torch.testing.assert_close(logits_from_ids(model, batch), by_mask, atol=1e-5, rtol=1e-5)
    if kind in DECODERS:
        assert (by_mask - by_ids).abs().amax(dim=1).min() > 1e-3, "reading before the end must be seen"


@pytest.mark.parametrize("kind", ["bert", "gpt2", "xlnet"])
def test_a_tokenizer_that_pads_on_the_left_makes_no_difference(kind: str) -> None:
    model, texts = of_type(kind, vocab_size=65), ["word1 word2 word3", "word4"]
    left, right = make_tokenizer(), make_tokenizer()
    left.padding_side = "left"
    batches = [collate(encode(one, texts, None, 9).input_ids, None, PAD) for one in (left, right)]
    assert torch.equal(logits_from_ids(model, batches[0]), logits_from_ids(model, batches[1]))


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_the_table_holds_the_embeddings_as_the_model_reads_them(kind: str) -> None:
    model, ids = of_type(kind), rows_of(kind)["input_ids"]
    torch.testing.assert_close(word_embeddings(model)[ids], embed(model, ids))
    assert (word_embeddings(model) is model.get_input_embeddings().weight) == (not kind.startswith("gemma"))


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
    with pytest.raises(PipelineError, match="is not a finished classifier: it lacks weights"):
        load_classifier(tmp_path / "body")
    headed = load_classifier(tmp_path / "body", make_task())
    assert torch.equal(headed.get_input_embeddings().weight, body.get_input_embeddings().weight)
    assert logits_from_ids(headed, batch).shape == (len(LENGTHS), 2)


def test_weights_made_up_on_loading_are_named_in_order_and_a_tied_one_is_not_among_them(tmp_path: Path) -> None:
    AutoModelForMaskedLM.from_config(CONFIGURATIONS["bert"]).save_pretrained(tmp_path)
    assert load_pretrained(AutoModelForMaskedLM, tmp_path, "model")[1] == []
    _, fresh = load_pretrained(AutoModelForSequenceClassification, tmp_path, "model", intermediate_size=48)
    parts = [f"bert.encoder.layer.{layer}.{name}" for layer in (0, 1) for name in (
        "intermediate.dense.bias", "intermediate.dense.weight", "output.dense.weight",
    )]  # fmt: skip
    head = ["bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight"]
    assert fresh == [*parts, *head]


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("bart", BartConfig()),
        ("gemma3", Gemma3Config()),
    ],
)
def test_an_unsupported_type_is_refused_by_name(kind: str, config: PreTrainedConfig, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(PipelineError) as refusal:
        load_classifier(tmp_path)
    assert str(refusal.value) == (
        f"{tmp_path} is a {kind!r} model; perturbing word embeddings is supported for {', '.join(SUPPORTED)}"
    )


def test_an_xlnet_that_summarises_over_padding_is_refused(tmp_path: Path) -> None:
    XLNetConfig(summary_type="mean").save_pretrained(tmp_path)
    with pytest.raises(PipelineError, match="XLNet with summary_type 'mean'; only 'last' is supported"):
        load_classifier(tmp_path)


def tokenizer_with(**special: str) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with no other special tokens than these."""
    return PreTrainedTokenizerFast(tokenizer_object=make_tokenizer().backend_tokenizer, model_max_length=77, **special)


@pytest.mark.parametrize(
    ("special", "padding"),
    [({"eos_token": "[SEP]", "pad_token": "[PAD]"}, 0), ({"eos_token": "[SEP]"}, 3)],
    ids=["a padding token", "only an end"],
)
def test_a_decoder_without_a_padding_token_gets_its_tokenizers_or_the_end_of_text(
    special: dict[str, str], padding: int, tmp_path: Path
) -> None:
    of_type("gpt2", pad_token_id=None).save_pretrained(tmp_path)
    tokenizer_with(**special).save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token_id == padding
    model = load_classifier(tmp_path)
    assert model.config.pad_token_id == padding
    assert_as_plain(model, rows_of("gpt2"))
    load_tokenizer(tmp_path).save_pretrained(tmp_path / "again")
    assert tokenizer_hash(load_tokenizer(tmp_path / "again")) == tokenizer_hash(load_tokenizer(tmp_path))


def test_a_padding_token_that_a_model_names_is_kept(tmp_path: Path) -> None:
    of_type("llama").save_pretrained(tmp_path)
    tokenizer_with(eos_token="[SEP]").save_pretrained(tmp_path)
    assert load_classifier(tmp_path).config.pad_token_id == PAD


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


def test_relative_positions_and_none_at_all_have_no_end() -> None:
    assert positions_of(XLNetConfig()) == positions_of(FunnelConfig()) == math.inf


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
