"""The shard contract: which columns a shard has, of which plain Arrow types, and what its metadata says of it.

A shard is one Arrow IPC file: one partition of one variant. Change anything here and FORMAT_VERSION goes up, so that no
shard of another form is ever read as this one.
"""

import json
from typing import Any, Literal

import pyarrow as pa

from pipeline.config.corpus import Kind
from pipeline.config.errors import PipelineError

FORMAT_VERSION = 4

Content = Literal["soft_labels", "variants"]
"""What a set of shards holds: clean inputs (variant 0), or their perturbed variants 1..V: by δ, edited or mixed."""

"""How perturbations are stored, see codec.py."""

METADATA = b"adversarial_shard"
"""Name of the schema metadata entry that holds the shard's key and how its perturbations are coded, as JSON."""

ROWS_PER_BATCH = 512
"""Record batches stay small: no array of one may reach 2³¹ elements, and a reader maps them one by one."""


def shard_schema(content: Content, kind: Kind, token_types: bool) -> pa.Schema:
    """The columns of a shard.

    =================== =============== ==========================================================================
    example_id          string          names the example; rows of two shards are joined by it, never by position
    variant             int16           0 for the clean input
    input_ids           list<int32>     what the model reads: real tokens, special ones included; edited where the variant is
    token_type_ids      list<int8>      only where the model has them
    label               int32 | float32 class index or value; null where the corpus has none
    teacher_logits      list<float32>   on the clean input
    partner_id          string          variant ≥ 1, mixed: the example whose embeddings are mixed in; else null
    partner_ids         list<int32>     variant ≥ 1, mixed: its token ids; the shorter of both is filled with padding tokens
    own_weight          float32         variant ≥ 1, mixed: λ, the share of the row's own embeddings
    delta               binary          variant ≥ 1, perturbed: coded δ, tokens × width, row by row (codec.py); else null
    delta_scale         list<float32>   variant ≥ 1, perturbed: one scale a token
    perturbed_logits    list<float32>   variant ≥ 1: the teacher's, on exactly what this row holds, the decoded δ included
    divergence          float32         variant ≥ 1: KL(clean ‖ variant) in nats; squared error for regression
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
    if content == "variants":
        fields += [
            pa.field("partner_id", pa.string()),
            pa.field("partner_ids", pa.list_(pa.int32())),
            pa.field("own_weight", pa.float32()),
            pa.field("delta", pa.binary()),
            pa.field("delta_scale", floats),
            pa.field("perturbed_logits", floats, nullable=False),
            pa.field("divergence", pa.float32(), nullable=False),
            pa.field("flipped", pa.bool_(), nullable=False),
        ]
    return pa.schema(fields)


def candidates_schema() -> pa.Schema:
    """Words that may stand for those of a text: an intermediate result, kept in the store and part of no set.

    =========== =========== ======================================================================================
    example_id  string      names the example
    input_ids   list<int32> its tokens
    starts      list<int32> of every word, its first token
    stops       list<int32> the token after its last
    candidates  list<int32> equally many token ids a word, one word after the other
    =========== =========== ======================================================================================
    """
    whole = pa.list_(pa.int32())
    types = {"example_id": pa.string(), "input_ids": whole, "starts": whole, "stops": whole, "candidates": whole}
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in types.items()])


def with_metadata(schema: pa.Schema, description: dict[str, Any]) -> pa.Schema:
    """The schema with what a shard says of itself: its key, and codec and width where it is of perturbed variants."""
    return schema.with_metadata({METADATA: json.dumps(description, sort_keys=True).encode()})


def description_of(schema: pa.Schema, name: str) -> dict[str, Any]:
    """What a shard says of itself; ``name`` is the file's, for the error."""
    held = (schema.metadata or {}).get(METADATA)
    if held is None:
        raise PipelineError(f"{name} is an Arrow file but not a shard: its schema has no {METADATA.decode()!r} metadata")
    description: dict[str, Any] = json.loads(held)
    return description
