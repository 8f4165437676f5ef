import pyarrow as pa
import pytest

from pipeline.config.corpus import Kind
from pipeline.config.errors import PipelineError
from pipeline.shards.schema import Content, description_of, shard_schema, with_metadata

CONTENTS: tuple[Content, ...] = ("soft_labels", "variants")
KINDS: tuple[Kind, ...] = ("classification", "regression")


@pytest.mark.parametrize("kind", KINDS)
def test_only_labels_and_the_columns_of_other_recipes_may_be_null(kind: Kind) -> None:
    nullable = {c: {field.name for field in shard_schema(c, kind, True) if field.nullable} for c in CONTENTS}
    assert nullable == {"soft_labels": {"label"}, "variants": {"label", "delta", "delta_scale"}}


def test_a_description_is_read_back() -> None:
    given = {"key": {"teacher": "ab", "variant": 3, "nested": {"δ": [1, 2.5]}}, "codec": "sign", "width": 12}
    schema = with_metadata(shard_schema("variants", "regression", True), given)
    assert description_of(schema, "x.arrow") == given


def test_the_order_of_a_description_does_not_change_the_bytes() -> None:
    plain = shard_schema("soft_labels", "classification", False)
    one, other = with_metadata(plain, {"a": 1, "b": {"c": 2, "d": 3}}), with_metadata(plain, {"b": {"d": 3, "c": 2}, "a": 1})
    assert one.serialize().to_pybytes() == other.serialize().to_pybytes()


@pytest.mark.parametrize("metadata", [None, {b"pandas": b"{}"}])
def test_another_arrow_file_is_not_a_shard(metadata: dict[bytes, bytes] | None) -> None:
    with pytest.raises(PipelineError, match=r"^sales\.arrow is an Arrow file but not a shard: .*'adversarial_shard' metadata"):
        description_of(pa.schema([("a", pa.int32())], metadata=metadata), "sales.arrow")
