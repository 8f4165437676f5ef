import pytest
import torch
from torch import Tensor

from pipeline.corpus.encoding import PARTNER_IDS
from pipeline.perturbation.inputs import OWN_WEIGHT, mapped, variant_embeddings

WIDTH = 16
TABLE = torch.randn(65, WIDTH, generator=torch.Generator().manual_seed(0))
IDS, PARTNERS = torch.randint(0, 65, (2, 4, 7), generator=torch.Generator().manual_seed(1))
WEIGHTS = torch.tensor([0.0, 0.25, 0.875, 1.0])


def words(ids: Tensor) -> Tensor:
    return TABLE[ids]


def test_a_mixed_row_is_the_weighted_sum_of_its_words_and_its_partners() -> None:
    mixed = variant_embeddings(words, {"input_ids": IDS, PARTNER_IDS: PARTNERS, OWN_WEIGHT: WEIGHTS})
    for row, weight in enumerate(WEIGHTS.tolist()):
        torch.testing.assert_close(mixed[row], weight * TABLE[IDS[row]] + (1 - weight) * TABLE[PARTNERS[row]])
    assert torch.equal(variant_embeddings(words, {"input_ids": IDS}), TABLE[IDS])


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_mixing_keeps_the_type_of_the_embeddings(kind: torch.dtype) -> None:
    batch = {"input_ids": IDS, PARTNER_IDS: PARTNERS, OWN_WEIGHT: WEIGHTS}
    assert variant_embeddings(lambda ids: words(ids).to(kind), batch).dtype == kind


def test_the_map_commutes_with_adding_delta_and_a_shared_space_needs_none() -> None:
    generator = torch.Generator().manual_seed(1)
    delta, linear = torch.randn(3, 5, WIDTH, generator=generator), torch.randn(WIDTH, 4, generator=generator)
    assert mapped(delta, None) is delta
    torch.testing.assert_close(words(torch.tensor([7])) @ linear + mapped(delta, linear), (TABLE[[7]] + delta) @ linear)
