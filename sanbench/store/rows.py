"""Rows of images in Parquet: a file for each network and kind of measurement, in it a row group for each record.

Columns become arrays and arrays columns without pandas, whose import takes a third of a second: pyarrow's own conversions
import it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

GROUPS = b"records"  # in the file's metadata: the ids of the records whose rows the groups are, in order
OPENED = 32  # files of rows that stay open: those of four networks, in both of two stores that are compared

Rows = dict[str, NDArray[Any]]  # a row an image: columns by name, all of one length


def digest(rows: Rows) -> str:
    """SHA-256 over names, types and values of the columns, whatever their order and the file that holds them."""
    found = hashlib.sha256()
    for name in sorted(rows):
        values = np.ascontiguousarray(rows[name])
        found.update(f"{name} {values.dtype} {len(values)} ".encode())
        found.update(values.tobytes())
    return found.hexdigest()


def to_table(rows: Rows) -> pa.Table:
    """Without metadata."""
    return pa.table({name: to_column(np.asarray(rows[name])) for name in rows})


def to_column(values: NDArray[Any]) -> pa.Array:
    """NaN becomes an empty entry."""
    empty = np.isnan(values) if np.issubdtype(values.dtype, np.floating) else np.zeros(0, bool)
    there = pa.py_buffer(np.packbits(~empty, bitorder="little")) if empty.any() else None
    dense = np.packbits(values, bitorder="little") if values.dtype == bool else np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [there, pa.py_buffer(dense)])


def from_table(table: pa.Table) -> Rows:
    columns = zip(table.column_names, table.columns, strict=True)
    return {name: from_column(own.chunk(0) if own.num_chunks == 1 else own.combine_chunks()) for name, own in columns}


def from_column(column: pa.Array) -> NDArray[Any]:
    """To be read only. Empty entries become NaN, and integers beside them floats: pyarrow does that, by pandas."""
    whole = column.null_count == 0 and len(column) > 0
    if whole and pa.types.is_boolean(column.type):
        bits = np.frombuffer(column.buffers()[1], np.uint8)
        return np.unpackbits(bits, count=column.offset + len(column), bitorder="little")[column.offset :].view(bool)
    if whole and (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return np.from_dlpack(column)
    return column.to_numpy(zero_copy_only=False)


def joined(parts: Sequence[Rows]) -> Rows:
    """The rows of parts that have the same columns, in order."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def write_groups(path: Path, groups: Mapping[str, pa.Table]) -> None:
    """One row group for each id. A column that a group does not have is empty there, and absent when it is read."""
    schema = pa.unify_schemas([table.schema.remove_metadata() for table in groups.values()])
    schema = schema.with_metadata({GROUPS: json.dumps(list(groups))})
    floats = [field.name for field in schema if pa.types.is_floating(field.type)]
    repeated = [field.name for field in schema if field.name not in (*floats, "index")]
    options = {"use_dictionary": repeated, "use_byte_stream_split": floats, "column_encoding": {"index": "DELTA_BINARY_PACKED"}}
    with pq.ParquetWriter(path, schema, compression="zstd", compression_level=9, write_statistics=False, **options) as writer:
        for table in groups.values():
            columns = [
                table[field.name] if field.name in table.column_names else pa.nulls(len(table), field.type) for field in schema
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=max(1, len(table)))


def read_whole(path: Path) -> pa.Table:
    """All rows of a file, with its metadata."""
    with pq.ParquetFile(path) as file:
        return file.read(use_threads=False)


def read_groups(path: Path) -> dict[str, pa.Table]:
    """The row groups by id."""
    with pq.ParquetFile(path) as file:
        return {id: group(file, number) for number, id in enumerate(ids(file))}


def read_group(path: Path, id: str) -> pa.Table | None:
    status = path.stat()
    file, found = opened(path, status.st_mtime_ns, status.st_size, status.st_ino)
    return group(file, found.index(id)) if id in found else None


@lru_cache(maxsize=OPENED)
def opened(path: Path, *version: int) -> tuple[pq.ParquetFile, list[str]]:
    """The file of that version, which stays open: a report reads a hundred groups of each."""
    file = pq.ParquetFile(path)
    return file, ids(file)


def group_ids(path: Path) -> list[str]:
    with pq.ParquetFile(path) as file:
        return ids(file)


def ids(file: pq.ParquetFile) -> list[str]:
    found: list[str] = json.loads((file.schema_arrow.metadata or {}).get(GROUPS, b"[]"))
    return found


def group(file: pq.ParquetFile, number: int) -> pa.Table:
    table = file.read_row_group(number, use_threads=False).replace_schema_metadata(None)  # groups are small
    return table.select([name for name in table.column_names if table[name].null_count < len(table) or not len(table)])
