"""Write one shard: an Arrow IPC file that is complete or absent."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.shards.manifest import Receipt
from pipeline.shards.schema import ROWS_PER_BATCH, with_metadata
from pipeline.store.files import written_whole
from pipeline.store.keys import Key, sha256_of


def write_shard(
    path: Path,
    schema: pa.Schema,
    columns: Mapping[str, Sequence[Any]],
    key: Key,
    description: dict[str, Any],
    statistics: dict[str, float],
) -> Receipt:
    """Write equally long columns as one shard; ``description`` is stored beside its key, ``statistics`` in the receipt.

    Raises:
        ValueError, TypeError: the columns do not fit the schema; nothing is written.
    """
    if unequal := set(columns) ^ set(schema.names):
        raise ValueError(f"a shard has the columns {schema.names}; these are missing or unknown: {sorted(unequal)}")
    described = with_metadata(schema, {"key": key, **description})
    table = pa.table({field.name: _array(field, columns[field.name]) for field in schema}, schema=described)
    with written_whole(path) as partial, pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, described) as writer:
        writer.write_table(table, max_chunksize=ROWS_PER_BATCH)
    tokens = sum(len(ids) for ids in columns["input_ids"])
    size, sha256 = path.stat().st_size, sha256_of(path)
    return Receipt(key=key, rows=table.num_rows, tokens=tokens, bytes=size, sha256=sha256, statistics=statistics)


def _array(field: pa.Field, values: Sequence[Any]) -> pa.Array:
    if not field.nullable and any(value is None for value in values):
        raise ValueError(f"{field.name} has a row without a value")
    if pa.types.is_integer(field.type) and any(isinstance(value, float) for value in values):
        raise TypeError(f"{field.name} takes integers, not fractions")
    return pa.array(values, type=field.type)
