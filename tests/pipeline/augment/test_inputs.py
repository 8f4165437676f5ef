import pickle

import numpy as np
import pytest

from pipeline.augment.batches import Inputs, Partner
from pipeline.corpus.encoding import Ids, Types
from pipeline.perturbation.inputs import OWN_WEIGHT, PARTNER_IDS

PAD = 7


def ids_of(*ids: int) -> Ids:
    return np.array(ids, dtype=np.int32)


def types_of(*types: int) -> Types:
    return np.array(types, dtype=np.int8)


IDS = [ids_of(2, 9, 3), ids_of(2, 3), ids_of(2, 8, 9, 3)]
TYPES = [types_of(0, 0, 1), types_of(0, 1), types_of(0, 0, 1, 1)]
PARTNERS = [Partner("b", ids_of(2, 3, PAD), 0.25), Partner("c", ids_of(5, 6), 0.5), Partner("a", ids_of(2, 9, 3, PAD), 0.75)]
FULL = Inputs(["a", "b", "c"], IDS, TYPES, PARTNERS)
BARE = Inputs(["a", "b", "c"], IDS, None)


def assert_rows(found: Inputs, rows: list[int], of: Inputs) -> None:
    assert list(found.example_ids) == [of.example_ids[row] for row in rows]
    assert [ids.tolist() for ids in found.input_ids] == [of.input_ids[row].tolist() for row in rows]
    types = None if of.token_type_ids is None else [of.token_type_ids[row].tolist() for row in rows]
    assert (None if found.token_type_ids is None else [row.tolist() for row in found.token_type_ids]) == types
    assert found.partners == (None if of.partners is None else [of.partners[row] for row in rows])


def test_rows_and_their_tokens_are_counted() -> None:
    assert len(FULL) == 3
    assert FULL.lengths().tolist() == [3, 2, 4]


@pytest.mark.parametrize("inputs", [FULL, BARE], ids=["full", "bare"])
@pytest.mark.parametrize("positions", [[2, 0], [1], [0, 0, 2]])
def test_rows_that_are_taken_keep_their_ids_types_and_partners(inputs: Inputs, positions: list[int]) -> None:
    assert_rows(inputs.take(np.array(positions)), positions, inputs)


@pytest.mark.parametrize("types", [TYPES, None], ids=["types", "none"])
def test_parts_are_joined_in_their_order_and_are_the_rows_they_were_cut_from(types: list[Types] | None) -> None:
    whole = Inputs(["a", "b", "c"], IDS, types)
    parts = [whole.take(np.array(rows)) for rows in ([2], [0, 1])]
    assert_rows(Inputs.joined(parts), [2, 0, 1], whole)


def test_rows_without_partners_are_padded_to_the_length_asked_for_and_never_mixed() -> None:
    batch = Inputs(["a", "b", "c"], IDS, TYPES).padded(PAD, 5)
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[2, 9, 3, PAD, PAD], [2, 3, PAD, PAD, PAD], [2, 8, 9, 3, PAD]],
        "attention_mask": [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]],
        "token_type_ids": [[0, 0, 1, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 1, 0]],
    }
    assert set(BARE.padded(PAD, 0)) == {"input_ids", "attention_mask"}


def test_rows_with_partners_bring_them_and_their_weights_and_may_read_a_padding_token() -> None:
    batch = FULL.padded(PAD, 5)
    assert batch[PARTNER_IDS].tolist() == [[2, 3, PAD, PAD, PAD], [5, 6, PAD, PAD, PAD], [2, 9, 3, PAD, PAD]]
    assert batch[OWN_WEIGHT].tolist() == [0.25, 0.5, 0.75]
    filled_up = Inputs(["a"], [ids_of(2, 3, PAD)], None, [Partner("b", ids_of(2, 9, 3), 0.5)]).padded(PAD, 4)
    assert filled_up["attention_mask"].tolist() == [[1, 1, 1, 0]], (
        "what fills a row up to its partner is read, what pads it not"
    )


@pytest.mark.parametrize("inputs", [FULL, BARE], ids=["full", "bare"])
@pytest.mark.parametrize("positions", [[0, 1, 2], [1], []])
def test_rows_arrive_in_another_process_as_they_were(inputs: Inputs, positions: list[int]) -> None:
    rows = inputs.take(np.array(positions, dtype=np.int64))
    found = pickle.loads(pickle.dumps(rows, 5))
    assert [ids.dtype for ids in found.input_ids] == [np.int32] * len(positions)
    names = [partner.example_id for partner in found.partners or ()]
    assert names == [partner.example_id for partner in rows.partners or ()]
    assert_rows(Inputs(found.example_ids, found.input_ids, found.token_type_ids, rows.partners), list(range(len(rows))), rows)


def test_rows_travel_in_few_pieces_however_many_they_are() -> None:
    pieces = list[pickle.PickleBuffer]()
    pickle.dumps(Inputs(["a", "b", "c"], IDS, TYPES), 5, buffer_callback=pieces.append)
    assert len(pieces) == 4
