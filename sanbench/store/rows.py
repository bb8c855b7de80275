"""Rows of images in Parquet: a file for each network and kind of measurement, in it a row group for each record."""

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

GROUPS = b"records"  # in the file's metadata: the ids of the records whose rows the groups are, in order


def digest(rows: pd.DataFrame) -> str:
    """SHA-256 over names, types and values of the columns, whatever their order and the file that holds them."""
    found = hashlib.sha256()
    for name in sorted(rows.columns):
        values = np.ascontiguousarray(rows[name].to_numpy())
        found.update(f"{name} {values.dtype} {len(values)} ".encode())
        found.update(values.tobytes())
    return found.hexdigest()


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


def read_groups(path: Path) -> dict[str, pa.Table]:
    """The row groups by id."""
    with pq.ParquetFile(path) as file:
        return {id: group(file, number) for number, id in enumerate(ids(file))}


def read_group(path: Path, id: str) -> pa.Table | None:
    status = path.stat()
    file, found = opened(path, status.st_mtime_ns, status.st_size, status.st_ino)
    return group(file, found.index(id)) if id in found else None


@lru_cache(maxsize=8)
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
