import json
from typing import get_args

import pyarrow as pa
import pytest

from pipeline.config.errors import PipelineError
from pipeline.config.corpus import Kind
from pipeline.shards.schema import METADATA, Content, candidates_schema, description_of, shard_schema, with_metadata

COMMON = {"example_id", "variant", "input_ids", "label", "teacher_logits"}
LABELLED = {"perturbed_logits", "divergence", "flipped"}
MIXED, PERTURBED = {"partner_id", "partner_ids", "own_weight"}, {"delta", "delta_scale"}
CONTENTS: tuple[Content, ...] = ("scores", "perturbations")
KINDS: tuple[Kind, ...] = ("classification", "regression")


def test_scores_hold_the_input_and_the_teachers_answer_and_nothing_of_perturbations() -> None:
    assert set(shard_schema("scores", "classification", False).names) == COMMON


def test_perturbations_are_rows_complete_in_themselves() -> None:
    assert set(shard_schema("perturbations", "classification", False).names) == COMMON | LABELLED | MIXED | PERTURBED


@pytest.mark.parametrize("content", CONTENTS)
def test_token_types_are_a_column_only_where_the_model_has_them(content: Content) -> None:
    without, with_types = (set(shard_schema(content, "classification", types).names) for types in (False, True))
    assert with_types - without == {"token_type_ids"}


def test_a_label_is_an_index_or_a_value_by_the_kind_of_task() -> None:
    assert shard_schema("scores", "classification", False).field("label").type == pa.int32()
    assert shard_schema("scores", "regression", False).field("label").type == pa.float32()


@pytest.mark.parametrize("kind", KINDS)
def test_of_scores_only_the_label_may_be_null_and_of_variants_what_their_recipe_lacks(kind: Kind) -> None:
    """A variant that is only edited has neither δ nor partner; what the teacher said of it is always there."""
    nullable = {c: {field.name for field in shard_schema(c, kind, True) if field.nullable} for c in CONTENTS}
    assert nullable == {"scores": {"label"}, "perturbations": {"label"} | MIXED | PERTURBED}


def test_candidates_are_whole_numbers_by_example_and_nothing_of_them_may_be_null() -> None:
    schema = candidates_schema()
    assert schema.names == ["example_id", "input_ids", "starts", "stops", "candidates"]
    assert schema.field("example_id").type == pa.string()
    assert {field.type for field in schema if field.name != "example_id"} == {pa.list_(pa.int32())}
    assert not [field.name for field in schema if field.nullable]


def test_candidates_are_no_content_of_a_set_of_shards() -> None:
    """The store tells by this what no manifest ever lists."""
    assert set(get_args(Content)) == set(CONTENTS)


@pytest.mark.parametrize("content", CONTENTS)
def test_every_type_is_one_that_other_readers_of_arrow_know(content: Content) -> None:
    plain = {pa.string(), pa.binary(), pa.bool_(), pa.float32(), pa.int8(), pa.int16(), pa.int32()}
    types = [field.type for field in shard_schema(content, "classification", True)]
    assert {kind.value_type if pa.types.is_list(kind) else kind for kind in types} <= plain


def test_what_a_shard_says_of_itself_comes_back_as_it_was_given() -> None:
    said = {"key": {"teacher": "ab", "variant": 3, "nested": {"δ": [1, 2.5]}}, "codec": "sign", "width": 12}
    schema = with_metadata(shard_schema("perturbations", "regression", True), said)
    assert description_of(schema, "x.arrow") == said


def test_the_order_in_which_a_description_was_built_does_not_reach_the_bytes() -> None:
    plain = shard_schema("scores", "classification", False)
    one, other = with_metadata(plain, {"a": 1, "b": {"c": 2, "d": 3}}), with_metadata(plain, {"b": {"d": 3, "c": 2}, "a": 1})
    assert one.serialize().to_pybytes() == other.serialize().to_pybytes()


def test_a_description_is_json_under_a_name_of_its_own() -> None:
    schema = with_metadata(shard_schema("scores", "classification", False), {"key": {"a": 1}})
    assert json.loads(schema.metadata[METADATA]) == {"key": {"a": 1}}


@pytest.mark.parametrize("metadata", [None, {b"pandas": b"{}"}])
def test_an_arrow_file_of_somebody_else_is_no_shard(metadata: dict[bytes, bytes] | None) -> None:
    with pytest.raises(PipelineError, match=r"^sales\.arrow is an Arrow file but not a shard: .*'adversarial_shard' metadata"):
        description_of(pa.schema([("a", pa.int32())], metadata=metadata), "sales.arrow")
