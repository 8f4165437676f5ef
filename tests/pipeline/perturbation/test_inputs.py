import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.perturbation.inputs import OWN_WEIGHT, PARTNER_IDS, carried, mixing_batch, view_embeddings

PAD, WIDTH = 0, 16
TABLE = torch.randn(65, WIDTH, generator=torch.Generator().manual_seed(0))


def words(ids: Tensor) -> Tensor:
    return TABLE[ids]


@given(
    rows=st.lists(
        st.tuples(
            st.lists(st.integers(1, 64), min_size=1, max_size=9), st.one_of(st.none(), st.floats(0.125, 0.875, width=32))
        ),
        min_size=2,
        max_size=6,
    ),
    tokens=st.integers(0, 12),
)
def test_rows_with_a_partner_are_mixed_and_others_keep_their_words(
    rows: list[tuple[list[int], float | None]], tokens: int
) -> None:
    own = [np.array(ids, dtype=np.int32) for ids, _ in rows]
    weights = [weight for _, weight in rows]
    partners = [None if weight is None else (ids[::-1] + 7) % 65 for ids, weight in zip(own, weights, strict=True)]
    view = view_embeddings(words, mixing_batch(own, None, partners, weights, PAD, tokens))
    for row, (ids, partner, weight) in enumerate(zip(own, partners, weights, strict=True)):
        mine, wanted = view[row, : len(ids)], TABLE[ids]
        if partner is None or weight is None:
            assert torch.equal(mine, wanted)
        else:
            torch.testing.assert_close(mine, weight * wanted + (1 - weight) * TABLE[partner])


def test_partners_are_padded_as_the_rows_are_and_leave_ids_mask_and_types_alone() -> None:
    ids = [np.array([2, 9, 3], dtype=np.int32), np.array([2, 3], dtype=np.int32)]
    types = [np.array([0, 0, 1], dtype=np.int8), np.array([0, 1], dtype=np.int8)]
    batch = mixing_batch(ids, types, [None, np.array([2, PAD], dtype=np.int32)], [None, 0.25], 5, 4)
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[2, 9, 3, 5], [2, 3, 5, 5]],
        "attention_mask": [[1, 1, 1, 0], [1, 1, 0, 0]],
        "token_type_ids": [[0, 0, 1, 0], [0, 1, 0, 0]],
        PARTNER_IDS: [[2, 9, 3, 5], [2, PAD, 5, 5]],
        OWN_WEIGHT: [1.0, 0.25],
    }


def test_delta_is_carried_by_the_map_into_a_narrower_space_and_stays_as_it_is_where_the_space_is_shared() -> None:
    generator = torch.Generator().manual_seed(1)
    delta, linear = torch.randn(3, 5, WIDTH, generator=generator), torch.randn(WIDTH, 4, generator=generator)
    assert carried(delta, None) is delta
    torch.testing.assert_close(words(torch.tensor([7])) @ linear + carried(delta, linear), (TABLE[[7]] + delta) @ linear)
