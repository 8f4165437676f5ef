import pyarrow as pa
import pytest

from pipeline.config.errors import PipelineError
from pipeline.corpus.task import Kind
from pipeline.shards.schema import Content, description_of, shard_schema, with_metadata

COMMON = {"example_id", "variant", "input_ids", "label", "teacher_logits"}
LABELLED = {"perturbed_logits", "divergence", "flipped"}
MIXED, PERTURBED = {"partner_id", "partner_ids", "own_weight"}, {"delta", "delta_scale"}
CONTENTS: tuple[Content, ...] = ("scores", "perturbations")
KINDS: tuple[Kind, ...] = ("classification", "regression")


@pytest.mark.parametrize("kind", KINDS)
def test_of_scores_only_the_label_may_be_null_and_of_variants_what_their_recipe_lacks(kind: Kind) -> None:
    """A variant that is only edited has neither δ nor partner; what the teacher said of it is always there."""
    nullable = {c: {field.name for field in shard_schema(c, kind, True) if field.nullable} for c in CONTENTS}
    assert nullable == {"scores": {"label"}, "perturbations": {"label"} | MIXED | PERTURBED}


def test_what_a_shard_says_of_itself_comes_back_as_it_was_given() -> None:
    said = {"key": {"teacher": "ab", "variant": 3, "nested": {"δ": [1, 2.5]}}, "codec": "sign", "width": 12}
    schema = with_metadata(shard_schema("perturbations", "regression", True), said)
    assert description_of(schema, "x.arrow") == said


def test_the_order_in_which_a_description_was_built_does_not_reach_the_bytes() -> None:
    plain = shard_schema("scores", "classification", False)
    one, other = with_metadata(plain, {"a": 1, "b": {"c": 2, "d": 3}}), with_metadata(plain, {"b": {"d": 3, "c": 2}, "a": 1})
    assert one.serialize().to_pybytes() == other.serialize().to_pybytes()


@pytest.mark.parametrize("metadata", [None, {b"pandas": b"{}"}])
def test_an_arrow_file_of_somebody_else_is_no_shard(metadata: dict[bytes, bytes] | None) -> None:
    with pytest.raises(PipelineError, match=r"^sales\.arrow is an Arrow file but not a shard: .*'adversarial_shard' metadata"):
        description_of(pa.schema([("a", pa.int32())], metadata=metadata), "sales.arrow")
