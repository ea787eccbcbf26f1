"""Result files: Parquet for records, JSON for the rest. Each is written to a temporary file and then moved, so that it is complete."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from abkt.records import DERIVED, RequestRecord, TransferRecord, columns

if TYPE_CHECKING:
    import pandas as pd

ARROW = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}


def write_records(folder: Path, requests: Sequence[RequestRecord], transfers: Sequence[TransferRecord], **labels: str) -> None:
    """Write requests.parquet and transfers.parquet. labels: constant columns, such as world="real"."""
    write_table(folder / "requests.parquet", record_table(RequestRecord, requests, labels))
    write_table(folder / "transfers.parquet", record_table(TransferRecord, transfers, labels))


def write_table(path: Path, table: pa.Table) -> None:
    _whole(path, lambda part: pq.write_table(table, part))


def write_csv(parquet: Path) -> Path:
    """Write NAME.csv beside NAME.parquet, in pieces; returns its path."""
    path, source = parquet.with_suffix(".csv"), pq.ParquetFile(parquet)

    def write(part: Path) -> None:
        with csv.CSVWriter(part, source.schema_arrow) as file:
            for batch in source.iter_batches():
                file.write_batch(batch)

    _whole(path, write)
    return path


def write_json(path: Path, data: Any) -> None:
    """Write JSON. nan becomes null and infinity "inf", because JSON has neither."""
    write_text(path, json.dumps(plain(data), indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    _whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_pieces(path: Path, pieces: Iterable[str]) -> None:
    """Write a text piece by piece, without holding all of it in memory."""

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8") as file:
            file.writelines(pieces)

    _whole(path, write)


def read_json(path: Path) -> Any:
    """The contents of a JSON file. Raises ValueError, one line, where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; {path.parent} is not a folder of results") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def read_records(path: Path) -> pd.DataFrame:
    """One of the two Parquet files. Raises ValueError, one line, where it is missing or damaged."""
    try:
        return pq.read_table(path).to_pandas()
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; {path.parent} is not a folder of results") from None
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def merge_records(parts: Mapping[Path, Mapping[str, str]], folder: Path) -> None:
    """Write one requests.parquet and one transfers.parquet in `folder` from those of many runs, with each run's labels as columns."""
    for name in ("requests.parquet", "transfers.parquet"):
        tables = []
        for part, labels in parts.items():
            table = pq.read_table(part / name)
            for label, value in labels.items():
                table = table.append_column(label, pa.array([value] * len(table), pa.string()))
            tables.append(table)
        write_table(folder / name, pa.concat_tables(tables))


def record_table(kind: type[RequestRecord] | type[TransferRecord], records: Sequence[Any], labels: Mapping[str, str]) -> pa.Table:
    """Records as a table. The schema comes from the record class, so that a run without transfers has the columns too."""
    hints = get_type_hints(kind)
    schema = pa.schema([(f.name, ARROW[hints[f.name]]) for f in fields(kind)])
    if kind is RequestRecord:
        schema = pa.schema([*schema, *((name, pa.float64()) for name in DERIVED)])
    found = columns(records)
    table = pa.table([arrow_column(found.get(field.name, []), field.type) for field in schema], schema)
    for label, value in labels.items():
        table = table.append_column(label, pa.array([value] * len(table), pa.string()))
    return table


def arrow_column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """A column without nulls. (pa.array gives the same, but it imports pandas, which takes longer than a short run.)"""
    if pa.types.is_string(kind):
        texts = [value.encode() for value in values]
        ends = np.zeros(len(texts) + 1, np.int32)
        np.cumsum([len(text) for text in texts], out=ends[1:])
        return pa.StringArray.from_buffers(len(texts), pa.py_buffer(ends), pa.py_buffer(b"".join(texts)))
    if pa.types.is_boolean(kind):
        data = np.packbits(np.array(values, np.bool_), bitorder="little")
    else:
        data = np.array(values, np.int64 if pa.types.is_integer(kind) else np.float64)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(data)])


def numpy_column(column: pa.ChunkedArray) -> np.ndarray:
    """A column without nulls as NumPy's. (Its own to_numpy imports pandas.)"""
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        chunks = [np.from_dlpack(chunk) for chunk in column.chunks]
        return np.concatenate(chunks) if chunks else np.empty(0, column.type.to_pandas_dtype())
    return np.array(column.to_pylist(), np.bool_ if pa.types.is_boolean(column.type) else np.str_)


def _whole(path: Path, write: Callable[[Path], object]) -> None:
    part = path.with_name(f".{path.name}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises ValueError, one line with the path, where the disk is full or the file cannot be written for another reason."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
        raise ValueError(f"{path} cannot be written: {reason}") from None


def plain(value: Any) -> Any:
    """A value as JSON can hold it: nan as None, infinity and paths as strings, tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return str(value) if isinstance(value, Path) else value
