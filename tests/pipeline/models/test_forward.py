import pytest
import torch
from transformers import PreTrainedModel

from pipeline.models.architectures import DECODERS
from pipeline.models.forward import embed, logits_from_embeddings, parameter_count, word_embeddings
from tests.architectures import CONFIGURATIONS, LENGTHS, assert_as_plain, of_type, rows_of


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(kind: str) -> PreTrainedModel:
    return of_type(kind)


def test_ids_and_embeddings_give_the_logits_that_transformers_gives_each_row_alone(kind: str, model: PreTrainedModel) -> None:
    for lengths in (LENGTHS, (6, 5)):
        assert_as_plain(model, rows_of(kind, lengths))


def test_the_gradient_is_finite_and_not_zero_on_tokens_alone(kind: str, model: PreTrainedModel) -> None:
    batch = rows_of(kind)
    words = embed(model, batch["input_ids"]).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(logits_from_embeddings(model, batch, words)[:, 0].sum(), words)
    assert gradient.isfinite().all()
    assert torch.equal((gradient != 0).any(dim=-1), batch["attention_mask"] == 1)


def test_the_table_holds_the_embeddings_as_the_model_reads_them(kind: str, model: PreTrainedModel) -> None:
    ids = rows_of(kind)["input_ids"]
    torch.testing.assert_close(word_embeddings(model)[ids], embed(model, ids))


@pytest.mark.parametrize("decoder", sorted({*DECODERS} - {"gemma2"}))  # Gemma 2 has eager attention only
def test_both_attentions_give_the_same_numbers_where_a_query_sees_no_key(decoder: str) -> None:
    """With padding in front, causal attention has no key, and a softmax over none is NaN."""
    answers = []
    for attention in ("eager", "sdpa"):
        model, batch = of_type(decoder, attention), rows_of(decoder)
        assert model.config._attn_implementation == attention
        words = embed(model, batch["input_ids"]).detach().requires_grad_(True)
        logits = logits_from_embeddings(model, batch, words)
        answers.append((logits, torch.autograd.grad(logits[:, 0].sum(), words)[0]))
    torch.testing.assert_close(*answers, atol=1e-4, rtol=1e-4)


def test_a_shared_parameter_is_counted_once() -> None:
    model = of_type("bert")
    held = sum(weight.numel() for weight in model.state_dict().values())
    model.twin = model.get_input_embeddings()
    assert parameter_count(model) == held
