"""Write one shard: an Arrow IPC file that is whole or absent. Knows columns, not what they mean."""

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
    """Write the columns of one shard and return its receipt.

    Args:
        path: where to; replaced as a whole.
        schema: of ``shard_schema``; a column that is missing, spare or of another type is an error.
        columns: equally long sequences, one a column.
        key: what decides the shard's bytes; stands in the file's metadata.
        description: what else a reader needs to know of the file, beside the key.
        statistics: figures over the rows, for the receipt only.

    Raises:
        ValueError, TypeError: the columns are not those of the schema; nothing is written.
    """
    described = with_metadata(schema, {"key": key, **description})
    table = pa.table(_arrays(schema, columns), schema=described)
    with written_whole(path) as partial, pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, described) as writer:
        writer.write_table(table, max_chunksize=ROWS_PER_BATCH)
    return Receipt(
        key=key,
        rows=table.num_rows,
        tokens=sum(len(ids) for ids in columns["input_ids"]),
        bytes=path.stat().st_size,
        sha256=sha256_of(path),
        statistics=statistics,
    )


def _arrays(schema: pa.Schema, columns: Mapping[str, Sequence[Any]]) -> dict[str, pa.Array]:
    """The columns as Arrow arrays, if they are exactly those of the schema."""
    if unequal := set(columns) ^ set(schema.names):
        raise ValueError(f"a shard has the columns {schema.names}, these are missing or spare: {sorted(unequal)}")
    return {field.name: _array(field, columns[field.name]) for field in schema}


def _array(field: pa.Field, values: Sequence[Any]) -> pa.Array:
    if not field.nullable and any(value is None for value in values):
        raise ValueError(f"{field.name} has a row without a value")
    if pa.types.is_integer(field.type) and any(isinstance(value, float) for value in values):
        raise TypeError(f"{field.name} holds whole numbers, not fractions")
    return pa.array(values, type=field.type)
