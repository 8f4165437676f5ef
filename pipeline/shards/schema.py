"""The shard contract: which columns a shard has, of which plain Arrow types, and what its metadata says of it.

A shard is one Arrow IPC file: one partition of one variant. Change anything here and FORMAT_VERSION goes up, so that no
shard of another form is ever read as this one.
"""

import json
from typing import Any, Literal

import pyarrow as pa

from pipeline.errors import PipelineError
from pipeline.tasks import Kind

FORMAT_VERSION = 1

Content = Literal["scores", "perturbations"]
"""What a set of shards holds: untouched inputs (variant 0), or their perturbed variants 1..V."""

METADATA = b"adversarial_shard"
"""Name of the schema metadata entry that holds the shard's key and how its perturbations are coded, as JSON."""

ROWS_PER_BATCH = 512
"""Record batches stay small: no array of one may reach 2³¹ elements, and a reader maps them one by one."""


def shard_schema(content: Content, kind: Kind, token_types: bool) -> pa.Schema:
    """The columns of a shard.

    =================== =============== ==========================================================================
    example_id          string          names the example; rows of two shards are joined by it, never by position
    variant             int16           0 for the untouched input
    input_ids           list<int32>     real tokens only, special tokens included, no padding
    token_type_ids      list<int8>      only where the model has them
    label               int32 | float32 class index or value; null where the corpus has none
    teacher_logits      list<float32>   on the untouched input
    delta               binary          variant ≥ 1: coded perturbation, tokens × width, row by row (codec.py)
    delta_scale         list<float32>   variant ≥ 1: one scale a token
    perturbed_logits    list<float32>   variant ≥ 1: the teacher's, on the input plus the decoded perturbation
    divergence          float32         variant ≥ 1: KL(untouched ‖ perturbed) in nats; squared error for regression
    flipped             bool            variant ≥ 1: whether the teacher's answer changed
    =================== =============== ==========================================================================
    """
    floats = pa.list_(pa.float32())
    fields = [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("variant", pa.int16(), nullable=False),
        pa.field("input_ids", pa.list_(pa.int32()), nullable=False),
        *([pa.field("token_type_ids", pa.list_(pa.int8()), nullable=False)] if token_types else []),
        pa.field("label", pa.int32() if kind == "classification" else pa.float32()),
        pa.field("teacher_logits", floats, nullable=False),
    ]
    if content == "perturbations":
        fields += [
            pa.field("delta", pa.binary(), nullable=False),
            pa.field("delta_scale", floats, nullable=False),
            pa.field("perturbed_logits", floats, nullable=False),
            pa.field("divergence", pa.float32(), nullable=False),
            pa.field("flipped", pa.bool_(), nullable=False),
        ]
    return pa.schema(fields)


def with_metadata(schema: pa.Schema, description: dict[str, Any]) -> pa.Schema:
    """The schema with what a shard says of itself: its key, and codec and width where it holds perturbations."""
    return schema.with_metadata({METADATA: json.dumps(description, sort_keys=True).encode()})


def description_of(schema: pa.Schema, name: str) -> dict[str, Any]:
    """What a shard says of itself; ``name`` is the file's, for the error."""
    held = (schema.metadata or {}).get(METADATA)
    if held is None:
        raise PipelineError(f"{name} is an Arrow file but not a shard: its schema has no {METADATA.decode()!r} metadata")
    description: dict[str, Any] = json.loads(held)
    return description
