from pathlib import Path

import pytest
import torch

from pipeline.corpus.encoding import collate, encode
from pipeline.models.architectures import DECODERS
from pipeline.models.forward import (
    embed,
    freeze,
    logits_from_embeddings,
    logits_from_ids,
    parameter_count,
    word_embeddings,
)
from pipeline.models.loading import load_classifier
from tests.architectures import CONFIGURATIONS, LENGTHS, PAD, assert_as_plain, of_type, rows_of
from tests.world import make_tokenizer


@pytest.mark.parametrize("lengths", [LENGTHS, (6, 5)], ids=["of many lengths", "one token longer"])
@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_ids_and_embeddings_give_the_logits_that_transformers_gives_each_row_alone(kind: str, lengths: tuple[int, ...]) -> None:
    assert_as_plain(of_type(kind), rows_of(kind, lengths))


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


def test_freezing_leaves_nothing_to_learn_and_drops_out_nothing(teacher: Path) -> None:
    model = freeze(load_classifier(teacher).train())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_parameter_that_is_shared_is_counted_once() -> None:
    model = of_type("bert")
    held = sum(weight.numel() for weight in model.state_dict().values())
    model.twin = model.get_input_embeddings()
    assert parameter_count(model) == held
