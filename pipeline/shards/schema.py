"""The shard contract: columns with their plain Arrow types, and metadata.

A shard is one Arrow IPC file: one partition of one variant. Every change here raises FORMAT_VERSION, so that a shard of
another version is never read as this one.
"""

import json
from typing import Any, Literal

import pyarrow as pa

from pipeline.config.corpus import Kind
from pipeline.config.errors import PipelineError

FORMAT_VERSION = 6

Content = Literal["soft_labels", "variants"]
"""Of a set of shards: clean inputs (variant 0), or their perturbed or edited variants 1..V."""

METADATA = b"adversarial_shard"
"""Name of the schema metadata that holds, as JSON, the shard's key and the coding of its perturbations."""

ROWS_PER_BATCH = 512
"""Rows of a record batch; small, since no array in one may reach 2³¹ elements."""


def shard_schema(content: Content, kind: Kind, token_types: bool) -> pa.Schema:
    """The columns of a shard.

    =================== =============== ==========================================================================
    example_id          string          name of the example, by which rows of two shards are joined
    variant             int16           0 for the clean input
    input_ids           list<int32>     tokens with special tokens, without padding; those of an edited variant are edited
    token_type_ids      list<int8>      only if the model has token types
    label               int32 | float32 class index or value; null if the corpus has no label
    teacher_logits      list<float32>   on the clean input
    delta               binary          variant ≥ 1, perturbed: coded δ, tokens × width, row by row (codec.py); else null
    delta_scale         list<float32>   variant ≥ 1, perturbed: one scale per token
    perturbed_logits    list<float32>   variant ≥ 1: the teacher's on this row, with the decoded δ
    divergence          float32         variant ≥ 1: KL(clean ‖ variant) in nats; squared error for regression
    flipped             bool            variant ≥ 1: whether the teacher's prediction changed
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
    if content == "variants":
        fields += [
            pa.field("delta", pa.binary()),
            pa.field("delta_scale", floats),
            pa.field("perturbed_logits", floats, nullable=False),
            pa.field("divergence", pa.float32(), nullable=False),
            pa.field("flipped", pa.bool_(), nullable=False),
        ]
    return pa.schema(fields)


def candidates_schema() -> pa.Schema:
    """Replacement candidates of words: an intermediate result in the store, which belongs to no set.

    =========== =========== ======================================================================================
    example_id  string      name of the example
    input_ids   list<int32> its tokens
    starts      list<int32> position of the first token of every word
    stops       list<int32> position after its last token
    candidates  list<int32> the same number of token ids for every word, word after word
    =========== =========== ======================================================================================
    """
    lists = ("input_ids", "starts", "stops", "candidates")
    names = [("example_id", pa.string()), *((name, pa.list_(pa.int32())) for name in lists)]
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in names])


def with_metadata(schema: pa.Schema, description: dict[str, Any]) -> pa.Schema:
    """The schema with a shard's description: its key and, for perturbed variants, codec and width."""
    return schema.with_metadata({METADATA: json.dumps(description, sort_keys=True).encode()})


def description_of(schema: pa.Schema, name: str) -> dict[str, Any]:
    """The description of the shard in file ``name``."""
    held = (schema.metadata or {}).get(METADATA)
    if held is None:
        raise PipelineError(f"{name} is an Arrow file but not a shard: its schema has no {METADATA.decode()!r} metadata")
    description: dict[str, Any] = json.loads(held)
    return description
